"""One number for a trained recipe: the loss that lambda* minimises, read from its rows, one for each fine-tuning rate. Or,
where a frontier is asked for, one number for each of its losses."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ee_ray.frontier import pareto
from ee_ray.spec.search import Objective

Rows = Sequence[Mapping[str, Any]]
Loss = float | tuple[float, ...]  # of one recipe; of loss: pareto, each of its losses

NAMES = {
    "L_ret": "retained loss L_ret",
    "L_im": "immediate loss L_im",
    "L_ft": "fine-tuning loss L_ft",
    "L_pre": "pretraining loss L_pre",
}


def describe(goal: Objective) -> str:
    """The goal in words, as it stands in a sentence or beside an axis."""
    tuned = f"fine-tuned at {goal.finetune_lr:g}"
    if goal.losses:
        return f"the frontier of {', '.join(goal.losses[:-1])} and {goal.losses[-1]}, {tuned}"
    if goal.weights:
        if list(goal.weights.values()) == [1.0]:
            return f"{NAMES[next(iter(goal.weights))]}, {tuned}"
        return " + ".join(f"{weight:g} {loss}" for loss, weight in goal.weights.items()) + f", {tuned}"
    return {
        "L_ret": f"{NAMES['L_ret']}, {tuned}",
        "L_im": NAMES["L_im"],
        "L_ret_matched": f"{NAMES['L_ret']} at a fine-tuning loss of {goal.finetune_loss or 0:.4g}",
    }[goal.loss]


def alone(goal: Objective, loss: str) -> Objective:
    """The goal of one loss by itself, fine-tuned at the goal's rate."""
    named = {"loss": loss} if loss in ("L_ret", "L_im") else {"loss": "weighted", "weights": {loss: 1.0}}
    return goal.model_copy(update={"finetune_loss": None, "weights": None, "losses": None, **named})


def objective(goal: Objective, rows: Rows) -> Loss | None:
    """The goal's loss of one recipe in nats, or its losses. rows: the recipe's L_im, L_ret, L_ft, L_pre by `finetune_lr`.

    None where the recipe has no row at the goal's rate, or its rates do not reach the goal's fine-tuning loss.
    """
    if goal.losses:
        found = [_single(alone(goal, loss), rows) for loss in goal.losses]
        return None if None in found else tuple(value for value in found if value is not None)
    return _single(goal, rows)


def _single(goal: Objective, rows: Rows) -> float | None:
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
    """The other questions that the same runs answer: each loss of a frontier, L_im, L_ret at every rate, and L_ret at a
    matched L_ft."""
    level = goal.finetune_loss or reachable(rows)
    asked = [*(alone(goal, loss) for loss in goal.losses or ()), alone(goal, "L_im")]
    asked += [alone(goal, "L_ret").model_copy(update={"finetune_lr": rate}) for rate in sorted(rates)]
    if level:
        asked.append(asked[-1].model_copy(update={"loss": "L_ret_matched", "finetune_loss": round(level, 4)}))
    named = {describe(other): other for other in asked}
    return [other for name, other in named.items() if name != describe(goal)]


def observed(goal: Objective, rows: pd.DataFrame) -> pd.DataFrame:
    """Columns lambda, seed, loss: the goal's one loss of every recipe that has it, of a table with a row for each
    (lambda, seed, finetune_lr); no rows of a frontier."""
    recipes: dict[tuple[float, int], list[dict[Any, Any]]] = {}
    for row in rows.to_dict("records"):  # once: of a thousand small tables it would take seconds
        recipes.setdefault((row["lambda"], row["seed"]), []).append(row)
    found = [
        (*place, value) for place in sorted(recipes) if isinstance(value := objective(goal, recipes[place]), float)
    ]
    return pd.DataFrame(found, columns=["lambda", "seed", "loss"])
