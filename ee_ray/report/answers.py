"""The questions that a sweep's runs answer, each with its observations and its optimum: the objective's first; and the trade-offs."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ee_ray.curve import SAME_LEVEL, fit
from ee_ray.ledger import Ledger
from ee_ray.objective import alone, describe, observed, others
from ee_ray.optimum import Optimum
from ee_ray.propose import estimate, estimate_frontier, estimate_of
from ee_ray.spec.search import Objective
from ee_ray.sweep import Sweep
from ee_ray.tradeoff import Tradeoff, tradeoff

TRADED = (("L_ft", "L_ret"), ("L_ft", "L_ret", "L_pre"))  # the first is the frontier figure's


@dataclass(frozen=True, eq=False)
class Answer:
    """`table` has columns lambda, seed, loss; `optimum` is None while it holds fewer than three levels of lambda."""

    goal: Objective
    table: pd.DataFrame
    optimum: Optimum | None

    @property
    def name(self) -> str:
        return describe(self.goal)


def answers(sweep: Sweep, ledger: Ledger) -> list[Answer]:
    """By the objective, by L_im, by L_ret at every fine-tuning rate and at a matched fine-tuning loss: by those that were
    measured. All of them about the choice that leads. A frontier has no optimum of its own; its losses come next."""
    goal, rows = sweep.spec.objective, ledger.leading_rows
    known = {point: ledger.results[point] for point in ledger.decision.visited if point in ledger.results}
    found = [Answer(goal, observed(goal, rows), estimate(sweep.spec, known))]
    for other in others(goal, sweep.spec.stages.finetune.learning_rates, rows):
        table = observed(other, rows)
        if len(table):
            found.append(Answer(other, table, estimate_of(sweep.spec, table)))
    return found


def tradeoffs(sweep: Sweep, ledger: Ledger) -> dict[tuple[str, ...], Tradeoff]:
    """The frontier that is asked for, over the levels of the ladder and all choices. Where one loss is asked for, those of
    TRADED, at its fine-tuning rate and of the choice that leads. None before three levels are finished."""
    goal, steps, curves = sweep.spec.objective, sweep.spec.search.ladder, {}
    if goal.losses:
        asked = estimate_frontier(sweep.spec, ledger.results)
        return {tuple(goal.losses): asked} if asked else {}
    ladder = np.arange(steps + 1) / steps
    for loss in TRADED[-1]:
        table = observed(alone(goal, loss), ledger.leading_rows)
        if table["lambda"].nunique() < 3:
            return {}
        curves[loss] = fit(table.assign(**{"lambda": table["lambda"].round(SAME_LEVEL)}), ladder, goal.practical)
    return {losses: tradeoff([curves[loss] for loss in losses], ladder) for losses in TRADED}
