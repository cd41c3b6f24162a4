"""One number for a trained recipe: the loss that lambda* minimises, read from its rows, one for each fine-tuning rate."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ee_ray.frontier import pareto
from ee_ray.spec.search import Objective

Rows = Sequence[Mapping[str, Any]]


def describe(goal: Objective) -> str:
    """The goal in words, as it stands in a sentence or beside an axis."""
    tuned = f"fine-tuned at {goal.finetune_lr:g}"
    if goal.weights:
        return " + ".join(f"{weight:g} {loss}" for loss, weight in goal.weights.items()) + f", {tuned}"
    return {
        "L_ret": f"retained loss L_ret, {tuned}",
        "L_im": "immediate loss L_im",
        "L_ret_matched": f"retained loss L_ret at a fine-tuning loss of {goal.finetune_loss or 0:.4g}",
    }[goal.loss]


def objective(goal: Objective, rows: Rows) -> float | None:
    """The goal's loss of one recipe in nats. rows: its losses L_im, L_ret, L_ft, L_pre by `finetune_lr`.

    None where the recipe has no row at the goal's rate, or its rates do not reach the goal's fine-tuning loss.
    """
    if goal.loss == "L_ret_matched":
        assert goal.finetune_loss is not None
        value = matched(rows, goal.finetune_loss)
        return value if np.isfinite(value) else None
    row = next((row for row in rows if row["finetune_lr"] == goal.finetune_lr), None)
    if row is None:
        return None
    weights: Mapping[Any, float] = goal.weights or {goal.loss: 1.0}
    total = float(sum(weight * row[loss] for loss, weight in weights.items()))
    return total if np.isfinite(total) else None


def matched(rows: Rows, finetune_loss: float) -> float:
    """Retained loss of one recipe where its fine-tuning loss is `finetune_loss`, on the straight line between
    the two nearest of those rates that no other rate of the recipe beats in both losses. NaN outside their range."""
    points = np.array([(row["L_ft"], row["L_ret"]) for row in rows], float).reshape(-1, 2)
    kept = points[pareto(points)]
    inside = len(kept) and kept[0, 0] <= finetune_loss <= kept[-1, 0]
    if not inside:
        return float("nan")
    return float(np.interp(finetune_loss, kept[:, 0], kept[:, 1]))


def reachable(rows: pd.DataFrame) -> float | None:
    """A fine-tuning loss that as many recipes as can be reach: the middle of the range that all of them span, or of the
    recipes' middles where they share none. None without rows."""
    if rows.empty:
        return None
    spans = rows.groupby(["lambda", "seed"])["L_ft"].agg(["min", "max"])
    low, high = float(spans["min"].max()), float(spans["max"].min())
    return (low + high) / 2 if low <= high else float(spans.mean(axis=1).median())


def others(goal: Objective, rates: Sequence[float], rows: pd.DataFrame) -> list[Objective]:
    """The other questions that the same runs answer: L_im, L_ret at every rate, and L_ret at a matched L_ft."""
    level = goal.finetune_loss or reachable(rows)
    asked = [goal.model_copy(update={"loss": "L_im", "finetune_loss": None, "weights": None})]
    asked += [asked[0].model_copy(update={"loss": "L_ret", "finetune_lr": rate}) for rate in sorted(rates)]
    if level:
        asked.append(asked[0].model_copy(update={"loss": "L_ret_matched", "finetune_loss": round(level, 4)}))
    return [other for other in asked if describe(other) != describe(goal)]


def observed(goal: Objective, rows: pd.DataFrame) -> pd.DataFrame:
    """Columns lambda, seed, loss: the goal's loss of every recipe that has one, of a table with a row for each
    (lambda, seed, finetune_lr)."""
    recipes: dict[tuple[float, int], list[dict[Any, Any]]] = {}
    for row in rows.to_dict("records"):  # once: of a thousand small tables it would take seconds
        recipes.setdefault((row["lambda"], row["seed"]), []).append(row)
    found = [(*place, value) for place in sorted(recipes) if (value := objective(goal, recipes[place])) is not None]
    return pd.DataFrame(found, columns=["lambda", "seed", "loss"])
