"""Retained loss as a smooth function of lambda, from runs in paired seeds: a Gaussian process, fitted in closed form.

One seed is one initialisation and one data order, used at every lambda, so its losses share an offset that says nothing
about lambda. The model of the losses of seed s at its levels x, in nats, is

    loss_s(x) = f(x) + offset_s + sigma * e_s(x),    f a Gaussian process over lambda.

* Offsets have a flat prior (fixed effects): they are projected out, so adding a constant to a seed changes nothing.
* f has a Matern-5/2 kernel on a warped lambda. Real curves fall steeply in the first percents of early exposure and
  hardly move later. A stationary process must explain that with a short length scale everywhere, which blurs the flat
  part where the minimum lies, or, worse, is sure of a minimum in the wrong place. So the axis may be stretched near
  0, near 1, near both, or not at all, and the data say which.
* e_s is the noise of runs, of one of a few kinds (NOISES): the same everywhere; larger near an end, as forgetting is
  after no early exposure; or with a smooth part, a seed that likes early exposure more than others do. Ignoring
  the last kind would take three seeds with one quirk each for three times as many facts.
* Length scale, warp, kind of noise and signal-to-noise ratio are summed over a grid with weak priors, and sigma is
  integrated in closed form (inverse gamma): none is a point estimate. One seed alone can never tell noise from wiggle;
  then these priors keep the noise away from zero and the answer stays wide.

Everything is linear algebra on the levels (at most tens), whatever the number of observations. Draws come from a
generator with a fixed seed, so equal observations give equal answers.

Source: Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, chapters 2.7 and 5.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

DRAWS = 4000  # posterior curves; a probability of 0.95 is then known to 0.0035
FINE_STEPS = 128  # the fine grid divides [0, 1] so, and takes in every ladder and observed level too
SAME_LEVEL = 9  # decimals: levels closer than 1e-9 are one level
JITTER = 1e-8  # relative variance added to factorise smooth kernels; 1e-4 of the sd of f

# Priors. Lambda spans 1, losses bend on that scale: length scale log-normal, median 0.75, a factor 2 either way.
LENGTHS = (0.15, 0.25, 0.4, 0.65, 1.0, 1.6, 2.5)
LENGTH_MEDIAN, LENGTH_LOG_SD = 0.75, 0.7
# sd of f over sd of the noise: median 8, a factor 7 either way (the effects of the paper's Figure 3 over noise 0.006).
RATIOS = np.exp2(np.arange(-3.0, 10.0))
RATIO_MEDIAN, RATIO_LOG_SD = 8.0, 2.0
# (stretch at 0, stretch at 1, prior weight): stretch k makes the axis 1 + k times longer at that end than at the other.
WARPS = ((0.0, 0.0, 0.45), (8.0, 0.0, 0.2), (40.0, 0.0, 0.05), (0.0, 8.0, 0.15), (8.0, 8.0, 0.15))
# No curve is as smooth as its kernel: f also wiggles by this part of its sd, over this much of lambda. It moves nothing
# where f bends, and keeps a level bottom from being sure of one point in it.
WIGGLE, WIGGLE_LENGTH = 0.05, 0.2
# f may jump once, by about its sd, anywhere: some step of exposure may switch a capability on. The weight is against
# 1 for all smooth kernels together.
JUMPS, JUMP_LENGTHS, JUMP_WEIGHT = 16, (0.5, 1.0, 2.0), 0.1
# (sd at 0, sd at 1, sd of the part that is smooth in lambda, all relative to sigma; prior weight).
NOISES = (
    (1.0, 1.0, 0.0, 0.35), (4.0, 1.0, 0.0, 0.12), (1.0, 3.0, 0.0, 0.06),
    (1.0, 1.0, 1.5, 0.15), (1.0, 1.0, 5.0, 0.20), (4.0, 1.0, 3.0, 0.12),
)  # fmt: skip
NEAR_END = 6.0  # the noise of an end falls off as its logarithm times (1 - distance)^6: a quarter away it is a sixth
SMOOTH_LENGTH = 0.6  # of the smooth part of a seed's noise, squared-exponential
# The noise prior is worth one observation, of this size: a part of the spread within seeds plus a part of `practical`.
NOISE_OF_SPREAD, NOISE_OF_PRACTICAL = 0.05, 0.3


@dataclass(frozen=True, eq=False)
class Curve:
    """What is known of f. Losses in nats. f is known up to a constant, which drops out of every difference.

    grid    (g,) levels of lambda
    mean    (g,) exact posterior mean of f
    draws   (DRAWS, g) joint posterior draws of f
    sigma   (DRAWS,) the sigma of each draw
    kind    (DRAWS,) the kind of noise of each draw, an index into NOISES
    seen    the observations, sorted: columns lambda, seed, loss
    """

    grid: Array
    mean: Array
    draws: Array
    sigma: Array
    kind: Indices
    seen: pd.DataFrame

    def at(self, levels: Array) -> Indices:
        """Where on the grid these levels are."""
        return np.searchsorted(self.grid, np.round(levels, SAME_LEVEL))

    def rungs(self, ladder: Array) -> Indices:
        """For each observation, which level of the ladder it is of."""
        return np.searchsorted(ladder.round(SAME_LEVEL), self.seen["lambda"])

    def noise(self, levels: Array) -> Array:
        """(DRAWS, len(levels)): sd of one run about its seed's shifted f, in each draw."""
        sd = np.sqrt([np.diag(noise_covariance(kind, levels)) for kind in range(len(NOISES))])
        return np.asarray(self.sigma[:, None] * sd[self.kind])


def fit(rows: pd.DataFrame, levels: Array, practical: float) -> Curve:
    """The posterior of f over a fine grid that holds `levels` and every observed level.

    rows: columns lambda in [0, 1], seed, loss in nats; finite, one row per (lambda, seed), levels rounded to SAME_LEVEL.
    practical: smallest difference worth caring about, nats; a part of it is the scale of the noise prior.
    """
    rows = rows.sort_values(["seed", "lambda"], ignore_index=True)
    observed = np.unique(rows["lambda"].to_numpy(float))
    even = np.linspace(0, 1, FINE_STEPS + 1)
    grid = np.unique(np.round(np.concatenate([even, levels, observed]), SAME_LEVEL))
    data = [_reduce(rows, observed, kind) for kind in range(len(NOISES))]
    within = (NOISE_OF_SPREAD**2) * data[0].spread / max(data[0].dof, 1)
    prior_variance = within + (NOISE_OF_PRACTICAL * practical) ** 2
    kernels = _kernels(tuple(grid))
    post = _condition(data, kernels, np.searchsorted(grid, observed), prior_variance)
    weight = np.exp(post.log_weight - post.log_weight.max())
    weight /= weight.sum()
    # Systematic allocation: a cell gets its share of the draws to within one, with no sampling error.
    counts = np.diff(np.round(np.append(0.0, np.cumsum(weight)) * DRAWS)).astype(int)
    cell = np.stack(np.unravel_index(np.repeat(np.arange(weight.size), counts), weight.shape))
    draws, sigma = _draw(post, kernels, cell, data[0].dof + 1)
    at_levels = np.einsum("knr,knrm->km", weight, post.mean)
    mean = np.einsum("kgm,km->g", post.to_grid, at_levels)
    return Curve(grid, mean, draws, sigma, cell[1].astype(np.intp), rows)


def noise_covariance(kind: int, levels: Array) -> Array:
    """(m, m): covariance of one seed's noise at these levels, for sigma = 1."""
    at_0, at_1, smooth, _ = NOISES[kind]
    sd = np.exp(np.log(at_0) * (1 - levels) ** NEAR_END + np.log(at_1) * levels**NEAR_END)
    distance = (levels[:, None] - levels[None, :]) / SMOOTH_LENGTH
    return np.asarray(np.diag(sd**2) + smooth**2 * np.exp(-0.5 * distance**2))


# 1. The data, with the seed offsets projected out.


@dataclass(frozen=True)
class _Reduced:
    """All that the likelihood needs of n losses, for one kind of noise. With C the noise covariance for sigma = 1, P the
    precision that is left of C once every seed's offset is projected out, Z the (n, m) incidence of the m levels:
    information = Z'PZ (m, m), score = Z'P loss (m), spread = loss'P loss, log_density = -log(|C| |1'C^-1 1|) / 2."""

    levels: Array
    kind: int
    information: Array
    score: Array
    spread: float
    log_density: float
    dof: int


def _reduce(rows: pd.DataFrame, levels: Array, kind: int) -> _Reduced:
    information, score = np.zeros((len(levels), len(levels))), np.zeros(len(levels))
    spread, log_density = 0.0, 0.0
    for _, seed in rows.groupby("seed"):
        at, loss = np.searchsorted(levels, seed["lambda"].to_numpy(float)), seed["loss"].to_numpy(float)
        covariance = noise_covariance(kind, levels[at])
        precision = np.linalg.inv(covariance)
        ones = precision.sum(axis=0)
        left = precision - np.outer(ones, ones) / ones.sum()
        loss = loss - loss.mean()  # changes nothing but rounding
        information[np.ix_(at, at)] += left
        score[at] += left @ loss
        spread += float(loss @ left @ loss)
        log_density -= 0.5 * float(np.linalg.slogdet(covariance)[1] + np.log(ones.sum()))
    return _Reduced(levels, kind, information, score, spread, log_density, len(rows) - rows["seed"].nunique())


# 2. The grid of K kernels.


@dataclass(frozen=True)
class _Kernels:
    """Covariances of f on the grid for an f of sd 1, (K, g, g), their Cholesky factors, and the log priors (K,)."""

    covariance: Array
    lower: Array
    log_prior: Array


@lru_cache(maxsize=2)
def _kernels(grid: tuple[float, ...]) -> _Kernels:
    every = list(_every_kernel(np.array(grid)))
    covariance = np.stack([covariance for covariance, _ in every])
    lower = np.linalg.cholesky(covariance + JITTER * np.eye(len(grid)))
    return _Kernels(covariance, np.asarray(lower, float), np.array([log_prior for _, log_prior in every]))


def _every_kernel(grid: Array) -> Iterator[tuple[Array, float]]:
    log_prior = _log_normal(np.array(LENGTHS), LENGTH_MEDIAN, LENGTH_LOG_SD)
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


def _log_normal(values: Array, median: float, log_sd: float) -> Array:
    """Log density, up to a constant, on a grid that is even in the logarithm."""
    return np.asarray(-0.5 * (np.log(values / median) / log_sd) ** 2)


# 3. The posterior, for K kernels, N kinds of noise and R ratios at once.


@dataclass(frozen=True)
class _Conditioned:
    """Given sigma, f at the m levels is Gaussian with mean mean[k, n, r] and square root sigma * root[k, n] @
    diag(scale[k, n, r]); sigma follows the sum of squares residual[k, n, r]. to_grid[k] @ (f at the levels) is the
    mean of f on the grid."""

    at: Indices  # (m,) where on the grid the levels are
    to_grid: Array  # (K, g, m)
    root: Array  # (K, N, m, m)
    basis: Array  # (K, N, m, m) the eigenvectors that root ends in
    mean: Array  # (K, N, R, m)
    scale: Array  # (K, N, R, m)
    residual: Array  # (K, N, R)
    log_weight: Array  # (K, N, R)


def _condition(data: list[_Reduced], kernels: _Kernels, at: Indices, prior_variance: float) -> _Conditioned:
    """With information d in the eigenbasis of the kernel at the levels, the marginal likelihood is
    prod (1 + ratio^2 d)^-1/2  *  residual^-(dof + 1)/2 ; the 1 is the noise prior's one observation."""
    information, score = np.stack([x.information for x in data]), np.stack([x.score for x in data])
    spread, log_density = np.array([[x.spread] for x in data]), np.array([[x.log_density] for x in data])
    between = kernels.covariance[:, at[:, None], at] + JITTER * np.eye(len(at))
    lower = np.linalg.cholesky(between)
    d, basis = np.linalg.eigh(lower.transpose(0, 2, 1)[:, None] @ information @ lower[:, None])
    root = lower[:, None] @ basis
    along = np.einsum("knij,ni->knj", root, score)
    growth = 1 + RATIOS[:, None] ** 2 * np.maximum(d, 0.0)[:, :, None]
    shrink = RATIOS[:, None] ** 2 / growth
    residual = prior_variance + np.maximum(spread - (shrink * along[:, :, None] ** 2).sum(axis=-1), 0.0)
    evidence = log_density - 0.5 * np.log(growth).sum(axis=-1) - 0.5 * (data[0].dof + 1) * np.log(residual)
    kinds = np.log([[weight] for *_, weight in NOISES])
    prior = kernels.log_prior[:, None, None] + kinds + _log_normal(RATIOS, RATIO_MEDIAN, RATIO_LOG_SD)
    return _Conditioned(
        at=at,
        to_grid=np.asarray(np.linalg.solve(between, kernels.covariance[:, at]).transpose(0, 2, 1), float),
        root=root,
        basis=np.asarray(basis, float),
        mean=(shrink * along[:, :, None]) @ root.transpose(0, 1, 3, 2),
        scale=np.sqrt(shrink),
        residual=residual,
        log_weight=prior + evidence,
    )


def _draw(post: _Conditioned, kernels: _Kernels, cell: Indices, dof: int) -> tuple[Array, Array]:
    """A curve on the grid (n, g) and a sigma (n,) for each column (kernel, kind, ratio) of `cell` (3, n), sorted by
    kernel. Curves are drawn from the prior, then moved so as to meet a draw of the posterior at the levels."""
    rng = np.random.default_rng(0)
    kernel, kind, ratio = cell
    n, g = len(kernel), kernels.lower.shape[1]
    sigma = np.sqrt(post.residual[kernel, kind, ratio] / rng.chisquare(dof, n))
    # Eigenvectors have no sign of their own, and libraries differ in it: turned back by them, a draw does not know it.
    normal = np.einsum("nji,nj->ni", post.basis[kernel, kind], rng.standard_normal((n, len(post.at))))
    spread = np.einsum("nij,nj->ni", post.root[kernel, kind], post.scale[kernel, kind, ratio] * normal)
    target = post.mean[kernel, kind, ratio] + sigma[:, None] * spread
    curves = rng.standard_normal((n, g)) * (sigma * RATIOS[ratio])[:, None]
    for k in np.unique(kernel):
        rows = slice(*np.searchsorted(kernel, [k, k + 1]))
        prior = curves[rows] @ kernels.lower[k].T
        curves[rows] = prior + (target[rows] - prior[:, post.at]) @ post.to_grid[k].T
    return curves, sigma
