"""Where runs lower the doubt about a frontier of several losses (ee_ray/tradeoff.py) most. On trial.

Source: Krause, Singh and Guestrin, Near-Optimal Sensor Placements in Gaussian Processes, JMLR 9, 2008.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from truths import Array

from ee_ray.curve import NOISES, Curve, noise_covariance

SETTLED = (
    0.2  # weight of a level that surely is, or is not, on the frontier, over that of one of which nothing is known
)

Run = tuple[int, int]  # level, seed


class _Doubt:
    """What is not known of one loss, taken as Gaussian: covariance of its curve over the levels, and of one seed's noise."""

    def __init__(self, curve: Curve, ladder: Array):
        share = np.bincount(curve.kind, curve.sigma**2, len(NOISES)) / len(curve.kind)
        self.noise = sum(part * noise_covariance(kind, ladder) for kind, part in enumerate(share))
        self.covariance = np.cov(curve.draws[:, curve.at(ladder)], rowvar=False)

    def told(self, before: list[int], level: int) -> tuple[Array, float]:
        """A run tells its loss less what its seed's runs before predict for it, offset unknown: a contrast of the curve and
        noise. How that covaries with the curve, and its variance."""
        precision, cross = np.linalg.inv(self.noise[np.ix_(before, before)]), self.noise[before, level]
        ones, weights = precision.sum(axis=0), precision @ cross
        missing = (1 - weights.sum()) / ones.sum()
        variance = self.noise[level, level] - cross @ weights + missing**2 * ones.sum()
        weights = weights + ones * missing
        covaries = self.covariance[level] - weights @ self.covariance[before]
        return covaries, float(covaries[level] - weights @ covaries[before] + variance)


def spread(curves: Sequence[Curve], chance: Array, ladder: Array, left: Sequence[Run], count: int) -> list[Run]:
    """The next runs, one after another, where the summed variance of all curves about their means falls most for each run:
    more so at levels of which it is undecided whether they lie on the frontier. A new seed enters with two runs."""
    weight = SETTLED + 4 * (1 - SETTLED) * chance * (1 - chance)
    weight = weight / weight.sum()
    doubts, begun = [_Doubt(curve, ladder) for curve in curves], dict[int, list[int]]()
    for seed, level in zip(curves[0].seen["seed"], curves[0].places(ladder), strict=True):
        begun.setdefault(int(seed), []).append(int(level))

    def fall(runs: tuple[Run, ...]) -> float:
        *first, (level, seed) = runs
        told = [doubt.told([*begun.get(seed, []), *(run[0] for run in first)], level) for doubt in doubts]
        return sum(float(weight @ (with_it - weight @ with_it) ** 2) / size for with_it, size in told) / len(runs)

    chosen: list[Run] = []
    while len(chosen) < count:
        still = [run for run in left if run not in chosen]
        fresh = next((seed for _, seed in sorted(still, key=lambda run: run[1]) if seed not in begun), None)
        pairs = combinations([run for run in still if run[1] == fresh], 2)
        taken = max([*((run,) for run in still if run[1] in begun), *pairs], key=fall)
        for level, seed in taken:
            before = begun.setdefault(seed, [])
            for doubt in doubts if before else []:
                covaries, size = doubt.told(before, level)
                doubt.covariance = doubt.covariance - np.outer(covaries, covaries) / size
            before.append(level)
        chosen += taken
    return chosen
