"""Which (level, seed) to train next, and when to stop: a pure function of the sweep and of the results so far.

The search goes in rounds that the spec fixes: the anchors with the first seeds, then a few runs at a time, where they
teach most about the best lambda for each token that must be trained (acquisition.py). Replaying the rounds from nothing
over known results gives the same choices, so a sweep resumes from its ledger alone, and any number of workers makes the
same search.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import numpy as np
import pandas as pd

from ee_ray.acquisition import Run, choose
from ee_ray.choices import alike, effects, first_alike
from ee_ray.curve import SAME_LEVEL, Curve, fit
from ee_ray.identity import ListKey
from ee_ray.kernels import Array, Effect
from ee_ray.objective import Loss
from ee_ray.optimum import Optimum, locate, summarise
from ee_ray.plan import Point, Prices
from ee_ray.spec.sweep import SweepSpec
from ee_ray.tradeoff import Tradeoff, tradeoff

# A run whose stages are all in the store still takes a place in a round: it is priced at this part of a whole one.
LEAST_COST = 0.02


Known = tuple[tuple[Point, Loss | None], ...]


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


def leading(spec: SweepSpec, results: Mapping[Point, Loss | None]) -> int:
    """The choice whose curve (of several losses, the first's) goes lowest, as far as is known; before anything is known the
    first."""
    curves = fitted(spec, tuple(results.items())) if len(spec.choices) > 1 else []
    return curves[0].leading if curves else 0


def estimate(spec: SweepSpec, results: Mapping[Point, Loss | None]) -> Optimum | None:
    """The optimum as the results have it, or None while they hold fewer than three levels, and where a frontier is asked for."""
    if spec.objective.losses or not (curves := fitted(spec, tuple(results.items()))):
        return None
    return summarise(curves[0], _levels(spec), spec.objective.practical)


def estimate_frontier(spec: SweepSpec, results: Mapping[Point, Loss | None]) -> Tradeoff | None:
    """The frontier that is asked for as the results have it, or None while they hold fewer than three levels, and where none
    is asked for."""
    if not spec.objective.losses or not (curves := fitted(spec, tuple(results.items()))):
        return None
    return tradeoff(curves, _levels(spec))


def estimate_of(spec: SweepSpec, table: pd.DataFrame) -> Optimum | None:
    """The optimum of any loss over the ladder, from columns lambda, seed, loss; None under three levels."""
    if table["lambda"].nunique() < 3:
        return None
    return locate(table, _levels(spec).tolist(), spec.objective.practical)


def decide(
    spec: SweepSpec, results: Mapping[Point, Loss | None], prices: Prices, rounds: Rounds = MappingProxyType({})
) -> Decision:
    """Replay the rounds over `results` (None: the trial failed) and say what is outstanding or why to stop.

    prices: tokens that a point must still train.  rounds: of earlier decisions on the same search, if they are known.
    """
    return Replay(spec, prices, rounds).decide(results)


class Replay:
    """The rounds of one search over results that only ever become more: each finished round is gone through once, however
    often a decision is asked for. What is kept is no truth of its own: a replay from nothing decides the same."""

    def __init__(self, spec: SweepSpec, prices: Prices, rounds: Rounds = MappingProxyType({})):
        self._spec, self._prices, self._rounds = spec, prices, dict(rounds)
        self._visited: list[Point] = []  # of finished rounds
        self._known: list[tuple[Point, Loss | None]] = []  # their results
        self._batch = anchors(spec)  # the current one; none where a round has ended and no other has begun
        self._key = ListKey("known")
        self._budget = Budget(spec, prices)

    def __reduce__(self) -> tuple[type["Replay"], tuple[SweepSpec, Prices, Rounds]]:
        return Replay, (self._spec, self._prices, self._rounds)  # Tune pickles the search; a digest cannot be

    def decide(self, results: Mapping[Point, Loss | None]) -> Decision:
        """What `decide` gives. Results that an earlier call had are taken to be the same in this one."""
        while True:
            if missing := [point for point in self._batch if point not in results]:
                return Decision(missing, self._visited + self._batch, None, dict(self._rounds))
            self._finish(results)
            self._batch, reason = self._next(results)
            if not self._batch:
                return Decision([], list(self._visited), reason, dict(self._rounds))

    def _finish(self, results: Mapping[Point, Loss | None]) -> None:
        self._budget.spend(self._batch)
        self._visited += self._batch
        for point in self._batch:
            self._known.append((point, results[point]))
            self._key.add([point.level, point.seed, point.choice, results[point]])
        self._batch = []

    def _next(self, results: Mapping[Point, Loss | None]) -> tuple[list[Point], str]:
        """The round after those that are finished, or none and why not."""
        key, spec = self._key.key(), self._spec
        noted = self._rounds.get(key, ())
        if noted and all(point in results for point in noted):
            return self._budget.allows(noted)
        known = tuple(self._known)
        none = not fitted(spec, known)
        if none and len(spec.search.anchors) == 2:
            return [], f"max_trials {spec.search.max_trials} are spent: frontiers, no lambda*"
        if none:
            short = " and reached objective.finetune_loss" if spec.objective.finetune_loss else ""
            return [], f"fewer than three levels of lambda could be trained{short}"
        if found := enough(spec, dict(known)):
            return [], found
        self._rounds[key] = noted or next_round(spec, known, self._prices)
        if not self._rounds[key]:
            return [], "every level of the ladder is tried with every seed"
        return self._budget.allows(self._rounds[key])


class Budget:
    """What the finished rounds have left of max_trials and max_tokens."""

    def __init__(self, spec: SweepSpec, prices: Prices):
        self._spec, self._prices = spec, prices
        self._had, self._tokens = prices.had([]), 0
        self._runs: Counter[int] = Counter()  # of each seed

    def spend(self, batch: Sequence[Point]) -> None:
        """A round has ended."""
        self._tokens += self._prices.together(batch, self._had)
        self._had.update(*map(self._prices.stages, batch))
        self._runs.update(point.seed for point in batch)

    def allows(self, batch: Sequence[Point]) -> tuple[list[Point], str]:
        """As much of a round as is left for it, and which budget ends the search if that is nothing."""
        search, done = self._spec.search, self._runs.total()
        if done >= search.max_trials:
            return [], f"max_trials {search.max_trials} are spent"
        batch = list(batch[: search.max_trials - done])
        while (
            search.max_tokens and batch and self._tokens + self._prices.together(batch, self._had) > search.max_tokens
        ):
            batch.pop()
        if batch and self._runs[batch[-1].seed] + [point.seed for point in batch].count(batch[-1].seed) == 1:
            batch.pop()  # half of a pair: a seed's first run teaches nothing by itself
        tokens = f", max_tokens {search.max_tokens:,}" if search.max_tokens else ""
        return batch, f"the budget leaves no room for another round: max_trials {search.max_trials}{tokens}"


def beyond_budget(spec: SweepSpec, prices: Prices) -> str | None:
    """Why `max_tokens` cannot be kept to, if it cannot: the anchors alone, which every answer needs, would exceed it."""
    need, most = prices.together(anchors(spec), prices.had([])), spec.search.max_tokens
    if most is None or need <= most:
        return None
    return f"search.max_tokens {most:,} is less than the {need:,} tokens that the anchors train: raise it, or ask for fewer anchors, seeds or tokens"


def next_round(spec: SweepSpec, known: Known, prices: Prices) -> list[Point]:
    """The runs that teach most for what they cost; none when all have been tried."""
    tried, levels = [point for point, _ in known], spec.search.ladder + 1
    whole = sum(prices.stages(tried[0]).values())
    same, had = alike(spec), prices.had(tried)
    seen = {first_alike(same, point) for point in tried}
    runs = itertools.product(range(levels), spec.search.seeds, range(len(spec.choices)))
    left = [point for run in runs if first_alike(same, point := Point(*run)) == point and point not in seen]

    def point_of(run: Run) -> Point:
        return Point(run[0] % levels, run[1], run[0] // levels)

    def cost(candidate: tuple[Run, ...]) -> float:
        return max(prices.together(list(map(point_of, candidate)), had) / whole, LEAST_COST * len(candidate))

    places = [(point.choice * levels + point.level, point.seed) for point in left]
    return list(map(point_of, choose(fitted(spec, known), _levels(spec), places, spec.search.runs_per_round, cost)))


def fitted(spec: SweepSpec, known: Known) -> list[Curve]:
    """The curves that the results give, of each loss that is asked for; none under three levels."""
    made: tuple[Effect, ...] = ()
    if len(spec.choices) > 1:
        same = alike(spec)
        known, made = tuple({first_alike(same, point): loss for point, loss in known}.items()), effects(spec, same)
    return _fitted(known, made, spec.search.ladder, spec.objective.practical)


@lru_cache(maxsize=4)  # a round fits its curves once, to judge and to choose; 4 MB each and for each choice
def _fitted(known: Known, effects: tuple[Effect, ...], steps: int, practical: float) -> list[Curve]:
    told = [(point, loss if isinstance(loss, tuple) else (loss,)) for point, loss in known if loss is not None]
    places = [(point.level / steps, point.seed, point.choice) for point, _ in told]
    rows = pd.DataFrame(places, columns=["lambda", "seed", "choice"])
    rows["lambda"] = rows["lambda"].round(SAME_LEVEL)
    if rows["lambda"].nunique() < 3:
        return []
    ladder, losses = np.arange(steps + 1) / steps, zip(*(each for _, each in told), strict=True)
    return [fit(rows.assign(loss=loss), ladder, practical, effects) for loss in losses]


def _levels(spec: SweepSpec) -> Array:
    return np.arange(spec.search.ladder + 1) / spec.search.ladder


def enough(spec: SweepSpec, results: Mapping[Point, Loss | None]) -> str | None:
    """Why no further run is needed, if none is, of results that span three levels."""
    if frontier := estimate_frontier(spec, results):
        asked = spec.objective.practical
        return f"the frontier is known to {asked:g} nats" if frontier.known <= asked else None
    optimum = estimate(spec, results)
    assert optimum is not None
    low, high = optimum.ci95
    if optimum.verdict == "flat":
        return f"the curve is flat: differences are below {spec.objective.practical:g} nats"
    if optimum.verdict != "undetermined" and high - low <= spec.search.ci_width:
        return f"the 95% interval of lambda* is {high - low:.3f} wide, at most {spec.search.ci_width:g} was asked for"
    return None
