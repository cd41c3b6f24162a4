"""What `ee-ray theory` prints, and its page: the theorems as checked, and where the compute-matched optimum lies."""

import json
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from ee_ray.report.figures import COLOURS, LAYOUT
from ee_ray.report.html import figure, figured
from ee_ray.theory.allocation import ANSWERS
from ee_ray.theory.findings import POINTS

KINDS = {"invariant": (COLOURS[6], "dot"), "inconsistent": (COLOURS[1], "solid"), "specialized": (COLOURS[0], "solid")}
OPTIMA = dict(zip(ANSWERS, (COLOURS[1], COLOURS[2], COLOURS[0], "#bbbbbb"), strict=True))
# auto-fill, not auto-fit: a figure is drawn while the next one of its pair is not there yet, and must find its own width.
MORE_STYLE = """
.pair { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)); gap: 0 1rem; }
.pair > div { min-width: 0; overflow: hidden; } .pair h3 { margin: .5rem 0 0; } td.no { color: var(--bad); font-weight: 600; }
"""
NARROW = {**LAYOUT, "margin": {"l": 55, "r": 10, "t": 50, "b": 50}, "height": 380, "font": {"size": 12}}


def _interior(row: dict[str, Any], key: str = "retained") -> tuple[int, int]:
    return row[key].get(ANSWERS[1], 0), sum(row[key].values())


def verdict(found: dict[str, Any]) -> str:
    """The answer in three sentences."""
    claims = {claim["name"]: claim for claim in found["claims"]}
    first, tenth = found["allocation"][0], next(row for row in found["allocation"] if row["rate"] == 0.1)
    short, long = claims["short"], claims["equal_loss"]
    return (
        f"Theorems 5.1 and 5.2 hold. 5.3 holds from equal immediate loss if fine-tuning is long ({long['held']} of {long['instances']} worlds), "
        f"not if it is brief ({short['held']} of {short['instances']}). Matched compute alone gives no interior optimum: at equal learning rates "
        f"{first['retained'].get(ANSWERS[0], 0)} of {first['budgets']} lie at lambda = 0. Where post-training has a tenth of the rate, "
        f"{_interior(tenth)[0]} of {tenth['budgets']} are interior."
    )


def _span(quantiles: list[float] | None) -> str:
    return "-" if quantiles is None else f"{quantiles[1]:.2f} [{quantiles[0]:.2f}, {quantiles[2]:.2f}]"


def theory_text(found: dict[str, Any]) -> str:
    """Two tables of at most 80 columns."""
    lines = [f"{'':<5}{'claim':<50}{'cases':>6}{'held':>6}{'worst':>11}"]
    for claim in found["claims"]:
        lines.append(f"{claim['theorem']:<5}{claim['says']:<50}{claim['instances']:>6}{claim['held']:>6}{claim['worst']:>11.2g}")  # fmt: skip
    lines += [
        "",
        "compute-matched: least L_ret over lambda, by learning rate of post-training",
        f"{'rate':<6}{'at 0':>6}{'interior':>10}{'at 1':>6}{'level':>7}{'no overshoot':>15}   lambda* where interior",
    ]
    for row in found["allocation"]:
        counts, plain = row["retained"], "{} of {}".format(*_interior(row, "retained_without_overshoot"))
        lines.append(
            f"{row['rate']:<6g}{counts.get(ANSWERS[0], 0):>6}{counts.get(ANSWERS[1], 0):>10}{counts.get(ANSWERS[2], 0):>6}"
            f"{counts.get(ANSWERS[3], 0):>7}{plain:>15}   {_span(row['lambda_star'])}"
        )
    return "\n".join(lines)


def _figure(x: str, y: str) -> go.Figure:
    figure = go.Figure(layout=NARROW)
    figure.update_xaxes(title=x)
    figure.update_yaxes(title=y)
    return figure


def stages_figure(example: dict[str, Any], recipe: str) -> go.Figure:
    """Singular values through the three stages, each drawn equally wide."""
    figure, shown = _figure("", "singular value of theta"), set()
    steps = [stage + point / (POINTS - 1) for stage in range(3) for point in range(POINTS)]
    for kind, value, values in zip(example["kinds"], example["values"], example[recipe], strict=True):
        colour, dash = KINDS[kind]
        figure.add_scatter(
            x=steps, y=values, mode="lines", line={"color": colour, "dash": dash}, name=kind, legendgroup=kind,
            showlegend=kind not in shown, hovertemplate=f"{kind}, {value:g} in D_post<br>now %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
        shown.add(kind)
    for border in (1, 2):
        figure.add_vline(x=border, line={"color": "#999", "width": 1})
    names = ["pretraining", "post-training", "fine-tuning"]
    figure.update_xaxes(tickvals=[0.5, 1.5, 2.5], ticktext=names, range=[0, 3], showgrid=False)
    figure.update_yaxes(range=[-0.1, 3.7])
    return figure


def allocation_figure(example: dict[str, Any], matched: bool) -> go.Figure:
    """Retained loss against lambda at each rate; the chart is cut where lambda = 1 would dwarf the rest."""
    figure = _figure("lambda: fraction of D_post mixed into pretraining", "retained loss (specialized features = 1)")
    for number, curve in enumerate(c for c in example["curves"] if c["matched"] == matched):
        figure.add_scatter(
            x=example["levels"], y=curve["retained"], mode="lines", line={"color": COLOURS[number]}, name=f"rate {curve['rate']:g}",
            hovertemplate=f"rate {curve['rate']:g}, lambda %{{x}}<br>%{{y:.3f}}<extra></extra>",
        )  # fmt: skip
    figure.update_yaxes(range=[4.4, 6.4])
    return figure


def optima_figure(rows: list[dict[str, Any]]) -> go.Figure:
    """Where the compute-matched optimum lies, in percent of random budgets, by rate."""
    figure = _figure("learning rate of post-training over pretraining's", "% of random budgets")
    rates = [f"{row['rate']:g}" for row in rows]
    for name, colour in OPTIMA.items():
        share = [100 * row["retained"].get(name, 0) / row["budgets"] for row in rows]
        figure.add_bar(x=rates, y=share, name=name, marker={"color": colour}, hovertemplate=f"{name}: %{{y:.0f}}%<extra></extra>")  # fmt: skip
    figure.update_layout(barmode="stack", bargap=0.35)
    figure.update_xaxes(type="category")
    return figure


def gaps_figure(gaps: dict[str, Any]) -> go.Figure:
    """How much more the unmixed model forgets, against the length of fine-tuning."""
    figure = _figure("length of fine-tuning, in T / c_mis", "forgetting, unmixed less mixed")
    x = gaps["length"]
    figure.add_scatter(x=x + x[::-1], y=gaps["high"] + gaps["low"][::-1], fill="toself", fillcolor="rgba(0,114,178,0.15)", line_width=0, hoverinfo="skip", name="80% of worlds")  # fmt: skip
    figure.add_scatter(
        x=x, y=gaps["median"], mode="lines", line={"color": COLOURS[0]}, name="median", customdata=gaps["held"],
        hovertemplate="length %{x:.3f}<br>median %{y:.2f}<br>held in %{customdata:.0%}<extra></extra>",
    )  # fmt: skip
    figure.add_hline(y=0, line={"color": "#999", "width": 1})
    figure.update_xaxes(type="log", tickvals=[0.001, 0.01, 0.1, 1], ticktext=["0.001", "0.01", "0.1", "1"])
    return figure


def _place(title: str, name: str) -> str:
    return f"<div><h3>{escape(title)}</h3>{figure(name, title)}</div>"


def _figures(found: dict[str, Any]) -> dict[str, go.Figure]:
    example = found["example"]
    return {
        "unmixed": stages_figure(example, "unmixed"),
        "mixed": stages_figure(example, "mixed"),
        "gaps": gaps_figure(found["gaps"]),
        "optima": optima_figure(found["allocation"]),
        "varying": allocation_figure(example, False),
        "matched": allocation_figure(example, True),
    }


def _table(head: list[str], rows: list[list[str]], numbers: int) -> str:
    """A table whose last `numbers` columns are set as numbers; a cell that begins with ! is marked as failing."""
    body = ""
    for row in rows:
        cells = []
        for place, cell in enumerate(row):
            kind = " ".join(["n"] * (place >= len(row) - numbers) + ["no"] * cell.startswith("!"))
            cells.append(f'<td class="{kind}">{escape(cell.removeprefix("!"))}</td>')
        body += f"<tr>{''.join(cells)}</tr>"
    marks = ["n" if place >= len(head) - numbers else "" for place in range(len(head))]
    header = "".join(f'<th class="{mark}">{escape(name)}</th>' for mark, name in zip(marks, head, strict=True))
    return f'<div class="wide"><table><tr>{header}</tr>{body}</table></div>'


def _claims(found: dict[str, Any]) -> str:
    rows = [
        [c["theorem"], c["says"], f"{c['instances']:,}", ("!" if c["held"] < c["instances"] else "") + f"{c['held']:,}", f"{c['worst']:.2g}"]
        for c in found["claims"]
    ]  # fmt: skip
    return _table(["", "claim", "cases", "held", "worst margin"], rows, 3)


def _optima(found: dict[str, Any]) -> str:
    rows = []
    for row in found["allocation"]:
        counts = [str(row["retained"].get(name, 0)) for name in ANSWERS]
        plain = "{} of {}".format(*_interior(row, "retained_without_overshoot"))
        rows.append([f"{row['rate']:g}", *counts, plain, _span(row["lambda_star"]), _span(row["valley_from"]), _span(row["valley_to"])])  # fmt: skip
    head = ["rate", *ANSWERS, "interior without overshoot", "lambda* where interior", "valley from", "to"]
    return _table(head, rows, 8)


def _against_the_paper(rows: list[dict[str, Any]]) -> str:
    interior = sum(_interior(row, "retained_without_overshoot")[0] for row in rows)
    alike = sum(row["the_same_without_overshoot"] for row in rows)
    return (
        "In the paper's figure 3b the immediate loss rises with lambda while the retained loss has its minimum inside. "
        f"Of the {interior} interior optima without overshoot {alike} are like that: elsewhere mixing lowers the immediate loss too."
    )


def _body(found: dict[str, Any]) -> list[str]:
    share = f"Mixed: {found['example']['alpha']:.0%} of pretraining data are D_post"
    return [
        "<h1>The two-layer linear network: what the theory says about mixing</h1>",
        f'<div class="verdict" id="verdict">{escape(verdict(found))}</div>',
        "<p class='note'>The model of section 5 of arXiv 2605.12705, solved exactly; losses of a whole population, no noise of sampling. docs/theory.md has the formulas and the readings taken.</p>",
        "<h2>Features through the three stages</h2>",
        f"<div class='pair'>{_place('Unmixed', 'unmixed')}{_place(share, 'mixed')}</div>",
        "<p class='note'>Features are learned in order of singular value. Mixing teaches the larger specialized feature (0.45) and not the smaller one (0.2), whose effective value stays below the threshold; fine-tuning moves the inconsistent features and leaves the specialized ones.</p>",
        "<h2>The theorems, checked</h2>",
        _claims(found),
        "<p class='note'>A margin of 0 or more is a claim that holds. Margins have no unit: fractions of a feature's value (order, 5.1, 5.2), of c_mis (closed form), or of what the specialized features are worth, half the sum of beta squared (5.3). Cases are random worlds in which the premise holds.</p>",
        f"<div class='pair'>{_place('5.3 needs fine-tuning that is long enough', 'gaps')}{_place('Where the compute-matched optimum lies', 'optima')}</div>",
        "<h2>Retained loss against lambda</h2>",
        f"<div class='pair'>{_place('Varying: post-training always on all of D_post', 'varying')}{_place('Compute-matched: on what is left of it', 'matched')}</div>",
        "<p class='note'>One world, chosen to be legible: each step is a specialized feature that mixing begins to teach. Rate: learning rate of post-training over pretraining's. Cut at 6.4; compute-matched curves end at 20, where nothing is left for post-training.</p>",
        "<h2>The compute-matched optimum over random budgets</h2>",
        _optima(found),
        "<p class='note'>Medians with the middle 80%. An optimum is interior if both ends lose by more than 1% of what the specialized features are worth; the valley is what loses less. Overshoot: fine-tuning carries an inconsistent feature past its D_post value, so that too little post-training is retained better.</p>",
        f"<p>{escape(_against_the_paper(found['allocation']))}</p>",
    ]  # fmt: skip


def write_theory(found: dict[str, Any], folder: Path) -> Path:
    """Write `index.html`, which opens without a network, and `theory.json` into `folder`; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "theory.json").write_text(json.dumps(found, indent=1, allow_nan=False))
    body = f"<style>{MORE_STYLE}</style>{''.join(_body(found))}"
    (folder / "index.html").write_text(figured("theory - ee_ray", body, _figures(found)))
    return folder / "index.html"
