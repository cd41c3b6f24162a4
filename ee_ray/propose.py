"""Which (level, seed) to train next, and when to stop: a pure function of the sweep and of the results so far.

The search goes in rounds that the spec fixes: the anchors with every seed, then a few levels at a time where the
optimum most probably lies. Replaying the rounds from nothing over known results gives the same choices, so a sweep
resumes from its ledger alone, and any number of workers makes the same search.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from ee_ray.optimum import Optimum, locate
from ee_ray.plan import Point
from ee_ray.spec import SweepSpec


@dataclass(frozen=True)
class Decision:
    """`outstanding` points of the current round, or the reason to stop; `visited` are all points of rounds so far."""

    outstanding: list[Point]
    visited: list[Point]
    stop: str | None


def anchors(spec: SweepSpec) -> list[Point]:
    return [Point(level, seed) for seed in spec.search.seeds for level in spec.search.anchor_levels]


def observations(spec: SweepSpec, results: Mapping[Point, float | None]) -> pd.DataFrame:
    """Finite results as the table that `locate` reads."""
    rows = [(p.level / spec.search.ladder, p.seed, loss) for p, loss in results.items() if loss is not None]
    return pd.DataFrame(rows, columns=["lambda", "seed", "loss"])


def estimate(spec: SweepSpec, results: Mapping[Point, float | None]) -> Optimum | None:
    """The optimum as the results have it, or None while they hold fewer than three levels."""
    frame = observations(spec, results)
    if frame["lambda"].nunique() < 3:
        return None
    ladder = [level / spec.search.ladder for level in range(spec.search.ladder + 1)]
    return locate(frame, ladder, spec.objective.practical)


def decide(spec: SweepSpec, results: Mapping[Point, float | None]) -> Decision:
    """Replay the rounds over `results` (None: the trial failed) and say what is outstanding or why to stop."""
    search, visited, batch = spec.search, [], anchors(spec)
    while True:
        visited += batch
        if missing := [point for point in batch if point not in results]:
            return Decision(missing, visited, None)
        known = {point: results[point] for point in visited}
        optimum = estimate(spec, known)
        if optimum is None:
            return Decision([], visited, "fewer than three levels of lambda could be trained")
        if reason := _enough(spec, optimum):
            return Decision([], visited, reason)
        tried = {point.level for point in visited}
        left = [level for level in range(search.ladder + 1) if level not in tried]
        room = (search.max_trials - len(visited)) // len(search.seeds)
        if not left or not room:
            spent = f"max_trials {search.max_trials} are spent" if left else "every level of the ladder is tried"
            return Decision([], visited, spent)
        ranked = sorted(left, key=lambda level: (-float(optimum.p_argmin.iloc[level]), level))
        chosen = sorted(ranked[: min(search.levels_per_round, room)])
        batch = [Point(level, seed) for seed in search.seeds for level in chosen]


def _enough(spec: SweepSpec, optimum: Optimum) -> str | None:
    low, high = optimum.ci95
    if optimum.verdict == "flat":
        return f"the curve is flat: differences are below {spec.objective.practical:g} nats"
    if optimum.verdict != "undetermined" and high - low <= spec.search.ci_width:
        return f"the 95% interval of lambda* is {high - low:.3f} wide, at most {spec.search.ci_width:g} was asked for"
    return None
