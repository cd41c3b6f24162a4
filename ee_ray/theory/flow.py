"""Gradient flow of theta = W1 W2 when every task has the same singular vectors: one equation for each singular value.

A task is a regression y = A x + noise. In the shared basis it says two numbers about each feature: the covariance c of
the input along it, and its correlation m with the output. From balanced weights that are diagonal in that basis the
squared loss moves each singular value s of theta by itself (Saxe et al. 2014),

    ds/dt = 2 s (m - c s),

so that s grows as exp(2 m t) from its small start exp(-2 T) and settles at m / c. A feature is learned at about
t = T / m: in descending order of m. Where c = 0, as for a specialized feature under D_pre and D_ft, it does not move.

Shapes: features last; anything before them (mixing fractions, worlds) broadcasts. Times are in units of 1/(rate x m).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
INVARIANT, INCONSISTENT, SPECIALIZED = "invariant", "inconsistent", "specialized"


@dataclass(frozen=True)
class Task:
    """What one distribution says about each feature; both arrays (..., features), m = 0 wherever c = 0."""

    correlation: Floats
    covariance: Floats


@dataclass(frozen=True)
class World:
    """Three tasks over the same features, and where training starts: both layers at exp(-log_scale) in the shared basis."""

    pre: Task
    post: Task
    ft: Task
    kinds: tuple[str, ...]
    c_mis: float
    log_scale: float

    def of(self, kind: str) -> NDArray[np.bool_]:
        """Which features are of a kind: (features,)."""
        return np.array([k == kind for k in self.kinds])

    @property
    def betas(self) -> Floats:
        """Singular values of the specialized features under D_post."""
        return self.post.correlation[self.of(SPECIALIZED)]

    @property
    def start(self) -> Floats:
        """Singular values of theta before any training."""
        return np.full(len(self.kinds), np.exp(-2 * self.log_scale))


def whitened(values: Floats, seen: Floats) -> Task:
    """A task of unit covariance along the features it has (`seen` is 1 there, 0 elsewhere)."""
    return Task(values * seen, seen.astype(float))


def mixture(pre: Task, post: Task, alpha: float | Floats) -> Task:
    """The task of data that are a fraction alpha of `post`, else `pre`: moments of a mixture are mixtures of moments.

    A specialized feature gets m = alpha beta and c = alpha: it grows as one of singular value alpha beta would, and
    settles at beta. The paper speaks of the "effective value alpha beta"; see `settling_lower` for its other reading.
    """
    return Task(
        (1 - alpha) * pre.correlation + alpha * post.correlation,
        (1 - alpha) * pre.covariance + alpha * post.covariance,
    )


def settling_lower(task: Task) -> Task:
    """The other reading of the effective value: unit covariance wherever there is any, so it also settles at alpha beta."""
    return Task(task.correlation, (task.covariance > 0).astype(float))


def flow(task: Task, start: Floats, time: float | Floats) -> Floats:
    """Singular values after `time` on `task`; the exact solution, for m = 0 and c = 0 too."""
    m, c = task.correlation, task.covariance
    decay = np.exp(-2 * m * time)
    with np.errstate(divide="ignore", invalid="ignore"):
        grown = np.where(m > 0, -np.expm1(-2 * m * time) / m, 2 * time)
    values: Floats = start / (decay + c * start * grown)
    return values


def losses(task: Task, values: Floats) -> Floats:
    """Each feature's part of the loss above the noise floor: c (m / c - s)^2 / 2, zero where c is."""
    m, c = task.correlation, task.covariance
    return 0.5 * np.where(c > 0, (m - c * values) ** 2 / np.where(c > 0, c, 1), 0)


def loss(task: Task, values: Floats) -> Floats:
    """Loss above the noise floor, summed over the features."""
    return np.asarray(losses(task, values).sum(axis=-1))


def half_time(task: Task, start: Floats) -> Floats:
    """When each feature reaches half of what it settles at: ln(m / (c s0) - 1) / 2m; infinite where it never grows."""
    m, c = task.correlation, task.covariance
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(m > 0, np.log(m / (c * start) - 1) / (2 * m), np.inf)


def spread_out(rng: np.random.Generator, c_mis: float, count: int) -> Floats:
    """Values of inconsistent features in the three tasks, in random order, any two more than c_mis apart: (3, count)."""
    gaps = rng.uniform([[0.1], [1.05], [1.05]], [[0.6], [1.6], [1.6]], (3, count))
    return rng.permuted(np.cumsum(gaps, axis=0) * c_mis, axis=0)


def draw_world(rng: np.random.Generator) -> World:
    """A random world: two invariant, three inconsistent, two specialized features (paper section 5's three kinds).

    The paper gives no distribution. Ours: c_mis 0.6 to 1.2, beta 0.15 to 0.475 of it, T 10 to 14.
    """
    c_mis = rng.uniform(0.6, 1.2)
    shared = rng.uniform(1, 3, 2) * c_mis
    moving = spread_out(rng, c_mis, 3)
    beta = rng.uniform(0.15, 0.475, 2) * c_mis
    kinds = (INVARIANT,) * 2 + (INCONSISTENT,) * 3 + (SPECIALIZED,) * 2
    seen, all_seen = np.array([1.0] * 5 + [0.0] * 2), np.ones(7)
    pre, post, ft = (np.concatenate([shared, moving[task], beta]) for task in range(3))
    return World(
        whitened(pre, seen), whitened(post, all_seen), whitened(ft, seen), kinds, c_mis, rng.uniform(10, 14),
    )  # fmt: skip
