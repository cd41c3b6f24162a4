"""Which (level, seed) to train next, and when to stop: a pure function of the sweep and of the results so far.

The search goes in rounds that the spec fixes: the anchors with the first seeds, then a few runs at a time, where they
teach most about the best lambda for each token that must be trained (acquisition.py). Replaying the rounds from nothing
over known results gives the same choices, so a sweep resumes from its ledger alone, and any number of workers makes the
same search.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from ee_ray.acquisition import Run, choose
from ee_ray.curve import SAME_LEVEL, Curve, fit
from ee_ray.optimum import Optimum, locate, summarise
from ee_ray.plan import Point, Prices
from ee_ray.spec import SweepSpec

# A run whose stages are all in the store still takes a place in a round: it is priced at this part of a whole one.
LEAST_COST = 0.02


Known = tuple[tuple[Point, float | None], ...]


@dataclass(frozen=True)
class Decision:
    """`outstanding` points of the current round, or the reason to stop; `visited` are all points of rounds so far."""

    outstanding: list[Point]
    visited: list[Point]
    stop: str | None


def anchors(spec: SweepSpec) -> list[Point]:
    search = spec.search
    return [Point(level, seed) for seed in search.seeds[: search.anchor_seeds] for level in search.anchor_levels]


def estimate(spec: SweepSpec, results: Mapping[Point, float | None]) -> Optimum | None:
    """The optimum as the results have it, or None while they hold fewer than three levels."""
    return _estimated(tuple(results.items()), spec.search.ladder, spec.objective.practical)


def fitted(spec: SweepSpec, known: Known) -> Curve | None:
    """The curve that the results give; None under three levels."""
    return _fitted(known, spec.search.ladder, spec.objective.practical)


def estimate_of(spec: SweepSpec, table: pd.DataFrame) -> Optimum | None:
    """The optimum of any loss over the ladder, from columns lambda, seed, loss; None under three levels."""
    if table["lambda"].nunique() < 3:
        return None
    return locate(table, (np.arange(spec.search.ladder + 1) / spec.search.ladder).tolist(), spec.objective.practical)


def decide(spec: SweepSpec, results: Mapping[Point, float | None], prices: Prices) -> Decision:
    """Replay the rounds over `results` (None: the trial failed) and say what is outstanding or why to stop.

    prices: tokens that a point must still train.
    """
    visited: list[Point] = []
    batch, spent = anchors(spec), 0
    while True:
        spent += _tokens(batch, visited, prices)
        visited += batch
        if missing := [point for point in batch if point not in results]:
            return Decision(missing, visited, None)
        known = tuple((point, results[point]) for point in visited)
        optimum = estimate(spec, dict(known))
        if optimum is None:
            short = " and reached objective.finetune_loss" if spec.objective.finetune_loss else ""
            return Decision([], visited, f"fewer than three levels of lambda could be trained{short}")
        if reason := enough(spec, optimum):
            return Decision([], visited, reason)
        batch = next_round(spec, known, prices)
        if not batch:
            return Decision([], visited, "every level of the ladder is tried with every seed")
        batch, reason = _within_budget(spec, batch, visited, spent, prices)
        if not batch:
            return Decision([], visited, reason)


def _tokens(batch: list[Point], before: list[Point], prices: Prices) -> int:
    return sum(prices(point, before + batch[:i]) for i, point in enumerate(batch))


def _within_budget(
    spec: SweepSpec, batch: list[Point], visited: list[Point], spent: int, prices: Prices
) -> tuple[list[Point], str]:
    """As much of the round as the budgets still allow, and which budget ends the search if that is nothing."""
    search = spec.search
    if len(visited) >= search.max_trials:
        return [], f"max_trials {search.max_trials} are spent"
    batch = batch[: search.max_trials - len(visited)]
    while search.max_tokens and batch and spent + _tokens(batch, visited, prices) > search.max_tokens:
        batch = batch[:-1]
    seeds = [point.seed for point in visited + batch]
    if batch and seeds.count(batch[-1].seed) == 1:  # half of a pair: a seed's first run teaches nothing by itself
        batch = batch[:-1]
    return batch, "the budget leaves no room for another round: " + _budgets(spec)


def _budgets(spec: SweepSpec) -> str:
    tokens = f", max_tokens {spec.search.max_tokens:,}" if spec.search.max_tokens else ""
    return f"max_trials {spec.search.max_trials}{tokens}"


def next_round(spec: SweepSpec, known: Known, prices: Prices) -> list[Point]:
    """The runs that teach most for what they cost; none when all have been tried."""
    tried = [point for point, _ in known]
    whole = sum(prices.stages(tried[0]).values())
    left = [Point(level, seed) for seed in spec.search.seeds for level in range(spec.search.ladder + 1)]
    open_runs = tuple(((p.level, p.seed), max(prices(p, tried) / whole, LEAST_COST)) for p in left if p not in tried)
    runs = _chosen(known, spec.search.ladder, spec.objective.practical, open_runs, spec.search.runs_per_round)
    return [Point(*run) for run in runs]


# Replays within one process meet the same rounds again and again. A fitted curve is 4 MB: few are kept.


@lru_cache(maxsize=4)
def _fitted(known: Known, steps: int, practical: float) -> Curve | None:
    finite = [(point.level / steps, point.seed, loss) for point, loss in known if loss is not None]
    rows = pd.DataFrame(finite, columns=["lambda", "seed", "loss"])
    rows["lambda"] = rows["lambda"].round(SAME_LEVEL)
    levels = np.arange(steps + 1) / steps
    return fit(rows, levels, practical) if rows["lambda"].nunique() >= 3 else None


@lru_cache(maxsize=1024)
def _estimated(known: Known, steps: int, practical: float) -> Optimum | None:
    curve = _fitted(known, steps, practical)
    return summarise(curve, np.arange(steps + 1) / steps, practical) if curve else None


@lru_cache(maxsize=1024)
def _chosen(
    known: Known, steps: int, practical: float, prices: tuple[tuple[Run, float], ...], count: int
) -> tuple[Run, ...]:
    curve, price = _fitted(known, steps, practical), dict(prices)
    assert curve is not None
    return tuple(choose(curve, np.arange(steps + 1) / steps, list(price), count, price.__getitem__))


def enough(spec: SweepSpec, optimum: Optimum) -> str | None:
    """Why no further run is needed, if none is."""
    low, high = optimum.ci95
    if optimum.verdict == "flat":
        return f"the curve is flat: differences are below {spec.objective.practical:g} nats"
    if optimum.verdict != "undetermined" and high - low <= spec.search.ci_width:
        return f"the 95% interval of lambda* is {high - low:.3f} wide, at most {spec.search.ci_width:g} was asked for"
    return None
