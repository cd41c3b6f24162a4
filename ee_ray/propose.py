"""Which (level, seed) to train next, and when to stop: a pure function of the sweep and of the results so far.

The search goes in rounds that the spec fixes: the anchors with the first seeds, then a few runs at a time, where they
teach most about the best lambda for each token that must be trained (acquisition.py). Replaying the rounds from nothing
over known results gives the same choices, so a sweep resumes from its ledger alone, and any number of workers makes the
same search.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import numpy as np
import pandas as pd

from ee_ray.acquisition import choose
from ee_ray.choices import alike, effects, first_alike
from ee_ray.curve import SAME_LEVEL, Curve, fit
from ee_ray.identity import key_of
from ee_ray.kernels import Array, Effect
from ee_ray.optimum import Optimum, locate, summarise
from ee_ray.plan import Point, Prices
from ee_ray.spec.sweep import SweepSpec

# A run whose stages are all in the store still takes a place in a round: it is priced at this part of a whole one.
LEAST_COST = 0.02


Known = tuple[tuple[Point, float | None], ...]


Rounds = Mapping[str, Sequence[Point]]


@dataclass(frozen=True)
class Decision:
    """`outstanding` points of the current round, or the reason to stop; `visited` are all points of rounds so far.

    `rounds` is what was chosen after which results (by digest). Given back to `decide`, it spares choosing again, and
    keeps runs that an earlier release chose: what has been trained is never left out of the answer.
    """

    outstanding: list[Point]
    visited: list[Point]
    stop: str | None
    rounds: Rounds


def anchors(spec: SweepSpec) -> list[Point]:
    search = spec.search
    runs = itertools.product(range(len(spec.choices)), search.seeds[: search.anchor_seeds], search.anchor_levels)
    return [Point(level, seed, choice) for choice, seed, level in runs]


def leading(spec: SweepSpec, results: Mapping[Point, float | None]) -> int:
    """The choice whose curve goes lowest, as far as is known; before anything is known the first."""
    curve = fitted(spec, tuple(results.items())) if len(spec.choices) > 1 else None
    return curve.leading if curve else 0


def estimate(spec: SweepSpec, results: Mapping[Point, float | None]) -> Optimum | None:
    """The optimum as the results have it, or None while they hold fewer than three levels."""
    curve = fitted(spec, tuple(results.items()))
    return summarise(curve, _levels(spec), spec.objective.practical) if curve else None


def estimate_of(spec: SweepSpec, table: pd.DataFrame) -> Optimum | None:
    """The optimum of any loss over the ladder, from columns lambda, seed, loss; None under three levels."""
    if table["lambda"].nunique() < 3:
        return None
    return locate(table, _levels(spec).tolist(), spec.objective.practical)


def decide(
    spec: SweepSpec, results: Mapping[Point, float | None], prices: Prices, rounds: Rounds = MappingProxyType({})
) -> Decision:
    """Replay the rounds over `results` (None: the trial failed) and say what is outstanding or why to stop.

    prices: tokens that a point must still train.  rounds: of earlier decisions on the same search, if they are known.
    """
    visited: list[Point] = []
    batch, spent, rounds = anchors(spec), 0, dict(rounds)
    while True:
        before, visited = visited, visited + batch
        if missing := [point for point in batch if point not in results]:
            return Decision(missing, visited, None, rounds)
        spent += _tokens(batch, before, prices)  # once a round, and not as each of its runs ends
        known = tuple((point, results[point]) for point in visited)
        key = key_of({"known": [[point.level, point.seed, point.choice, loss] for point, loss in known]})
        if rounds.get(key) and all(point in results for point in rounds[key]):
            batch, reason = _within_budget(spec, list(rounds[key]), visited, spent, prices)
            if not batch:
                return Decision([], visited, reason, rounds)
            continue
        optimum = estimate(spec, dict(known))
        if optimum is None and len(spec.search.anchors) == 2:
            return Decision(
                [], visited, f"max_trials {spec.search.max_trials} are spent: frontiers, no lambda*", rounds
            )
        if optimum is None:
            short = " and reached objective.finetune_loss" if spec.objective.finetune_loss else ""
            return Decision([], visited, f"fewer than three levels of lambda could be trained{short}", rounds)
        if found := enough(spec, optimum):
            return Decision([], visited, found, rounds)
        rounds[key] = rounds.get(key) or next_round(spec, known, prices)
        if not rounds[key]:
            return Decision([], visited, "every level of the ladder is tried with every seed", rounds)
        batch, reason = _within_budget(spec, list(rounds[key]), visited, spent, prices)
        if not batch:
            return Decision([], visited, reason, rounds)


def beyond_budget(spec: SweepSpec, prices: Prices) -> str | None:
    """Why `max_tokens` cannot be kept to, if it cannot: the anchors alone, which every answer needs, would exceed it."""
    need, most = _tokens(anchors(spec), [], prices), spec.search.max_tokens
    if most is None or need <= most:
        return None
    return f"search.max_tokens {most:,} is less than the {need:,} tokens that the anchors train: raise it, or ask for fewer anchors, seeds or tokens"


def _tokens(batch: list[Point], before: list[Point], prices: Prices) -> int:
    return prices.together(batch, before)


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
    if batch and seeds.count(seeds[-1]) == 1:  # half of a pair: a seed's first run teaches nothing by itself
        batch = batch[:-1]
    return batch, "the budget leaves no room for another round: " + _budgets(spec)


def _budgets(spec: SweepSpec) -> str:
    tokens = f", max_tokens {spec.search.max_tokens:,}" if spec.search.max_tokens else ""
    return f"max_trials {spec.search.max_trials}{tokens}"


def next_round(spec: SweepSpec, known: Known, prices: Prices) -> list[Point]:
    """The runs that teach most for what they cost; none when all have been tried."""
    tried, levels = [point for point, _ in known], spec.search.ladder + 1
    whole = sum(prices.stages(tried[0]).values())
    same = alike(spec)
    had = {first_alike(same, point) for point in tried}
    runs = itertools.product(range(levels), spec.search.seeds, range(len(spec.choices)))
    left = [point for run in runs if first_alike(same, point := Point(*run)) == point and point not in had]
    cost = {(p.choice * levels + p.level, p.seed): max(prices(p, tried) / whole, LEAST_COST) for p in left}
    curve = fitted(spec, known)
    assert curve is not None
    chosen = choose(curve, _levels(spec), list(cost), spec.search.runs_per_round, cost.__getitem__)
    return [Point(place % levels, seed, place // levels) for place, seed in chosen]


def fitted(spec: SweepSpec, known: Known) -> Curve | None:
    """The curves that the results give; None under three levels."""
    if len(spec.choices) == 1:
        return _fitted(known, (), spec.search.ladder, spec.objective.practical)
    same = alike(spec)
    runs = tuple({first_alike(same, point): loss for point, loss in known}.items())
    return _fitted(runs, effects(spec, same), spec.search.ladder, spec.objective.practical)


@lru_cache(maxsize=4)  # a round fits its curve once, to judge it and to choose; 4 MB each and for each choice
def _fitted(known: Known, effects: tuple[Effect, ...], steps: int, practical: float) -> Curve | None:
    finite = [(point.level / steps, point.seed, point.choice, loss) for point, loss in known if loss is not None]
    rows = pd.DataFrame(finite, columns=["lambda", "seed", "choice", "loss"])
    rows["lambda"] = rows["lambda"].round(SAME_LEVEL)
    return fit(rows, np.arange(steps + 1) / steps, practical, effects) if rows["lambda"].nunique() >= 3 else None


def _levels(spec: SweepSpec) -> Array:
    return np.arange(spec.search.ladder + 1) / spec.search.ladder


def enough(spec: SweepSpec, optimum: Optimum) -> str | None:
    """Why no further run is needed, if none is."""
    low, high = optimum.ci95
    if optimum.verdict == "flat":
        return f"the curve is flat: differences are below {spec.objective.practical:g} nats"
    if optimum.verdict != "undetermined" and high - low <= spec.search.ci_width:
        return f"the 95% interval of lambda* is {high - low:.3f} wide, at most {spec.search.ci_width:g} was asked for"
    return None
