"""The picture of a plan: the tree of stages, areas by tokens, what is there already apart from what will be trained."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from ee_ray.quote import in_short
from ee_ray.report.figures import INK, KIND_COLOURS, LAYOUT
from ee_ray.report.html import figure, figured, note

CACHED = "#c8c8c8"


def tree_figure(stages: Sequence[dict[str, Any]]) -> go.Figure:
    """The stages of a quotation; what hangs under one box shares its training."""
    labels = [f"lambda {s['lambda']:g}<br>seed {s['seed']}" if s["kind"] == "pretrain" else f"{s['kind']} {s['learning_rate']:g}" for s in stages]  # fmt: skip
    words = [f"{stage['kind']} at {stage['learning_rate']:g}, lambda {stage['lambda']:g}, seed {stage['seed']}<br>{stage['key']}, {stage['status']}, {stage['tokens']:,} tokens, in {stage['shared_by']} trials" for stage in stages]  # fmt: skip
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
            textfont={"color": INK},
            marker={"colors": ["#d5d8db", *colours], "line": {"width": 0.5, "color": "white"}},
            hovertemplate="%{text}<br>%{value:,} tokens with its children<extra></extra>",
        ),
        layout={**LAYOUT, "margin": {"l": 4, "r": 4, "t": 8, "b": 8}, "height": 460, "uniformtext": {"minsize": 9, "mode": "hide"}},
    )  # fmt: skip


def write_plan(quotations: Sequence[dict[str, Any]], page: Path) -> None:
    """Write one file that opens without a network."""
    parts, figures = [], {}
    for number, quotation in enumerate(quotations):
        figures[f"tree{number}"] = tree_figure(quotation["stages"])
        parts.append(
            f"<h1>{escape(quotation['sweep'])}: {escape(in_short(quotation))}</h1>{figure(f'tree{number}', 'tree of stages')}"
        )
    parts.append(note("Height is tokens. Blue: pretraining; orange: post-training; pink: fine-tuning; grey: in the store already. Click to look closer."))  # fmt: skip
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(figured("plan - ee_ray", "".join(parts), figures))
