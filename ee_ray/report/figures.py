"""Plotly figures, drawn from tables that other modules computed.

A trace whose points stand for rows of a table says so: `meta` names the table, `customdata` holds the rows. The page
pins points by that.
"""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ee_ray.objective import NAMES
from ee_ray.report.tables import Tables

# Okabe and Ito's palette, told apart by colour-blind eyes; its black is grey here, to be seen on light and on dark.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7a7a7a"]
MORE_COLOURS = ["#a4447a", "#8c5a2b"]
INK, GRID, PAPER = "#1a1a1a", "#e1e4e6", "#ffffff"
AXIS = {
    "gridcolor": GRID,
    "zeroline": False,
    "linecolor": GRID,
    "automargin": True,
    "title": {"standoff": 8, "font": {"size": 13}},
}
LAYOUT = {
    "template": "none",
    "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
    "paper_bgcolor": PAPER,
    "plot_bgcolor": "rgba(0,0,0,0)",
    "margin": {"l": 64, "r": 16, "t": 36, "b": 52},
    "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0, "bgcolor": "rgba(0,0,0,0)"},
    "hovermode": "closest",
    "height": 440,
    "xaxis": AXIS,
    "yaxis": AXIS,
}
METHOD_COLOURS = {"unmixed": COLOURS[1], "mixed": COLOURS[0]}
# Viridis without its darkest part, which is not seen on dark.
SCALE = [[0, "#31688e"], [0.33, "#21918c"], [0.66, "#5ec962"], [1, "#fde725"]]
KIND_COLOURS = {"pretrain": COLOURS[5], "posttrain": COLOURS[4], "finetune": COLOURS[3]}
NATS = "nats per token"
LAMBDA = "lambda: fraction of D_post mixed into pretraining"
SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon", "hexagram", "triangle-down"]
MOST_BANDS = 4  # methods whose bands can be told apart
MOST_STAGES = 1200  # an icicle of more is slow to draw and too fine to read


def axes(x: str, y: str, **layout: Any) -> go.Figure:
    figure = go.Figure(layout={**LAYOUT, **layout})
    figure.update_xaxes(title_text=x)
    figure.update_yaxes(title_text=y)
    return figure


def _faded(colour: str, alpha: float) -> str:
    return f"rgba({int(colour[1:3], 16)},{int(colour[3:5], 16)},{int(colour[5:7], 16)},{alpha})"


def _band(figure: go.Figure, x: "pd.Series[float]", table: pd.DataFrame, colour: str, **more: Any) -> None:
    """A filled band between columns lo and hi."""
    figure.add_scatter(
        x=[*x, *x[::-1]], y=[*table["hi"], *table["lo"][::-1]], fill="toself", fillcolor=_faded(colour, 0.16), line_width=0,
        mode="lines", hoverinfo="skip", **more,
    )  # fmt: skip


def recipe_name(row: Any, choices: int) -> str:
    """A row of `runs` or `recipes` in words."""
    seeds = f"seed {row['seed']}" if "seed" in row else f"{row['seeds']} seed{'s' * (row['seeds'] != 1)}"
    choice = f", choice {row['choice']}" if choices > 1 else ""
    return f"lambda {row['lambda']:g}, {seeds}{choice}, fine-tuned at {row['finetune_lr']:g}"


def short(question: str) -> str:
    """`describe`'s words, short enough for a legend."""
    for long, brief in (
        ("retained loss ", ""),
        ("immediate loss ", ""),
        (NAMES["L_ft"], "L_ft"),
        (NAMES["L_pre"], "L_pre"),
        (", fine-tuned at ", " at "),
        ("a fine-tuning loss of ", "L_ft = "),
    ):
        question = question.replace(long, brief)
    return question


def _runs(figure: go.Figure, seen: pd.DataFrame, colour: str, size: int, **more: Any) -> None:
    """The runs of one question, a symbol for each seed; they pin rows of `runs`."""
    order = {seed: number for number, seed in enumerate(sorted(seen["seed"].unique()))}
    figure.add_scatter(
        x=seen["lambda"], y=seen["loss"], mode="markers", meta="runs", customdata=seen["run"].astype(object).where(seen["run"].notna(), None),
        text=[f"lambda {row.iloc[0]:g}, seed {row.iloc[1]:g}" for _, row in seen[["lambda", "seed"]].iterrows()],
        marker={"size": size, "symbol": [SYMBOLS[order[seed] % len(SYMBOLS)] for seed in seen["seed"]], "color": colour, "opacity": 0.85, "line": {"width": 1, "color": PAPER}},
        hovertemplate="%{text}<br>%{y:.4f}<extra></extra>", **more,
    )  # fmt: skip


def question_figure(tables: Tables, question: str, large: bool = False) -> go.Figure:
    """One loss against lambda: runs, fitted mean with its band, lambda* with its interval, and, `large`, under them how
    probable each level is to be the best."""
    seen, curve, best, levels = (tables[name][tables[name]["question"] == question] for name in ("observations", "curves", "optima", "levels"))  # fmt: skip
    figure = axes(
        LAMBDA if large else "lambda", f"{short(question)}, {NATS}" if large else "", height=480 if large else 280
    )
    if not large:
        figure.update_layout(
            showlegend=False, title={"text": short(question), "font": {"size": 14}, "x": 0, "xref": "paper"}
        )
    for row in best.to_dict("records"):
        figure.add_vrect(x0=row["lo"], x1=row["hi"], fillcolor=COLOURS[2], opacity=0.14, line_width=0, layer="below")
        figure.add_vline(x=row["lambda"], line={"color": COLOURS[2], "dash": "dash", "width": 1.5})
        right = row["lambda"] > 0.5
        figure.add_annotation(
            x=row["lambda"], y=1, yref="y domain", yanchor="top", xanchor="right" if right else "left", showarrow=False,
            text=f" lambda* = {row['lambda']:.2f} ", font={"color": COLOURS[2]},
        )  # fmt: skip
    if len(curve):
        _band(figure, curve["lambda"], curve, COLOURS[0], name="95% band")
        figure.add_scatter(x=curve["lambda"], y=curve["mean"], mode="lines", line={"color": COLOURS[0], "width": 2.5}, name="fitted mean over seeds", hovertemplate="lambda %{x:.3f}<br>mean %{y:.4f}<extra></extra>")  # fmt: skip
    _runs(figure, seen, COLOURS[1], 10 if large else 7, name="runs, a symbol for each seed")
    if large and len(levels):
        figure.update_layout(yaxis={"domain": [0.24, 1]}, xaxis={"anchor": "y2"}, yaxis2={**AXIS, "domain": [0, 0.15], "title": {"text": "P(best)", "standoff": 8, "font": {"size": 13}}, "nticks": 3, "tickformat": ".0%"})  # fmt: skip
        figure.add_bar(x=levels["lambda"], y=levels["p"], yaxis="y2", marker={"color": COLOURS[2]}, name="probability of being the best level", showlegend=False, hovertemplate="lambda %{x:g}<br>best with probability %{y:.3f}<extra></extra>")  # fmt: skip
    figure.update_xaxes(range=[-0.04, 1.04])
    return figure


def question_colours(tables: Tables) -> dict[str, str]:
    """A colour for each question: L_im, L_ret by rate, then the others."""

    def rank(question: str) -> tuple[int, float]:
        if question.startswith("immediate"):
            return 0, 0.0
        rate = question.partition("retained loss L_ret, fine-tuned at ")[2]
        return (1, float(rate)) if rate else (2, 0.0)

    seen = sorted(dict.fromkeys(tables["observations"]["question"]), key=rank)
    return {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(seen)}


def losses_figure(tables: Tables) -> go.Figure:
    """Every loss on D_post against lambda under one axis: runs, fitted means and bands; and the paper's Figure 3 where it
    applies."""
    figure = axes("lambda", f"held-out loss on D_post, {NATS}")
    seen = tables["observations"]
    for question, colour in question_colours(tables).items():
        if question.startswith((NAMES["L_ft"], NAMES["L_pre"])):
            continue
        name = short(question)
        curve = tables["curves"][tables["curves"]["question"] == question]
        dash = "dot" if question.startswith("immediate") else "solid"
        group = {"legendgroup": name}
        if len(curve):
            _band(figure, curve["lambda"], curve, colour, showlegend=False, **group)
            figure.add_scatter(x=curve["lambda"], y=curve["mean"], mode="lines", line={"color": colour, "dash": dash}, name=name, hovertemplate=f"{name}<br>lambda %{{x:.3f}}<br>mean %{{y:.4f}}<extra></extra>", **group)  # fmt: skip
        _runs(figure, seen[seen["question"] == question], colour, 7, name=name, showlegend=not len(curve), **group)
    figure.update_xaxes(range=[-0.04, 1.04])
    theirs = tables["paper_allocations"]
    for loss, symbol in (("L_im", "circle-open"), ("L_ret", "circle")) if len(theirs) else ():
        figure.add_scatter(x=theirs["lambda"], y=theirs[loss], mode="lines+markers", name=f"{loss}, the paper", line={"color": COLOURS[6], "dash": "dash", "width": 1}, marker={"symbol": symbol, "size": 9}, hovertemplate=f"the paper, figure 3<br>lambda %{{x}}<br>{loss} %{{y:.4f}}<extra></extra>")  # fmt: skip
    return figure


def method_colours(methods: list[str]) -> dict[str, str]:
    """A colour for each method, the same in every figure: of plain recipes one each; where interventions are tried, mixed and
    unmixed recipes with the same ones share it, and are told apart by symbol and dash."""
    added = sorted({name.partition(" + ")[2] for name in methods} - {""})
    shared = dict(zip(added, cycle([*COLOURS[2:], *MORE_COLOURS]), strict=False))
    return {name: METHOD_COLOURS.get(name) or shared[name.partition(" + ")[2]] for name in methods}


def frontier_figure(tables: Tables, x: str, y: str, choices: int) -> go.Figure:
    """Every recipe (mean over seeds), and by method the Pareto set, the lower-left hull (dotted) and, of few methods, the
    hull's band. Of many, Pareto sets of unmixed recipes are dashed."""
    points, bands, recipes = tables["frontiers"], tables["bands"], tables["recipes"]
    methods = sorted(points["method"].unique(), key=lambda name: (not name.startswith("unmixed"), name))
    many, colours = len(methods) > MOST_BANDS, method_colours(methods)
    figure = axes(f"{NAMES[x]}, {NATS}", f"{NAMES[y]}, {NATS}", height=500 + 12 * len(methods) * many)
    for method in methods:
        colour, group, unmixed = colours[method], {"legendgroup": method}, method.startswith("unmixed")
        mine = points[(points["method"] == method) & (points["x_name"] == x)].sort_values("x")
        band = bands[(bands["method"] == method) & (bands["x_name"] == x)]
        pareto, hull = mine[mine["on_pareto"]], mine[mine["on_hull"]]
        if len(band) and not many:
            _band(figure, band["x"], band, colour, showlegend=False, **group)
        shape = "square" if unmixed else "circle"
        figure.add_scatter(x=pareto["x"], y=pareto["y"], mode="lines+markers", marker={"symbol": shape, "color": colour, "size": 7}, line={"color": colour, "dash": "dash" if many and unmixed else "solid"}, name=method, hoverinfo="skip", **group)  # fmt: skip
        if not many:
            figure.add_scatter(x=hull["x"], y=hull["y"], mode="lines", line={"color": colour, "dash": "dot", "width": 1.5}, name="hull", hoverinfo="skip", showlegend=False, **group)  # fmt: skip
        figure.add_scatter(
            x=mine["x"], y=mine["y"], mode="markers", meta="recipes", customdata=mine["recipe"].tolist(), name=method,
            text=[recipe_name(row, choices) for row in recipes.loc[mine["recipe"]].to_dict("records")],
            marker={"color": mine["lambda"], "colorscale": SCALE, "cmin": 0, "cmax": 1, "size": 9, "symbol": shape,
                    "line": {"width": 1.5, "color": colour}, "showscale": method == methods[-1], "colorbar": {"title": {"text": "lambda"}, "len": 0.6, "thickness": 12, "y": 0, "yanchor": "bottom"}},
            hovertemplate=f"%{{text}}<br>{x} %{{x:.4f}}<br>{y} %{{y:.4f}}<extra>{method}</extra>", showlegend=False, **group,
        )  # fmt: skip
    theirs = tables["paper_checkpoints"]
    for method, part in theirs[(theirs["x_name"] == x) & (theirs["y_name"] == y)].groupby("method"):
        symbol = "square-open" if method == "unmixed" else "circle-open"
        figure.add_scatter(x=part["x"], y=part["y"], mode="markers", name=f"{method!s}, the paper", marker={"color": COLOURS[6], "symbol": symbol, "size": 6}, hovertemplate=f"the paper, {method!s}<br>{x} %{{x:.4f}}<br>{y} %{{y:.4f}}<extra></extra>")  # fmt: skip
    return figure


def tradeoff_figure(tables: Tables, losses: Sequence[str], choices: int) -> go.Figure:
    """The first two losses of every level and choice, above their least: the larger, the more surely on the frontier."""
    table, (y, x) = tables["tradeoffs"], losses[:2]
    figure = axes(f"{NAMES[x]} above its least, {NATS}", f"{NAMES[y]} above its least, {NATS}")
    for kept, name, shape in ((False, "probably beaten", "circle-open"), (True, "may lie on the frontier", "circle")):
        mine = table[table["kept"] == kept].sort_values(x)
        figure.add_scatter(
            x=mine[x], y=mine[y], mode="markers", name=name,
            text=[f"lambda {row['lambda']:g}" + f", choice {row['choice']}" * (choices > 1) + f"<br>on the frontier with probability {row['probability']:.2f}" for row in mine.to_dict("records")],
            marker={"color": mine["lambda"], "colorscale": SCALE, "cmin": 0, "cmax": 1, "size": 7 + 10 * mine["probability"], "symbol": shape, "showscale": kept, "colorbar": {"title": {"text": "lambda"}, "len": 0.6, "thickness": 12, "y": 0, "yanchor": "bottom"}},
            hovertemplate=f"%{{text}}<br>{x} +%{{x:.4f}}<br>{y} +%{{y:.4f}}<extra></extra>",
        )  # fmt: skip
    return figure


def gap_figure(tables: Tables) -> go.Figure:
    """How much more mixed recipes keep than unmixed ones, against the fine-tuning loss at which they are compared."""
    figure = axes(f"{NAMES['L_ft']}, {NATS}", f"kept more by mixed, {NATS}", height=340)
    figure.add_hline(y=0, line={"color": COLOURS[6], "width": 1})
    for (name, part), colour in zip(
        tables["gaps"].groupby("trials", sort=False), (COLOURS[0], COLOURS[4]), strict=False
    ):
        if part["lo"].notna().any():
            _band(figure, part["x"], part, colour, showlegend=False, legendgroup=name)
        figure.add_scatter(x=part["x"], y=part["gap"], mode="lines", line={"color": colour}, name=name, legendgroup=name, hovertemplate=f"{name}<br>L_ft %{{x:.4f}}<br>gap %{{y:.4f}}<extra></extra>")  # fmt: skip
    return figure


def search_figure(tables: Tables, asked: float) -> go.Figure:
    """The interval of lambda* and its width, or to how many nats the frontier that is asked for is known, and hypervolume, as
    rounds went by, against tokens trained."""
    of_frontier = tables["search"]["known"].notna().any()
    rounds = tables["search"].dropna(subset=["known" if of_frontier else "lo"])
    last, heights = (2, [0.5, 0.5]) if of_frontier else (3, [0.5, 0.25, 0.25])
    figure = make_subplots(rows=last, cols=1, shared_xaxes=True, vertical_spacing=0.07, row_heights=heights)
    figure.update_layout({**LAYOUT, "height": 180 * last, "showlegend": False})
    figure.update_xaxes(AXIS)
    figure.update_yaxes(AXIS)
    text = [f"round {row['round']}: {row['chosen']}" for row in rounds.to_dict("records")]
    if not of_frontier:
        spread = {"type": "data", "symmetric": False, "array": rounds["hi"] - rounds["lambda"], "arrayminus": rounds["lambda"] - rounds["lo"], "thickness": 2, "width": 5}  # fmt: skip
        figure.add_scatter(x=rounds["total_tokens"], y=rounds["lambda"], error_y=spread, mode="lines+markers", line={"color": COLOURS[2], "width": 1, "dash": "dot"}, marker={"size": 8}, text=text, hovertemplate="%{text}<br>lambda* %{y:.3f}<extra></extra>", name="lambda*", row=1, col=1)  # fmt: skip
        figure.update_yaxes(title_text="lambda*, 95% interval", range=[-0.04, 1.04], row=1, col=1)
    name, reached = ("known to, nats", rounds["known"]) if of_frontier else ("width", rounds["hi"] - rounds["lo"])
    figure.add_scatter(x=rounds["total_tokens"], y=reached, mode="lines+markers", line={"color": COLOURS[0]}, text=text, hovertemplate=f"%{{text}}<br>{name} %{{y:.3f}}<extra></extra>", name=name, row=last - 1, col=1)  # fmt: skip
    figure.add_hline(y=asked, line={"color": COLOURS[1], "dash": "dash"}, row=last - 1, col=1, annotation={"text": "asked for", "font": {"color": COLOURS[1]}})  # fmt: skip
    figure.update_yaxes(title_text=name, rangemode="tozero", row=last - 1, col=1)
    figure.add_scatter(x=rounds["total_tokens"], y=rounds["hypervolume"], mode="lines+markers", line={"color": COLOURS[2]}, text=text, hovertemplate="%{text}<br>hypervolume %{y:.4f} nats\u00b2<extra></extra>", name="hypervolume", row=last, col=1)  # fmt: skip
    figure.update_yaxes(title_text="hypervolume", rangemode="tozero", row=last, col=1)
    figure.update_xaxes(title_text="tokens trained", row=last, col=1)
    return figure


def noise_figure(tables: Tables) -> go.Figure:
    """The sd of one run around its seed's curve, against lambda, by question."""
    figure = axes("lambda", f"sd of one run, {NATS}", height=340)
    for question, colour in question_colours(tables).items():
        curve, name = tables["curves"][tables["curves"]["question"] == question], short(question)
        figure.add_scatter(x=curve["lambda"], y=curve["noise_sd"], mode="lines", line={"color": colour}, name=name, hovertemplate=f"{name}<br>lambda %{{x:.3f}}<br>sd %{{y:.4f}}<extra></extra>")  # fmt: skip
    figure.update_yaxes(rangemode="tozero")
    figure.update_xaxes(range=[-0.04, 1.04])
    return figure


def tree_figure(tables: Tables, choices: int) -> go.Figure:
    """The stage tree, areas by tokens: what hangs under one box shares its training."""
    stages = tables["stages"].head(MOST_STAGES).sort_values(["lambda", "seed", "choice"], kind="stable")
    labels, names = ["sweep"], ["sweep"]
    for row in stages.to_dict("records"):
        choice = f", choice {row['choice']}" if choices > 1 else ""
        name = f"fine-tuning at {row['learning_rate']:g}" if row["kind"] == "finetune" else row["kind"]
        names.append(
            f"{name}<br>lambda {row['lambda']:g}, seed {row['seed']}{choice}<br>{row['key']}, {row['state']}<br>{row['tokens']:,} tokens"
        )
        labels.append(f"{row['lambda']:g}<br>s{row['seed']}" if row["kind"] == "pretrain" else " ")
    colours = [KIND_COLOURS[kind] if state == "published" else "#c8c8c8" for kind, state in zip(stages["kind"], stages["state"], strict=True)]  # fmt: skip
    figure = go.Figure(
        go.Icicle(
            ids=["sweep", *stages["key"]], parents=["", *stages["parent"].fillna("sweep")], labels=labels, text=names, textinfo="label", textfont={"color": INK},
            values=[0, *stages["tokens"]], branchvalues="remainder", sort=False,
            marker={"colors": ["#c8ccd0", *colours], "line": {"width": 0.5, "color": PAPER}},
            hovertemplate="%{text}<br>%{value:,} with its children<extra></extra>",
            tiling={"orientation": "v"},
        ),
        layout={**LAYOUT, "margin": {"l": 4, "r": 4, "t": 8, "b": 8}, "height": 340, "uniformtext": {"minsize": 8, "mode": "hide"}},
    )  # fmt: skip
    figure.update_layout(xaxis=None, yaxis=None)
    return figure


def draw(tables: Tables, choices: int, asked: float, losses: Sequence[str] = ()) -> dict[str, go.Figure]:
    """Every figure that the tables have data for, by its name on the page.

    asked: the interval's width that the search was to reach or, of a frontier, to how many nats it was to be known.
    losses: of the frontier that is asked for; then no question is the first.
    """
    questions = list(dict.fromkeys(tables["observations"]["question"]))
    drawn: dict[str, go.Figure] = {}
    if losses and len(tables["tradeoffs"]):
        drawn["tradeoff"] = tradeoff_figure(tables, losses, choices)
    if not losses and len(tables["optima"]) and questions[0] in set(tables["optima"]["question"]):
        drawn["optimum"] = question_figure(tables, questions[0], large=True)
    if questions:
        drawn["losses"] = losses_figure(tables)
        answered = [name for name in questions[0 if losses else 1 :] if name in set(tables["optima"]["question"])]
        drawn |= {f"question-{number}": question_figure(tables, name) for number, name in enumerate(answered, 1)}
    if len(tables["frontiers"]):
        drawn["frontier"] = frontier_figure(tables, "L_ft", "L_ret", choices)
        drawn["frontier-pre"] = frontier_figure(tables, "L_ret", "L_pre", choices)
    if len(tables["gaps"]):
        drawn["gap"] = gap_figure(tables)
    if tables["search"][["lo", "known"]].notna().any(axis=1).sum() > 1:
        drawn["search"] = search_figure(tables, asked)
    if len(tables["curves"]):
        drawn["noise"] = noise_figure(tables)
    if len(tables["stages"]):
        drawn["tree"] = tree_figure(tables, choices)
    return drawn
