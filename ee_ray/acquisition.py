"""What the next runs would teach, per token: the expected information about the best level, by simulation.

For each candidate run the posterior's own curves say which loss it might return and how that loss would change their
weights. What is gained is the expected fall in entropy of the answers: which level of the ladder is best, whether the
best level beats lambda = 0 and lambda = 1, and, among several choices, whether another's best beats the leading one's.
Dividing by the tokens that must truly be trained makes a run whose
pretraining is already there cheap, as it is.

A seed's first run teaches nothing, for its offset is free; a new seed therefore enters with two levels at once. That
the same run cannot be run twice to any use, for training is deterministic, needs no rule: it is no candidate.

Source: Hennig and Schuler, Entropy Search for Information-Efficient Global Optimization, JMLR 13, 2012; the particles
of the posterior stand in for its approximations.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from ee_ray.curve import NOISES, Curve, noise_covariance
from ee_ray.kernels import Array

PARTICLES = 500  # curves that are weighed
FANTASIES = 32  # losses that each candidate might return
SAME_GAIN = 9  # decimals of the largest gain: closer candidates are equal, and the first of them is taken
PAIRED_LEVELS = 17  # of a new seed: 136 pairs; a ladder of 256 would make 32,896, and a choice of 23 s

Run = tuple[int, int]  # place, seed; place = choice * (levels of the ladder) + level


@dataclass
class _History:
    """What one seed has shown: its places, and its losses in every fantasy (FANTASIES, h)."""

    places: list[int] = field(default_factory=list)
    losses: list[Array] = field(default_factory=list)


class _Imagined:
    """FANTASIES futures, each of them with weights over PARTICLES curves; runs that are chosen become part of it."""

    def __init__(self, curve: Curve, ladder: Array):
        pick = np.linspace(0, len(curve.draws) - 1, PARTICLES).astype(int)
        at, choices = curve.at(ladder), len(curve.means)
        every = curve.every[pick][:, :, at]
        self.curves = every.reshape(PARTICLES, -1)
        self.sigma, self.kind = curve.sigma[pick], curve.kind[pick]
        self.noise = np.stack([noise_covariance(kind, np.tile(ladder, choices)) for kind in range(len(NOISES))])
        self.truth = np.linspace(0, PARTICLES - 1, FANTASIES).astype(int)
        self.log_weight = np.zeros((FANTASIES, PARTICLES))
        least, lows = every.min(axis=1), every.min(axis=2)
        beaten = least[:, [0, -1]] > least[:, [int(curve.mean[at].argmin())]]
        rival = np.delete(lows < lows[:, [curve.leading]], curve.leading, axis=1)
        answers = [np.eye(len(ladder))[least.argmin(axis=1)], beaten, ~beaten, rival, ~rival]
        self.answers = np.concatenate(answers, axis=1).astype(float)
        self.histories: dict[int, _History] = {}
        for seed, place, loss in zip(curve.seen["seed"], curve.places(ladder), curve.seen["loss"], strict=True):
            history = self.histories.setdefault(int(seed), _History())
            history.places.append(int(place))
            history.losses.append(np.full(FANTASIES, loss))

    def kriged(self, places: list[int], place: int) -> tuple[Array, Array]:
        """By kind of noise: weights (N, h) of a seed's residuals in the prediction of its next one, which sum to one
        since the offset is unknown, and the variance (N,) of that prediction for sigma = 1."""
        covariance = self.noise[:, places][:, :, places]
        precision, cross = np.linalg.inv(covariance), self.noise[:, places, place]
        weights = np.einsum("nij,nj->ni", precision, cross)
        ones = precision.sum(axis=1)
        short, total = 1 - weights.sum(axis=1), ones.sum(axis=1)
        variance = self.noise[:, place, place] - (cross * weights).sum(axis=1) + short**2 / total
        return weights + ones * (short / total)[:, None], variance

    def imagine(self, run: Run, log_weight: Array, history: _History) -> tuple[Array, _History]:
        """Weights after `run`, and its seed's history with the loss that each fantasy gives it."""
        place, z = run[0], np.random.default_rng([*run]).standard_normal(FANTASIES)
        if history.places:
            weights, variance = self.kriged(history.places, place)
            of = weights[self.kind]  # (PARTICLES, h)
            expected = self.curves[:, place] - (of * self.curves[:, history.places]).sum(axis=1)
            mean = np.stack(history.losses, axis=1) @ of.T + expected
            sd = self.sigma * np.sqrt(variance)[self.kind]
            told = mean[np.arange(FANTASIES), self.truth] + sd[self.truth] * z
            log_weight = log_weight - 0.5 * ((told[:, None] - mean) / sd) ** 2 - np.log(sd)
        else:
            told = self.curves[self.truth, place] + self.sigma[self.truth] * z
        return log_weight, _History([*history.places, place], [*history.losses, told])

    def after(self, runs: Iterable[Run]) -> tuple[Array, dict[int, _History]]:
        log_weight, histories = self.log_weight, dict(self.histories)
        for run in runs:
            log_weight, histories[run[1]] = self.imagine(run, log_weight, histories.get(run[1], _History()))
        return log_weight, histories

    def doubt(self, log_weight: Array) -> float:
        """Expected entropy of the answers, nats."""
        weight = np.exp(log_weight - log_weight.max(axis=1, keepdims=True))
        weight /= weight.sum(axis=1, keepdims=True)
        chances = weight @ self.answers
        return float(-(chances * np.log(np.maximum(chances, 1e-12))).sum(axis=1).mean())


def choose(
    curve: Curve, ladder: Array, open_runs: Sequence[Run], count: int, cost: Callable[[Run], float]
) -> list[Run]:
    """The next runs, at most `count` (or one more, where a new seed enters with two), best first, one after another:
    each choice knows of those before it, not of their losses.

    ladder: the levels of lambda, ascending.  open_runs: those that may still be trained.
    cost: of a run, above 0, in any unit, such as tokens that it must train.
    """
    imagined = _Imagined(curve, ladder)
    chosen: list[Run] = []
    left = sorted(open_runs, key=lambda run: (run[1], run[0]))
    while len(chosen) < count and left:
        doubt = imagined.doubt(imagined.log_weight)
        candidates = list(_candidates(left, imagined.histories))
        if not candidates:
            break
        # Few fantasies may call a gain negative, which dividing by a small cost would make much of.
        falls = [max(doubt - imagined.doubt(imagined.after(runs)[0]), 0.0) for runs in candidates]
        gains = [fall / sum(map(cost, runs)) for fall, runs in zip(falls, candidates, strict=True)]
        taken = candidates[int(np.argmax(_rounded(gains)))]
        imagined.log_weight, imagined.histories = imagined.after(taken)
        chosen += taken
        left = [run for run in left if run not in taken]
    return chosen


def _rounded(gains: Sequence[float]) -> Array:
    """Gains relative to the largest, so that rounding in the last bits decides nothing."""
    return np.round(np.asarray(gains) / max(max(gains), 1e-300), SAME_GAIN)


def _candidates(left: Sequence[Run], histories: Mapping[int, _History]) -> Iterable[tuple[Run, ...]]:
    """Single runs of seeds that have begun, and pairs of runs of the first that has not."""
    seeds = [seed for _, seed in left]
    fresh = [seed for seed in dict.fromkeys(seeds) if seed not in histories and seeds.count(seed) > 1]
    for run in left:
        if run[1] in histories:
            yield (run,)
    if fresh:
        runs = [run for run in left if run[1] == fresh[0]]
        spread = np.unique(np.linspace(0, len(runs) - 1, PAIRED_LEVELS).round().astype(int))
        yield from combinations([runs[i] for i in spread], 2)
