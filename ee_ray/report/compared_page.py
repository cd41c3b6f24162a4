"""The page of `ee-ray compare`: intervals of lambda*, frontiers under one axis, and the gap between them."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from ee_ray.report.compared import Against, Side, text
from ee_ray.report.figures import COLOURS, axes
from ee_ray.report.html import figure as box
from ee_ray.report.html import figured, note


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def intervals_figure(sides: Sequence[Side]) -> go.Figure:
    """lambda* of each sweep with its 95% interval."""
    figure = axes("lambda*", "", height=120 + 40 * len(sides), showlegend=False)
    for number, side in enumerate(sides):
        optimum = side.summary["optimum"]
        if optimum is None:
            continue
        at, (low, high) = optimum["lambda"], optimum["ci95"]
        figure.add_scatter(
            x=[at], y=[f"{side.letter}: {side.sweep.spec.name}"], mode="markers", marker={"size": 11, "color": _colour(number)},
            error_x={"type": "data", "array": [high - at], "arrayminus": [at - low]},
            hovertemplate=f"lambda* = {at:.3f}, 95% interval {low:.3f} to {high:.3f}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(range=[-0.03, 1.03])
    figure.update_yaxes(autorange="reversed")
    return figure


def frontiers_figure(sides: Sequence[Side]) -> go.Figure:
    """Recipes (means over seeds) and the lower-left hull of each sweep."""
    figure = axes("fine-tuning loss L_ft, nats per token", "retained loss L_ret, nats per token")
    for number, side in enumerate(sides):
        name, colour, recipes = f"{side.letter}: {side.sweep.spec.name}", _colour(number), side.recipes
        words = [f"lambda {row['lambda']:g}, fine-tuned at {row['finetune_lr']:g}, {row['seeds']} seeds" for _, row in recipes.iterrows()]  # fmt: skip
        figure.add_scatter(x=recipes["L_ft"], y=recipes["L_ret"], mode="markers", name=name, legendgroup=name, text=words, marker={"color": colour, "size": 7, "opacity": 0.6}, hovertemplate="%{text}<br>L_ft %{x:.4f}, L_ret %{y:.4f}<extra></extra>")  # fmt: skip
        hull = recipes[recipes["on_hull"]].sort_values("L_ft")
        figure.add_scatter(x=hull["L_ft"], y=hull["L_ret"], mode="lines", line={"color": colour, "dash": "dot"}, legendgroup=name, showlegend=False, hoverinfo="skip")  # fmt: skip
    return figure


def gaps_figure(sides: Sequence[Side], gaps: Sequence[Against]) -> go.Figure:
    """How much more each sweep keeps than the first, at each fine-tuning loss, with equal numbers of trials."""
    figure = axes("fine-tuning loss L_ft, nats per token", "kept more than a, nats per token")
    names = {side.letter: (number, side.sweep.spec.name) for number, side in enumerate(sides)}
    for gap in gaps:
        if gap.found is None:
            continue
        number, name = names[gap.letter]
        curve = gap.found.matched.curve
        figure.add_scatter(x=curve["x"], y=curve["gap"], mode="lines", name=f"{gap.letter}: {name}", line={"color": _colour(number)})  # fmt: skip
        if curve["lo"].notna().all():
            figure.add_scatter(x=[*curve["x"], *curve["x"][::-1]], y=[*curve["hi"], *curve["lo"][::-1]], fill="toself", fillcolor=_colour(number), opacity=0.15, line_width=0, showlegend=False, hoverinfo="skip")  # fmt: skip
    figure.add_hline(y=0, line={"color": "#999", "width": 1})
    return figure


def write_page(sides: Sequence[Side], gaps: Sequence[Against], told: dict[str, Any], folder: Path) -> Path:
    """Write `index.html` into `folder`: one file that opens without a network."""
    names = " against ".join(side.sweep.spec.name for side in sides)
    figures = {"intervals": intervals_figure(sides)}
    parts = [
        f"<h1>{escape(names)}</h1><pre>{escape(text(told))}</pre>",
        "<h2>Where lambda* is</h2>",
        box("intervals", "lambda* of each sweep with its 95% interval"),
    ]
    if gaps:
        figures |= {"frontiers": frontiers_figure(sides), "gaps": gaps_figure(sides, gaps)}
        parts += [
            "<h2>What fine-tuning gains against what is kept</h2>",
            box("frontiers", "retained loss against fine-tuning loss, by sweep"),
            note("Points are means over seeds, each seed's offset taken out; lower left is better. Dotted: the lower-left hull."),
            "<h2>Kept more than by the first, at the same fine-tuning loss</h2>",
            box("gaps", "how much more than the first each sweep keeps, against fine-tuning loss"),
            note("Frontiers of single seeds, compared seed by seed at equal numbers of trials; shaded: the 95% band over seeds."),
        ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "index.html"
    page.write_text(figured(f"{names} - ee_ray", "".join(parts), figures))
    return page
