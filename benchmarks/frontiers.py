"""A frontier of several losses: what fitted curves say of it, and where runs lower the doubt about them most. On trial.

Each loss has its own fitted curve over the levels, independent given the runs, so that draws of all of them are draws of
the whole frontier. The answer is every level that lies on it with a probability of MAY or more: one that is left out and
belongs costs what only it could reach, one too many costs a run that is nearly as good. It may be wrong by two sizes, in nats:

    short   by how much some level is better than the answer's: the least by which all losses of the answer's levels would
            have to fall so that every level has one of them that is nowhere worse
    over    by how much a level of the answer is beaten, in all losses at once, by another

Sources: Zitzler, Thiele, Laumanns, Fonseca and da Fonseca, Performance Assessment of Multiobjective Optimizers, IEEE
Transactions on Evolutionary Computation 7, 2003 (the additive epsilon indicator); Krause, Singh and Guestrin, Near-Optimal
Sensor Placements in Gaussian Processes, JMLR 9, 2008.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from truths import Array

from ee_ray.curve import NOISES, Curve, noise_covariance

FRONTS = 1000  # joint draws of all losses
MAY = 0.2
SAME = 1e-4  # nats; closer losses are not told apart
SETTLED = (
    0.2  # weight of a level that surely is, or is not, on the frontier, over that of one of which nothing is known
)

Run = tuple[int, int]  # level, seed


@dataclass(frozen=True)
class Found:
    """Of p levels and k losses: posterior means (p, k); probability to lie on the frontier, and whether in the answer, (p,);
    95% quantiles of `short` and `over`, nats."""

    means: Array
    chance: Array
    chosen: Array
    short: float
    over: float


def on_frontier(losses: Array) -> Array:
    """(..., p): whether no other of p levels is lower in all losses (..., p, k)."""
    beaten = np.zeros(losses.shape[:-1], bool)
    for level in range(losses.shape[-2]):
        beaten |= (losses[..., [level], :] < losses - SAME).all(axis=-1)
    return ~beaten


def distances(losses: Array, chosen: Array) -> tuple[Array, Array]:
    """short and over of the chosen levels, of losses (n, p, k), (n,) each."""
    short, over = np.full(losses.shape[:2], np.inf), np.zeros(len(losses))
    for level in np.flatnonzero(chosen):
        worse = losses[:, [level]] - losses
        short = np.minimum(short, worse.max(axis=-1))
        over = np.maximum(over, worse.min(axis=-1).max(axis=-1))
    return short.max(axis=-1).clip(0.0), over


def read(curves: Sequence[Curve], ladder: Array) -> Found:
    rng = np.random.default_rng(2)
    picked = [curve.draws[rng.permutation(len(curve.draws))[:FRONTS]][:, curve.at(ladder)] for curve in curves]
    draws, means = np.stack(picked, axis=-1), np.stack([curve.mean[curve.at(ladder)] for curve in curves], axis=-1)
    chance = on_frontier(draws).mean(axis=0)
    chosen = chance >= min(MAY, chance.max())
    short, over = (float(np.quantile(size, 0.95)) for size in distances(draws, chosen))
    return Found(means, chance, chosen, short, over)


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
