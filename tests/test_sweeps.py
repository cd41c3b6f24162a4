"""The specs that come with the project say what they cost, and what they share."""

import pytest
from conftest import ROOT

from ee_ray.quote import in_short, quote, together
from ee_ray.sweep import open_sweep

PAPER = sorted((ROOT / "sweeps" / "paper").glob("*.yaml"))
MINIATURES = [path for path in sorted((ROOT / "sweeps" / "miniature").glob("*.yaml")) if "_real" not in path.stem]


@pytest.mark.parametrize("path", [*PAPER, *MINIATURES], ids=lambda path: path.stem)
def test_the_head_of_a_spec_quotes_its_plan(path, tmp_path):
    lines = path.read_text().splitlines()
    head = [line for line in lines[: lines.index("schema: 1")] if line.startswith("# plan: ")]
    assert head == [f"# plan: {in_short(quote(open_sweep(path, tmp_path), []))}"]


def test_the_papers_experiments_are_all_there():
    pipelines = {"music_chem", "music_flan", "flan_chem", "flan_music"}
    names = {path.stem for path in PAPER}
    assert names == (
        {f"{figure}_{pipeline}" for figure in ("figure2", "figures4to7", "figures8to12") for pipeline in pipelines}
        | {f"figure3{panel}_{size}m" for panel in "ab" for size in (30, 150, 300)}
    )


def test_the_four_sweeps_of_figure_2_share_most_of_their_training(tmp_path):
    sweeps = [open_sweep(path, tmp_path) for path in PAPER if path.stem.startswith("figure2_")]
    found = together(sweeps, [quote(sweep, []) for sweep in sweeps])
    assert len(sweeps) == 4
    assert found["tokens"]["saved_factor"] >= 18
    assert found["stages"]["planned"] == 3 + 4 * 15 + 4 * 120  # C4 alone once, and with each D_post once


def test_miniatures_repeat_with_three_seeds_or_more():
    for path in MINIATURES:
        assert len(open_sweep(path, ROOT / "store-that-is-not-there").spec.search.seeds) >= 3
