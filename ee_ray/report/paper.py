"""The paper's own points, for the sweeps that ask what it asked: to be laid under the same axes.

Read from the drawing commands of its Figures 2, 3 and 4 (figures/README.md, CC BY 4.0).
"""

from pathlib import Path

import pandas as pd

from ee_ray.spec.model import Checkpoint
from ee_ray.spec.sweep import SweepSpec

FIGURES = Path(__file__).with_name("paper_figures")
CREDIT = "Feng, Ghosal, Springer, Zhong and Raghunathan, arXiv:2605.12705, CC BY 4.0; read from the figures, not checked by the authors"
CORPORA = {"hf:allenai/c4": "C4", "hf:m-a-p/MusicPile": "MusicPile", "hf:jablonkagroup/chempile-education": "ChemPile"}
SIZE = "smollm2-135m"
DRIFT = 0.01  # budgets are whole batches of windows


def _corpus(source: str) -> str:
    return CORPORA.get(source, "FLAN" if "flan" in source.lower() else source)


def allocations(spec: SweepSpec) -> pd.DataFrame:
    """Columns lambda, L_im, L_ret: the curve of Figure 3 with the setting, data and budget of `spec`; empty if there is
    none."""
    table = pd.read_csv(FIGURES / "fig3.csv")
    if pipeline(spec) != "C4>MusicPile>ChemPile":
        return _named(table[:0])
    sizes = table["dataset_tokens"].str.removesuffix("M").astype(float) * 1e6
    near = (sizes / spec.stages.posttrain.tokens - 1).abs() < DRIFT
    return _named(table[near & (table["setting"] == spec.setting)])


def _named(table: pd.DataFrame) -> pd.DataFrame:
    names = {"lambda": "lambda", "immediate_loss": "L_im", "retained_loss": "L_ret"}
    return table[list(names)].rename(columns=names).reset_index(drop=True)


def pipeline(spec: SweepSpec) -> str | None:
    """The paper's name for the corpora of `spec`, if its model is the paper's smaller one, whose points are known."""
    if isinstance(spec.model, Checkpoint) or spec.model != SIZE:
        return None
    return ">".join(_corpus(source.source) for source in (spec.data.pre, spec.data.post, spec.data.ft))


def checkpoints(spec: SweepSpec) -> pd.DataFrame:
    """Columns method, x_name, x, y_name, y: the points of Figures 2 and 4 for the corpora of `spec`; empty if there are
    none. Figure 4 shows the interventions, so it is used where the sweep tries any."""
    columns = ["method", "x_name", "x", "y_name", "y"]
    tried = any(
        name.startswith(("posttrain.replay", "posttrain.dropout", "posttrain.lora")) for name in spec.search.choices
    )
    table = pd.read_csv(FIGURES / ("fig4.csv" if tried else "fig2.csv"))
    kept = table[(table["pipeline"] == pipeline(spec)) & (table["kind"] == "point") & (spec.setting == "varying")]
    if tried:  # its axes are exchanged
        kept = kept.rename(columns={"x": "y", "x_name": "y_name", "y": "x", "y_name": "x_name"})
    return kept.assign(method=kept["method"].str.replace("_", " + "))[columns].drop_duplicates().reset_index(drop=True)
