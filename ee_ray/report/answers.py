"""The questions that a sweep's runs answer, each with its observations and its optimum: the objective's first."""

from dataclasses import dataclass

import pandas as pd

from ee_ray.ledger import Ledger
from ee_ray.objective import describe, observed, others
from ee_ray.optimum import Optimum
from ee_ray.propose import estimate, estimate_of
from ee_ray.spec.search import Objective
from ee_ray.sweep import Sweep


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
    measured. All of them about the choice that leads."""
    goal, rows = sweep.spec.objective, ledger.leading_rows
    known = {point: ledger.results[point] for point in ledger.decision.visited if point in ledger.results}
    found = [Answer(goal, observed(goal, rows), estimate(sweep.spec, known))]
    for other in others(goal, sweep.spec.stages.finetune.learning_rates, rows):
        table = observed(other, rows)
        if len(table):
            found.append(Answer(other, table, estimate_of(sweep.spec, table)))
    return found
