"""Priors over curves of lambda: covariances of the curve itself, and of what other choices do to it.

The curve has a Matern-5/2 kernel on a warped lambda. Real curves fall steeply in the first percents of early exposure and
hardly move later. A stationary process must explain that with a short length scale everywhere, which blurs the flat part
where the minimum lies, or, worse, is sure of a minimum in the wrong place. So the axis may be stretched near 0, near 1,
near both, or not at all, and the data say which.

What is chosen beside lambda (a learning rate, a dropout) adds an effect: for each of its values a curve of the same
kernel plus a constant. Where a choice makes no difference its effect is zero: at lambda = 1 nothing is left for
post-training under matched compute, so its learning rate is a choice of nothing, and matters less the nearer that is.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

JITTER = 1e-8  # relative variance added to factorise smooth kernels; 1e-4 of the sd of f

# Priors. Lambda spans 1, losses bend on that scale: length scale log-normal, median 0.75, a factor 2 either way.
LENGTHS = (0.15, 0.25, 0.4, 0.65, 1.0, 1.6, 2.5)
LENGTH_MEDIAN, LENGTH_LOG_SD = 0.75, 0.7
# (stretch at 0, stretch at 1, prior weight): stretch k makes the axis 1 + k times longer at that end than at the other.
WARPS = ((0.0, 0.0, 0.45), (8.0, 0.0, 0.2), (40.0, 0.0, 0.05), (0.0, 8.0, 0.15), (8.0, 8.0, 0.15))
# No curve is as smooth as its kernel: f also wiggles by this part of its sd, over this much of lambda. It moves nothing
# where f bends, and keeps a level bottom from being sure of one point in it.
WIGGLE, WIGGLE_LENGTH = 0.05, 0.2
# f may jump once, by about its sd, anywhere: some step of exposure may switch a capability on. The weight is against
# 1 for all smooth kernels together.
JUMPS, JUMP_LENGTHS, JUMP_WEIGHT = 16, (0.5, 1.0, 2.0), 0.1
# sd of an effect over sd of the curve: a choice may matter much less than lambda, as much, or much more.
EFFECT_SIZES = (0.25, 1.0, 4.0)


@dataclass(frozen=True)
class Effect:
    """Something chosen beside lambda. `values`: for each choice, which value it has of this. `pinned`: the ends of lambda
    (0, 1) where it makes no difference. `size`: its sd relative to that of other effects."""

    values: tuple[int, ...]
    pinned: tuple[int, ...] = ()
    size: float = 1.0


@dataclass(frozen=True)
class Component:
    """One independent part of the prior. same[c, d]: whether choices c and d share it.  values: as in `Effect`.
    covariance: (K, g, g) on the grid, and its Cholesky factors.  size: its sd, which effects scale further."""

    same: Array
    values: Indices
    covariance: Array
    lower: Array
    size: float


@dataclass(frozen=True)
class Prior:
    """K kernels for a curve of sd 1 and its effects. components[0] is the curve. sizes (S,): what effects are scaled by;
    a kernel number is k * S + s.  log_weight: (K * S,)."""

    components: tuple[Component, ...]
    sizes: Array
    log_weight: Array

    def covariance(self, choices: tuple[Indices, Indices], at: tuple[Indices, Indices]) -> Array:
        """(K * S, m, n): between places, given by choice and position on the grid, of m rows and n columns."""
        curve, *effects = (
            part.size**2 * part.same[np.ix_(*choices)] * part.covariance[:, at[0][:, None], at[1]]
            for part in self.components
        )
        every = curve[:, None] + self.sizes[:, None, None] ** 2 * sum(effect[:, None] for effect in effects)
        return np.asarray(every.reshape(-1, *every.shape[2:]))


def prior(grid: Array, effects: tuple[Effect, ...]) -> Prior:
    """The prior on a grid of lambda that begins at 0 and ends at 1."""
    return _prior(tuple(grid), effects)


@lru_cache(maxsize=2)
def _prior(grid: tuple[float, ...], effects: tuple[Effect, ...]) -> Prior:
    every = list(every_kernel(np.array(grid)))
    curve, log_prior = np.stack([covariance for covariance, _ in every]), np.array([weight for _, weight in every])
    values = [np.array(effect.values, np.intp) for effect in effects]
    shared = np.zeros(len(values[0]) if values else 1, np.intp)
    parts = [_component(shared, curve, 1.0)]
    parts += [_component(value, _pinned(curve + 1, effect.pinned), effect.size) for value, effect in zip(values, effects, strict=True)]  # fmt: skip
    sizes = np.array(EFFECT_SIZES if effects else (0.0,))
    log_weight = np.repeat(log_prior, len(sizes)) - np.log(len(sizes))
    return Prior(tuple(parts), sizes, log_weight)


def _component(values: Indices, covariance: Array, size: float) -> Component:
    same = (values[:, None] == values).astype(float)
    lower = np.linalg.cholesky(covariance + JITTER * np.eye(covariance.shape[-1]))
    return Component(same, values, covariance, np.asarray(lower, float), size)


def _pinned(covariance: Array, ends: tuple[int, ...]) -> Array:
    """The same curves, given that they are zero at these ends (0, 1) of the grid."""
    if not ends:
        return covariance
    at = [0 if end == 0 else covariance.shape[-1] - 1 for end in ends]
    cross = covariance[:, :, at]
    given = cross @ np.linalg.solve(covariance[:, at][:, :, at], cross.transpose(0, 2, 1))
    return np.asarray(covariance - given)


def every_kernel(grid: Array) -> Iterator[tuple[Array, float]]:
    """Covariances of a curve of sd 1 on the grid, each with its log prior."""
    log_prior = log_normal(np.array(LENGTHS), LENGTH_MEDIAN, LENGTH_LOG_SD)
    log_prior -= np.logaddexp.reduce(log_prior)
    wiggle = WIGGLE**2 * _matern(grid, WIGGLE_LENGTH)
    for at_0, at_1, weight in WARPS:
        for length, log_length in zip(LENGTHS, log_prior, strict=True):
            yield _matern(_warped(grid, at_0, at_1), length) + wiggle, float(np.log(weight) + log_length)
    for edge in (np.arange(JUMPS) + 0.5) / JUMPS:
        below = (grid < edge).astype(float)
        for length in JUMP_LENGTHS:
            covariance = _matern(grid, length) + np.outer(below, below) + wiggle
            yield covariance, float(np.log(JUMP_WEIGHT / JUMPS / len(JUMP_LENGTHS)))


def _matern(axis: Array, length: float) -> Array:
    r = np.sqrt(5.0) * np.abs(axis[:, None] - axis[None, :]) / length
    return np.asarray((1 + r + r**2 / 3) * np.exp(-r))


def _warped(grid: Array, at_0: float, at_1: float) -> Array:
    """[0, 1] onto [0, 1], monotone: log-stretched near 0 and near 1."""
    stretched = np.log1p(at_0 * grid) - np.log1p(at_1 * (1 - grid)) if at_0 or at_1 else grid
    return np.asarray((stretched - stretched[0]) / (stretched[-1] - stretched[0]))


def log_normal(values: Array, median: float, log_sd: float) -> Array:
    """Log density, up to a constant, on a grid that is even in the logarithm."""
    return np.asarray(-0.5 * (np.log(values / median) / log_sd) ** 2)
