"""One HTML file that opens without a network: the verdict first, then the figures, then what was run."""

import json
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from ee_ray.ledger import Ledger
from ee_ray.objective import describe, observed
from ee_ray.propose import estimate
from ee_ray.report import figures
from ee_ray.report.summary import LOSSES, seed_means, summarize, verdict_sentence
from ee_ray.spec.data import ROLES
from ee_ray.sweep import Sweep

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; background: #fff; }
h1 { font-size: 1.3rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2.5rem; }
.verdict { font-size: 1.35rem; line-height: 1.4; border-left: 5px solid #009E73; padding-left: 1rem; margin: 1rem 0; }
.facts, p.note { color: #555; font-size: .92rem; }
table { border-collapse: collapse; font-size: .88rem; } td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; } .wide { overflow-x: auto; }
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; font-size: .82rem; }
"""


def _div(figure: go.Figure, name: str) -> str:
    html: str = figure.to_html(
        full_html=False, include_plotlyjs=False, div_id=name, config={"responsive": True, "displaylogo": False}
    )
    return f'<div class="wide">{html}</div>'


def _table(header: list[str], rows: list[list[Any]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = ""
    for row in rows:
        cells = (
            f'<td class="n">{cell:.4f}</td>' if isinstance(cell, float) else f"<td>{escape(str(cell))}</td>"
            for cell in row
        )
        body += f"<tr>{''.join(cells)}</tr>"
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _between_seeds(optimum: dict[str, Any]) -> str:
    sd = optimum["seed_sd"]
    return "unknown from one seed" if sd is None else f"{sd:.4f}" if sd else "none that shows above that"


def _facts(summary: dict[str, Any]) -> str:
    tokens, stages, optimum = summary["tokens"], summary["stages"], summary["optimum"]
    parts = [f"Search: {summary['stop_reason']}."]
    if optimum:
        parts.append(
            f"P(interior) = {optimum['p_interior']:.3f}; sd of one run {optimum['noise_sd']:.4f} nats, between seeds {_between_seeds(optimum)}."
        )
    if tokens["saved_factor"]:
        parts.append(
            f"{tokens['trained']:,} tokens trained in {stages['trained'] + stages['reused']} stages; one path per trial would have taken {tokens['trialwise']:,} ({tokens['saved_factor']:g} times as many)."
        )
    if stages["failed"]:
        parts.append(f"{stages['failed']} stages failed: see below.")
    return " ".join(parts)


def _answer(sweep: Sweep, ledger: Ledger, summary: dict[str, Any]) -> list[str]:
    known = {point: ledger.results[point] for point in ledger.decision.visited if point in ledger.results}
    optimum, goal = estimate(sweep.spec, known), sweep.spec.objective
    if optimum is None:
        return []
    return [
        f"<h2>Where it is least: {escape(describe(goal))}</h2>",
        _div(figures.optimum_figure(observed(goal, ledger.leading_rows), optimum, describe(goal)), "optimum"),
        "<p class='note'>Shaded: the 95% interval of lambda*. The curve is a Gaussian process with paired seed effects.</p>",
        *_other_answers(summary),
    ]


def _losses(ledger: Ledger, summary: dict[str, Any]) -> list[str]:
    if ledger.rows.empty:
        return []
    means = seed_means(ledger.rows)
    return [
        *_choices(summary),
        "<h2>Immediate and retained loss at every fine-tuning rate</h2>",
        _div(figures.losses_figure(means[means["choice"] == ledger.choice]), "losses"),
        "<h2>Frontier: what fine-tuning gains against what is kept</h2>",
        _div(figures.frontier_figure(means), "frontier"),
        f"<p>{escape(_compared(summary['comparison']))}</p>",
        "<p class='note'>Points are means over seeds, each seed's offset taken out; lower left is better. Dotted: the lower-left hull, as the paper draws.</p>",
    ]


def _choices(summary: dict[str, Any]) -> list[str]:
    """What else was chosen, and which of it leads."""
    choices = summary["choices"]
    if len(choices) == 1:
        return []
    names = [name for name in choices[0] if name != "leads"]
    rows = [[number, *(json.dumps(choice[name]) for name in names), "leads: its curve goes lowest" if choice["leads"] else ""] for number, choice in enumerate(choices)]  # fmt: skip
    return ["<h2>What else was chosen</h2>", _table(["choice", *names, ""], rows)]


def _other_answers(summary: dict[str, Any]) -> list[str]:
    """The best lambda by the other losses of the same runs."""
    rows = [
        [o["name"], f"{o['lambda']:.2f}", f"{o['ci95'][0]:.2f} to {o['ci95'][1]:.2f}", o["verdict"].replace("_", " at "),
         _gain(o["gain_over_0"]), _gain(o["gain_over_1"]), f"{o['noise_sd']:.4f}", o["recipes"]]
        for o in summary["others"]
    ]  # fmt: skip
    head = ["loss", "lambda*", "95% interval", "verdict", "below all-post-training", "below all-pretraining", "sd of a run", "recipes"]  # fmt: skip
    return ["<h2>The same runs, asked otherwise</h2>", _table(head, rows)] if rows else []


def _compared(found: dict[str, Any] | None) -> str:
    """Mixed against unmixed at matched fine-tuning loss, in words."""
    if not found or not found["gap"]:
        return "Mixed and unmixed recipes share no fine-tuning loss at which to compare them."
    equal = found["gap_at_equal_trials"]
    return (
        f"At the same fine-tuning loss, mixed recipes keep {_within(found['gap'])} nats more than unmixed ones: "
        f"{found['trials']['mixed']} trials against {found['trials']['unmixed']}, {found['seeds']} seeds. The best of more trials is better by chance; "
        f"with as many of each it is {_within(equal) if equal else 'not known'}."
    )


def _within(gap: dict[str, Any]) -> str:
    low, high = gap["ci95"]
    return f"{gap['value']:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")


def _gain(gain: dict[str, Any]) -> str:
    return f"{gain['value']:.3f} [{gain['ci95'][0]:.3f}, {gain['ci95'][1]:.3f}]"


def _run(sweep: Sweep, ledger: Ledger, summary: dict[str, Any]) -> list[str]:
    rows = [
        [f"{row['lambda']:g}", row["seed"], row["choice"], f"{row['finetune_lr']:g}", *(row[loss] for loss in LOSSES)]
        for row in summary["trials"]
    ]
    epochs = [[role, sweep.source(role).source, sweep.data[role], summary["epochs"][role]] for role in ROLES]
    failed = [
        [key, e.get("kind", ""), e["error"], "\n".join(e.get("log", [])[-3:])] for key, e in ledger.failures.items()
    ]
    parts = [
        "<h2>The stage tree: tokens trained, and what shares them</h2>",
        _div(figures.tree_figure(ledger.trials, sweep.spec.search.ladder), "tree"),
        "<p class='note'>Width is tokens. Blue: pretraining; orange: post-training; pink: fine-tuning. Click to look closer.</p>",
        f"<details><summary>Every recipe: {len(rows)}</summary>",
        _table(["lambda", "seed", "choice", "fine-tuning rate", *LOSSES], rows),
        "</details>",
        "<h2>Data</h2>",
        _table(["role", "source", "fingerprint", "epochs of the pool"], epochs),
    ]
    if failed:
        parts += ["<h2>Failures</h2>", _table(["stage", "kind", "error", "last lines"], failed)]
    provenance = {name: value for name, value in summary["provenance"].items() if name != "data"}
    parts += ["<h2>What was run</h2>", f"<pre>{escape(json.dumps(provenance, indent=1))}</pre>"]
    return parts


def write_report(sweep: Sweep, ledger: Ledger, folder: Path) -> dict[str, Any]:
    """Write `index.html` and `summary.json` into `folder` from the store alone; returns the summary."""
    summary = summarize(sweep, ledger)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1, allow_nan=False))
    body = [
        f"<h1>{escape(sweep.spec.name)}: how to split D_post between pretraining and post-training</h1>",
        f'<div class="verdict" id="verdict">{escape(verdict_sentence(summary))}</div>',
        f'<p class="facts">{escape(_facts(summary))}</p>',
        *_answer(sweep, ledger, summary),
        *_losses(ledger, summary),
        *_run(sweep, ledger, summary),
    ]
    title = f"<title>{escape(sweep.spec.name)} - ee_ray</title>"
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">{title}<style>{STYLE}</style>'
    page = f'<!doctype html><html lang="en"><head>{head}<script>{get_plotlyjs()}</script></head><body>{"".join(body)}</body></html>'
    (folder / "index.html").write_text(page)
    return summary
