"""Plotly figures, drawn from data that other modules computed."""

import pandas as pd
import plotly.graph_objects as go

from ee_ray.frontier import frontiers
from ee_ray.optimum import Optimum
from ee_ray.plan import Trial, distinct

# Okabe and Ito's palette: told apart by colour-blind eyes.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
LAYOUT = {
    "template": "plotly_white",
    "margin": {"l": 70, "r": 40, "t": 40, "b": 60},
    "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
    # Beside the legend and above a colour bar, not over them.
    "modebar": {"orientation": "v", "remove": ["lasso2d", "select2d", "zoomIn2d", "zoomOut2d", "autoScale2d"]},
    "height": 440,
}  # fmt: skip
KIND_COLOURS = {"pretrain": COLOURS[5], "posttrain": COLOURS[4], "finetune": COLOURS[3]}
NATS = "nats per token"


def _figure(x: str, y: str) -> go.Figure:
    figure = go.Figure(layout=LAYOUT)
    figure.update_xaxes(title=x)
    figure.update_yaxes(title=y)
    return figure


def optimum_figure(table: pd.DataFrame, optimum: Optimum, loss: str) -> go.Figure:
    """The objective against lambda: runs, fitted curve with band, lambda* with interval. table: lambda, seed, loss."""
    figure = _figure("lambda: fraction of D_post mixed into pretraining", f"{loss.split(',')[0]}, {NATS}")
    curve, low, high = optimum.curve, *optimum.ci95
    figure.add_vrect(x0=low, x1=high, fillcolor=COLOURS[2], opacity=0.12, line_width=0)
    figure.add_vline(x=optimum.lambda_star, line={"color": COLOURS[2], "dash": "dash"})
    figure.add_annotation(
        x=optimum.lambda_star, y=1, yref="paper", yanchor="top", xanchor="left", showarrow=False,
        text=f" lambda* = {optimum.lambda_star:.3g}", font={"color": COLOURS[2]},
    )  # fmt: skip
    band = pd.concat([curve[["lambda", "hi"]].set_axis(["x", "y"], axis=1), curve[["lambda", "lo"]].iloc[::-1].set_axis(["x", "y"], axis=1)])  # fmt: skip
    figure.add_scatter(x=band["x"], y=band["y"], fill="toself", fillcolor="rgba(0,114,178,0.15)", line_width=0, hoverinfo="skip", name="95% band")  # fmt: skip
    figure.add_scatter(x=curve["lambda"], y=curve["mean"], mode="lines", line={"color": COLOURS[0]}, name="fitted mean over seeds")  # fmt: skip
    for number, (seed, runs) in enumerate(table.groupby("seed")):
        runs = runs.sort_values("lambda")
        figure.add_scatter(
            x=runs["lambda"], y=runs["loss"], mode="markers", name=f"seed {seed}",
            marker={"size": 9, "symbol": number % 20, "color": COLOURS[1], "line": {"width": 1, "color": "white"}},
            hovertemplate="lambda %{x}<br>loss %{y:.4f}",
        )  # fmt: skip
    return figure


def losses_figure(means: pd.DataFrame) -> go.Figure:
    """L_im, and L_ret at each fine-tuning rate, against lambda: means over seeds, bars from lowest to highest."""
    figure = _figure("lambda", f"held-out loss on D_post, {NATS}")
    rates = sorted(means["finetune_lr"].unique())
    curves = [("L_im, before fine-tuning", "L_im", means[means["finetune_lr"] == rates[0]])]
    curves += [(f"L_ret, fine-tuned at {rate:g}", "L_ret", means[means["finetune_lr"] == rate]) for rate in rates]
    for number, (name, loss, points) in enumerate(curves):
        points = points.sort_values("lambda")
        spread = {
            "type": "data", "symmetric": False, "thickness": 1,
            "array": points[f"{loss}_max"] - points[loss], "arrayminus": points[loss] - points[f"{loss}_min"],
        }  # fmt: skip
        dash = "dot" if loss == "L_im" else "solid"
        line = {"color": COLOURS[number % len(COLOURS)], "dash": dash}
        figure.add_scatter(x=points["lambda"], y=points[loss], error_y=spread, mode="lines+markers", line=line, name=name)  # fmt: skip
    return figure


def frontier_figure(means: pd.DataFrame, x: str = "L_ft", y: str = "L_ret") -> go.Figure:
    """Every recipe (mean over seeds) and the Pareto sets of unmixed and mixed recipes; dotted: the lower-left hull."""
    names = {"L_ft": "fine-tuning loss L_ft", "L_ret": "retained loss L_ret", "L_pre": "pretraining loss L_pre"}
    figure = _figure(f"{names[x]}, {NATS}", f"{names[y]}, {NATS}")
    figure.add_scatter(
        x=means[x], y=means[y], mode="markers", name="recipes",
        marker={"color": means["lambda"], "colorscale": "Viridis", "cmin": 0, "cmax": 1, "size": 9, "colorbar": {"title": "lambda", "len": 0.6, "y": 0, "yanchor": "bottom"}},
        customdata=means[["lambda", "finetune_lr", "seeds", "choice"]],
        hovertemplate="lambda %{customdata[0]}<br>fine-tuning rate %{customdata[1]:g}<br>choice %{customdata[3]}<br>" + f"{x} %{{x:.4f}}<br>{y} %{{y:.4f}}<br>%{{customdata[2]}} seeds",
    )  # fmt: skip
    for name, chosen, colour in (("unmixed (lambda = 0)", means["lambda"] == 0, COLOURS[1]), ("mixed", means["lambda"] > 0, COLOURS[0])):  # fmt: skip
        if not chosen.any():
            continue
        marked = frontiers(means[chosen], x, y).sort_values(x)
        pareto, hull = marked[marked["on_pareto"]], marked[marked["on_hull"]]
        figure.add_scatter(x=pareto[x], y=pareto[y], mode="lines", line={"color": colour}, name=f"Pareto set, {name}")
        figure.add_scatter(x=hull[x], y=hull[y], mode="lines", line={"color": colour, "dash": "dot"}, name=f"hull, {name}", showlegend=False)  # fmt: skip
    return figure


def tree_figure(trials: list[Trial], ladder: int) -> go.Figure:
    """The stage tree, areas by tokens: what hangs under one box shares its training."""
    ids, parents, labels, tokens, colours = ["sweep"], [""], ["sweep"], [0], ["#eeeeee"]
    known: set[str] = set()
    several = len({trial.point.choice for trial in trials}) > 1
    for trial in trials:
        place = f"lambda {trial.point.level / ladder:g}, seed {trial.point.seed}"
        place += f", choice {trial.point.choice}" if several else ""
        for key, stage in distinct([trial]).items():
            if key in known:
                continue
            known.add(key)
            ids.append(key)
            parents.append(stage.parent or "sweep")
            name = f"fine-tune {stage.identity.learning_rate:g}" if stage.kind == "finetune" else stage.kind
            labels.append(f"{name}<br>{place}" if stage.kind == "pretrain" else name)
            tokens.append(stage.identity.tokens)
            colours.append(KIND_COLOURS[stage.kind])
    figure = go.Figure(
        go.Icicle(
            ids=ids, parents=parents, labels=labels, values=tokens, branchvalues="remainder",
            marker={"colors": colours, "line": {"width": 1, "color": "white"}},
            hovertemplate="%{label}<br>%{id}<br>%{value:,} tokens with its children<extra></extra>",
            tiling={"orientation": "v"},
        ),
        layout={**LAYOUT, "uniformtext": {"minsize": 9, "mode": "hide"}},
    )  # fmt: skip
    return figure
