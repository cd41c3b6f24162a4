"""What the next runs would teach, per token: how much of the doubt about the best level they would take away.

The posterior's own draws say what a run may return, and the best linear predictor from that return says how it would
narrow the answers: where the least loss is, and which levels, of whichever choice, still may beat the best one. No future
is simulated, so nothing is noisy but the draws, which are thousands. Dividing by the tokens that must truly be trained
makes a run whose pretraining is already there cheap, as it is.

A seed's first run teaches nothing, for its offset is free; a new seed therefore enters with two levels at once, and
what it returns is their difference. Where several losses matter, a run returns all of them, and what it teaches is the
sum of what it teaches about each: a frontier of two reaches from where one is least to where the other is. That the
same run cannot be run twice to any use, for training is deterministic, needs no rule: it is no candidate.

Source: linear Bayes, Goldstein and Wooff, Bayes Linear Statistics, 2007, chapter 3; of the designs that it allows, each run
is the greedy next one.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import combinations

import numpy as np
from scipy.special import stdtr

from ee_ray.curve import NOISES, Curve, noise_covariance, own_sd, smooth_covariance
from ee_ray.kernels import JITTER, Array, Indices

DRAWS = 2000  # of the posterior: a share r of explained variance is then known to 2 sqrt(r) (1 - r) / sqrt(2000)
LEVELS = 33  # of lambda, on which rivals are counted
# Degrees of freedom of the tail by which a level may still beat the best. The posterior is a mixture of narrow and wide
# ones: a normal tail would never look for a valley between two anchors, three degrees look for one far too long.
TAIL = 7.0
SAME_GAIN = 9  # decimals of the largest gain: closer candidates are equal, and the first of them is taken
PAIRED_LEVELS = 17  # of a new seed: 136 pairs for each choice; a ladder of 256 would make 32,896

Run = tuple[int, int]  # place, seed; place = choice * (levels of the ladder) + level


class _Doubt:
    """Draws of the answers and of what every open run may return, both less what the runs chosen so far would explain.

    gaps      (C * LEVELS,) posterior mean of how much more each choice loses at each level than the best of all does
    answers   (DRAWS, C * LEVELS + 1) the same in each draw, and the argmin; centred
    returns   by seed (DRAWS, places): losses that its runs may return, but for a constant where it has not begun; centred
    """

    def __init__(self, curve: Curve, ladder: Array, fresh: int | None):
        pick = np.linspace(0, len(curve.draws) - 1, DRAWS).astype(int)
        some = np.linspace(0, len(curve.grid) - 1, LEVELS).astype(int)
        choice, best = np.unravel_index(curve.means.argmin(), curve.means.shape)
        above = curve.every[pick][:, :, some] - curve.every[pick, choice, best][:, None, None]
        self.gaps = (curve.means[:, some] - curve.means.min()).ravel()
        argmin = curve.grid[curve.draws[pick].argmin(axis=1)]
        self.answers = _centred(np.column_stack([above.reshape(DRAWS, -1), argmin]))
        self.begun = {int(seed) for seed in curve.seen["seed"]}
        seeds = [*sorted(self.begun), *([] if fresh is None else [fresh])]
        expected = curve.every[pick][:, :, curve.at(ladder)].reshape(DRAWS, -1)
        self.returns = {seed: _centred(_returns(curve, ladder, pick, expected, seed)) for seed in seeds}

    def of(self, runs: tuple[Run, ...]) -> Array:
        """What is seen of f when these are run: a loss, or of a new seed the difference of two."""
        first, *second = [self.returns[seed][:, place] for place, seed in runs]
        return first - second[0] if second else first

    def falls(self, candidates: Sequence[tuple[Run, ...]]) -> Array:
        """By how much each candidate would lower the doubt (in its logarithm, >= 0)."""
        seen = np.column_stack([self.of(runs) for runs in candidates])
        variance = (self.answers**2).mean(axis=0)
        shared = seen.T @ self.answers / len(seen)
        explained = shared**2 / np.maximum(np.einsum("ij,ij->j", seen, seen) / len(seen), 1e-18)[:, None]
        return np.asarray(self._left(variance) - self._left(variance - explained))

    def _left(self, variance: Array) -> Array:
        """Logarithm of: how many rivals there would be if the means stayed where they are, times the sd of the argmin.

        Either alone does worse (docs/decisions.md): the second pays for what is seen far off, the first ends the doubt
        about levels that are near the best.
        """
        sd = np.sqrt(np.maximum(variance, 1e-16))
        rivals = stdtr(TAIL, -self.gaps / sd[..., :-1]).sum(axis=-1)
        return np.asarray(np.log(rivals) + np.log(sd[..., -1]))

    def take(self, runs: tuple[Run, ...]) -> None:
        """These will be run: what they explain is no doubt any more."""
        seen = self.of(runs)
        unit = seen / np.sqrt((seen**2).mean())
        self.answers = self.answers - np.outer(unit, unit @ self.answers / len(unit))
        for losses in self.returns.values():  # in place: with many choices and seeds they are hundreds of MB
            losses -= np.outer(unit, unit @ losses / len(unit))
        if len(runs) == 2:  # from here on the seed's offset is known from its first run
            place, seed = runs[0]
            self.returns[seed] -= self.returns[seed][:, [place]]
            self.begun.add(seed)


def _centred(draws: Array) -> Array:
    return np.asarray(draws - draws.mean(axis=0))


def _returns(curve: Curve, ladder: Array, pick: Indices, expected: Array, seed: int) -> Array:
    """(DRAWS, places): what a seed's runs may return, given what it has shown. The offset, of which nothing is known, drops
    out of a begun seed's by weights that sum to one (ordinary kriging), and is left out of a new one's."""
    levels = np.tile(ladder, expected.shape[1] // len(ladder))
    mine = (curve.seen["seed"] == seed).to_numpy()
    at, losses = curve.places(ladder)[mine], curve.seen["loss"].to_numpy(float)[mine]
    noise = _noise(curve, ladder, pick, np.random.default_rng([3, seed]))
    if not len(at):
        return np.asarray(expected + noise)
    residual = losses - expected[:, at] - noise[:, at]
    returns = expected + noise
    for kind in np.unique(curve.kind[pick]):
        covariance = noise_covariance(kind, levels)
        precision = np.linalg.inv(covariance[np.ix_(at, at)])
        weights, ones = covariance[:, at] @ precision, precision.sum(axis=0)
        weights += np.outer(1 - weights.sum(axis=1), ones / ones.sum())
        rows = curve.kind[pick] == kind
        returns[rows] += residual[rows] @ weights.T
    return np.asarray(returns)


def _noise(curve: Curve, ladder: Array, pick: Indices, rng: np.random.Generator) -> Array:
    """(DRAWS, places): noise of one seed's runs, by the kind and sigma of each draw. Its smooth part is the seed's own, and
    so the same for all choices."""
    lower = np.linalg.cholesky(smooth_covariance(ladder) + JITTER * np.eye(len(ladder)))
    own, smooth = rng.standard_normal((DRAWS, len(curve.means), len(ladder))), rng.standard_normal((DRAWS, len(ladder)))
    sd = np.stack([own_sd(kind, ladder) for kind in range(len(NOISES))])[curve.kind[pick]]
    smooth_sd = np.array([smooth for _, _, smooth, _ in NOISES])[curve.kind[pick]]
    noise = own * sd[:, None] + (smooth_sd[:, None] * (smooth @ lower.T))[:, None]
    return np.asarray(curve.sigma[pick, None] * noise.reshape(DRAWS, -1))


def choose(
    curves: Sequence[Curve],
    ladder: Array,
    open_runs: Sequence[Run],
    count: int,
    cost: Callable[[tuple[Run, ...]], float],
) -> list[Run]:
    """The next runs, at most `count` (or one more, where a new seed enters with two), best first, one after another:
    each choice knows of those before it, not of their losses.

    curves: of each loss that matters, fitted to the same runs.  ladder: the levels of lambda, ascending.
    open_runs: those that may still be trained.
    cost: of one run or of two together, above 0, in any unit, such as tokens that they must train.
    """
    left = sorted(open_runs, key=lambda run: (run[1], run[0]))
    begun = {int(seed) for seed in curves[0].seen["seed"]}
    doubts = [_Doubt(curve, ladder, _new_seed(left, begun)) for curve in curves]
    begun, known = doubts[0].begun, doubts[0].returns
    chosen: list[Run] = []
    while len(chosen) < count and (candidates := list(_candidates(left, begun, known, len(ladder)))):
        falls = np.sum([doubt.falls(candidates) for doubt in doubts], axis=0)
        gains = falls / [cost(runs) for runs in candidates]
        taken = candidates[int(np.argmax(_rounded(gains)))]
        for doubt in doubts:
            doubt.take(taken)
        chosen += taken
        left = [run for run in left if run not in taken]
    return chosen


def _rounded(gains: Array) -> Array:
    """Gains relative to the largest, so that rounding in the last bits decides nothing."""
    return np.asarray(np.round(gains / max(gains.max(), 1e-300), SAME_GAIN))


def _new_seed(left: Sequence[Run], begun: Collection[int]) -> int | None:
    """The first seed that has not begun and may still do so, with two runs."""
    seeds = [seed for _, seed in left]
    return next((seed for seed in seeds if seed not in begun and seeds.count(seed) > 1), None)


def _candidates(
    left: Sequence[Run], begun: Collection[int], known: Collection[int], levels: int
) -> Iterator[tuple[Run, ...]]:
    """Single runs of seeds that have begun, and pairs of runs of one of `known` that has not: two levels of one choice, or
    one level of two choices, which may share their pretraining."""
    yield from ((run,) for run in left if run[1] in begun)
    runs = [run for run in left if run[1] in known and run[1] not in begun]
    open_levels = sorted({place % levels for place, _ in runs})
    spread = np.unique(np.linspace(0, max(len(open_levels) - 1, 0), PAIRED_LEVELS).round().astype(int))
    tried = {open_levels[i] for i in spread if open_levels}
    for one, other in combinations([run for run in runs if run[0] % levels in tried], 2):
        if one[0] // levels == other[0] // levels or one[0] % levels == other[0] % levels:
            yield one, other
