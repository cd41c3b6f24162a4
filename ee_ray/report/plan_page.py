"""The picture of a plan: the tree of stages, areas by tokens, what is there already apart from what will be trained."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from ee_ray.quote import in_short

KIND_COLOURS = {"pretrain": "#56B4E9", "posttrain": "#E69F00", "finetune": "#CC79A7"}
CACHED = "#c8c8c8"
STYLE = "body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; background: #fff; } h1 { font-size: 1.2rem; }"


def tree_figure(stages: Sequence[dict[str, Any]]) -> go.Figure:
    """The stages of a quotation; what hangs under one box shares its training."""
    labels = [f"{stage['kind']} {stage['learning_rate']:g}<br>seed {stage['seed']}" for stage in stages]
    words = [f"{stage['key']}, {stage['status']}, {stage['tokens']:,} tokens, in {stage['shared_by']} trials" for stage in stages]  # fmt: skip
    colours = [CACHED if stage["status"] == "cached" else KIND_COLOURS[stage["kind"]] for stage in stages]
    return go.Figure(
        go.Icicle(
            ids=["sweep", *(stage["key"] for stage in stages)],
            parents=["", *(stage["parent"] or "sweep" for stage in stages)],
            values=[0, *(stage["tokens"] for stage in stages)],
            labels=["sweep", *labels],
            text=["", *words],
            branchvalues="remainder",
            textinfo="label",
            marker={"colors": ["#eeeeee", *colours], "line": {"width": 1, "color": "white"}},
            hovertemplate="%{label}<br>%{text}<br>%{value:,} tokens with its children<extra></extra>",
        ),
        layout={"margin": {"l": 4, "r": 4, "t": 8, "b": 8}, "height": 460, "uniformtext": {"minsize": 9, "mode": "hide"}},
    )  # fmt: skip


def write_plan(quotations: Sequence[dict[str, Any]], page: Path) -> None:
    """Write one file that opens without a network."""
    parts = []
    for number, quotation in enumerate(quotations):
        figure = tree_figure(quotation["stages"])
        drawn = figure.to_html(full_html=False, include_plotlyjs=False, div_id=f"tree{number}", config={"responsive": True, "displaylogo": False})  # fmt: skip
        parts.append(f"<h1>{escape(quotation['sweep'])}: {escape(in_short(quotation))}</h1>{drawn}")
    note = "<p>Width is tokens. Blue: pretraining; orange: post-training; pink: fine-tuning; grey: in the store already. Click to look closer.</p>"
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>plan - ee_ray</title><style>{STYLE}</style>'
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(f'<!doctype html><html lang="en"><head>{head}<script>{get_plotlyjs()}</script></head><body>{"".join(parts)}{note}</body></html>')  # fmt: skip
