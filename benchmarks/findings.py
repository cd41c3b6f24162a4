"""The paper's claims, one by one, as the miniatures have them: `python benchmarks/findings.py reports/mini*/summary.json`.

Frontiers are compared at matched fine-tuning loss (compare.py), seeds are replicates, intervals are 95%. Prints the
table of docs/findings.md.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from ee_ray.compare import Gap, compare

Summary = dict[str, Any]


def _interval(value: float | None, ci95: Any) -> str:
    if value is None or value != value:
        return "the frontiers share no fine-tuning loss"
    low, high = (f"{bound:+.3f}" if bound is not None else "?" for bound in ci95)
    verdict = "yes" if ci95[0] is not None and ci95[0] > 0 else "no, the reverse" if ci95[1] is not None and ci95[1] < 0 else "undetermined"  # fmt: skip
    return f"{value:+.3f} [{low}, {high}] | {verdict}"


def _rows(summary: Summary) -> pd.DataFrame:
    rows = pd.DataFrame(summary["trials"])
    names = [json.dumps(choice, sort_keys=True) for choice in ({k: v for k, v in c.items() if k != "leads"} for c in summary["choices"])]  # fmt: skip
    return rows.assign(recipe=[names[choice] for choice in rows["choice"]])


def _lower(rows: pd.DataFrame, method: "pd.Series[Any]", baseline: "pd.Series[Any]", x: str, y: str) -> str:
    """How much lower in y the frontier of one set of rows lies than another's."""
    both = rows[method | baseline]
    trials = both[["seed", x, y]].set_axis(["seed", "x", "y"], axis=1)
    found: Gap = compare(trials.assign(method=["a" if yes else "b" for yes in method[both.index]]), "a", "b").plain
    return _interval(found.mean, found.ci95)


def _paired(rows: pd.DataFrame, loss: str, low: float, high: float, rate: float) -> str:
    """Mean of loss(low) - loss(high) over seeds at one fine-tuning rate, with a t interval: positive if high is lower."""
    at = rows[rows["finetune_lr"] == rate].pivot_table(index="seed", columns="lambda", values=loss)
    fall = (at[low] - at[high]).to_numpy()
    half = stats.t.ppf(0.975, len(fall) - 1) * fall.std(ddof=1) / len(fall) ** 0.5
    return _interval(float(fall.mean()), (fall.mean() - half, fall.mean() + half))


def figure_2(summary: Summary) -> list[tuple[str, str]]:
    rows = _rows(summary)
    mixed = rows["lambda"] > 0
    return [
        ("mixing lowers retained loss at the same fine-tuning loss", _lower(rows, mixed, ~mixed, "L_ft", "L_ret")),
        ("mixing lowers D_pre's loss at the same retained loss", _lower(rows, mixed, ~mixed, "L_ret", "L_pre")),
    ]


def figure_3(summary: Summary) -> list[tuple[str, str]]:
    rows, goal, optimum = _rows(summary), summary["objective"]["finetune_lr"], summary["optimum"]
    low, high = optimum["ci95"]
    found = [
        ("where retained loss is least", f"lambda\\* {optimum['lambda']:.2f} [{low:.2f}, {high:.2f}] | {optimum['verdict']}"),
        ("retained loss at lambda\\* is below that at 0", _interval(optimum["gain_over_0"]["value"], optimum["gain_over_0"]["ci95"])),
        ("retained loss at lambda\\* is below that at 1", _interval(optimum["gain_over_1"]["value"], optimum["gain_over_1"]["ci95"])),
        ("immediate loss is higher at 1 than at 0", _paired(rows, "L_im", 1.0, 0.0, goal)),
    ]  # fmt: skip
    return [*found, *((f"the same, asked of {other['name']}", f"lambda\\* {other['lambda']:.2f} [{other['ci95'][0]:.2f}, {other['ci95'][1]:.2f}] | {other['verdict']}") for other in summary["others"])]  # fmt: skip


def figure_4(summary: Summary) -> list[tuple[str, str]]:
    rows = _rows(summary)
    recipe = rows["recipe"].map(json.loads)
    dropped = recipe.map(lambda r: bool(r["posttrain.dropout"]))
    replayed = recipe.map(lambda r: r["posttrain.replay"] > 0)
    adapted = recipe.map(lambda r: r["posttrain.lora"] is not None)
    mixed, plain = rows["lambda"] > 0, ~dropped & ~replayed & ~adapted
    asked: list[tuple[str, Any, Any]] = [
        ("mixing alone, against nothing", mixed & plain, ~mixed & plain),
        ("dropout on top of mixing", mixed & dropped & ~replayed & ~adapted, mixed & plain),
        ("replay on top of mixing", mixed & replayed & ~dropped & ~adapted, mixed & plain),
        ("adapters on top of mixing", mixed & adapted & ~dropped & ~replayed, mixed & plain),
        ("any of them, mixed, against any of them, unmixed", mixed, ~mixed),
    ]
    return [(f"{name}: lower retained loss at the same fine-tuning loss", _lower(rows, a, b, "L_ft", "L_ret")) for name, a, b in asked]  # fmt: skip


FIGURES: dict[str, Callable[[Summary], list[tuple[str, str]]]] = {"mini2": figure_2, "mini3": figure_3, "mini4": figure_4}  # fmt: skip


def main() -> None:
    print("| sweep | claim | difference in nats, or place | does it hold |\n|---|---|---|---|")
    for path in sys.argv[1:]:
        summary = json.loads(Path(path).read_text())
        for claim, answer in FIGURES[summary["sweep"][:5]](summary):
            print(f"| {summary['sweep']} | {claim} | {answer} |")


if __name__ == "__main__":
    main()
