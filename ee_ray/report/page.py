"""One HTML file that opens without a network: the verdict first, then the figures, then what was run."""

import json
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from ee_ray.ledger import COLUMNS, Ledger
from ee_ray.report import sections, words
from ee_ray.report.answers import answers
from ee_ray.report.figures import KIND_COLOURS, LAYOUT, draw
from ee_ray.report.html import asset, document, drawn, packed, plain_json, plotly, rows_of
from ee_ray.report.samples import samples_html
from ee_ray.report.summary import contrast, summarize, verdict_sentence
from ee_ray.report.tables import Tables, compute, write_tables
from ee_ray.sweep import Sweep

RECIPE_COLUMNS = ["lambda", "choice", "finetune_lr", "L_im", "L_ret", "L_ft", "L_pre", "seeds"]
MOST_POINTS = 40_000  # of training curves on the page, in all; the whole lies in data/training.*
TITLES = {"pretrain": "Pretraining", "posttrain": "Post-training", "finetune": "Fine-tuning"}


@dataclass(frozen=True)
class Report:
    """A sweep's report before it is written: summary, tables, figures and the page."""

    summary: dict[str, Any]
    tables: Tables
    figures: dict[str, go.Figure]
    page: str


def make_report(sweep: Sweep, ledger: Ledger, live: str | None = None) -> Report:
    """From the store alone. live: the version of the ledger, for a page that keeps itself up to date."""
    found = answers(sweep, ledger)
    contrasted = contrast(ledger.rows)
    summary = summarize(sweep, ledger, found, contrasted)
    tables = compute(sweep, ledger, found, contrasted, summary["tradeoffs"])
    goal, choices = sweep.spec.objective, len(sweep.spec.choices)
    figures = draw(tables, choices, goal.practical if goal.losses else sweep.spec.search.ci_width, goal.losses or ())
    return Report(
        summary,
        tables,
        figures,
        _page(sweep, ledger, summary, tables, figures, samples_html(sweep, ledger, found), live),
    )


def write_report(sweep: Sweep, ledger: Ledger, folder: Path) -> Report:
    """Write `index.html`, `summary.json` and the figures' data into `folder`."""
    report = make_report(sweep, ledger)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(report.summary, indent=1, allow_nan=False))
    (folder / "index.html").write_text(report.page)
    write_tables(report.tables, folder / "data")
    return report


def _page(sweep: Sweep, ledger: Ledger, summary: dict[str, Any], tables: Tables, figures: dict[str, go.Figure], samples: str, live: str | None) -> str:  # fmt: skip
    parts = sections.body(sweep, ledger, summary, tables, list(figures), samples)
    sentence = verdict_sentence(summary)
    if not ledger.decision.stop:
        sentence = f"So far, with {len(ledger.results)} of {len(ledger.trials)} trials asked for: {sentence}"
    if sweep.spec.objective.losses and summary["tradeoffs"]:
        said = words.advice_on(summary["tradeoffs"][0], sweep.spec.objective.practical)
    else:
        said = words.advice(summary["optimum"]) or (words.contrast(summary["comparison"]) if ledger.decision.stop else "")  # fmt: skip
    advice = f"<strong>{escape(said)}</strong>" if said else ""
    name = escape(sweep.spec.name)
    links = "".join(f'<li><a href="#{part.name}">{escape(part.short)}</a></li>' for part in parts if part.html)
    main = (
        f"<h1>{name}: how to split D_post between pretraining and post-training</h1>"
        f'<div class="verdict" id="verdict">{advice}{escape(sentence)}</div>'
        + ('<div id="live" role="status"></div>' if live else "")
        + sections.head(sweep, summary, list(figures))
        + "".join(part.html for part in parts)
    )
    body = (
        '<a class="skip" href="#main">Skip to the verdict</a>'
        f'<nav aria-label="sections"><ul>{links}</ul></nav><main id="main" tabindex="-1">{main}</main>'
        '<p class="bad" id="broken" role="alert" hidden></p><aside id="pins" aria-label="pinned recipes" aria-live="polite"></aside>'
        "<noscript><p>Figures need JavaScript; verdict and tables do not.</p></noscript>"
    )
    scripts = [packed("data", _data(sweep, tables, figures)), packed("training", _training(tables)), plotly(), f"<script>{asset('page.js')}</script>"]  # fmt: skip
    return document(f"{sweep.spec.name} - ee_ray", body, scripts, f' data-version="{live}"' if live else "")


def _data(sweep: Sweep, tables: Tables, figures: dict[str, go.Figure]) -> str:
    shown = {name: drawn(figure) for name, figure in figures.items()}
    return plain_json({
        "figures": shown, "choices": sweep.spec.choices, "font": LAYOUT["font"],
        "runs": rows_of(tables["runs"][COLUMNS]), "recipes": rows_of(tables["recipes"].reindex(columns=RECIPE_COLUMNS)),
    })  # fmt: skip


def _training(tables: Tables) -> str:
    """Training curves by stage, thinned where there are very many."""
    curves, stages = tables["training"], tables["stages"]
    each = max(6, MOST_POINTS // max(1, len(stages)))
    points = dict(list(curves[["key", "tokens", "loss"]].groupby("key", sort=False)))
    found = []
    for row in stages.to_dict("records"):
        if row["key"] not in points:
            continue
        mine: pd.DataFrame = points[row["key"]].iloc[:: -(-len(points[row["key"]]) // each)]
        rate = f", rate {row['learning_rate']:g}" if row["kind"] == "finetune" else ""
        found.append({
            "key": row["key"], "kind": row["kind"], "lambda": row["lambda"], "seed": row["seed"], "colour": KIND_COLOURS[row["kind"]],
            "name": f"lambda {row['lambda']:g}, seed {row['seed']}{rate}", "x": mine["tokens"].tolist(),
            "y": [round(loss, 4) if loss == loss else None for loss in mine["loss"].tolist()],
        })  # fmt: skip
    return plain_json({"stages": found, "titles": TITLES})
