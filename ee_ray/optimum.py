"""Where retained loss is least, how sure that is, and what to call it.

Replicates are paired: one seed is one initialisation and one data order, used at every lambda, so its losses share
an offset that says nothing about lambda. The model of the loss of seed s at level x, in nats, is

    loss(x, s) = f(x) + offset(s) + noise,    f a Gaussian process over lambda,    noise i.i.d. Gaussian.

* Offsets have a flat prior (fixed effects): they are projected out, so adding a constant to a seed changes nothing.
* f has a Matern-5/2 kernel on a warped lambda. Real curves fall steeply in the first percents of early exposure and
  hardly move later. A stationary process must explain that with a short length scale everywhere, which blurs the flat
  part where the minimum lies, or, worse, is sure of a minimum in the wrong place. So the axis may be stretched near
  0, near 1, near both, or not at all, and the data say which.
* Length scale, warp and signal-to-noise ratio are summed over a grid with weak log-normal priors, and the noise
  variance is integrated in closed form (inverse gamma): none is a point estimate. One seed alone can never tell noise
  from wiggle; then these priors keep the noise away from zero and the answer stays wide.

Everything is linear algebra on the levels (at most tens), whatever the number of observations. Draws come from a
generator with a fixed seed, so equal observations give equal answers, bit for bit.

Source: Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, chapters 2.7 and 5.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Array = NDArray[np.float64]
Verdict = Literal["interior", "boundary_0", "boundary_1", "flat", "undetermined"]

SURE = 0.95  # every claim below is made at this posterior probability
DRAWS = 4000  # posterior curves; a probability of 0.95 is then known to 0.0035
FINE_STEPS = 128  # the fine grid divides [0, 1] so, and takes in every ladder and observed level too

# Priors. Lambda spans 1, losses bend on that scale: length scale log-normal, median 0.75, a factor 2 either way.
LENGTHS = np.array([0.15, 0.25, 0.4, 0.65, 1.0, 1.6, 2.5])
LENGTH_MEDIAN, LENGTH_LOG_SD = 0.75, 0.7
# sd of f over sd of the noise: median 8, a factor 7 either way (the effects of the paper's Figure 3 over noise 0.006).
RATIOS = np.exp2(np.arange(-3.0, 10.0))
RATIO_MEDIAN, RATIO_LOG_SD = 8.0, 2.0
# (stretch at 0, stretch at 1, prior weight): stretch k makes the axis 1 + k times longer at that end than at the other.
WARPS = ((0.0, 0.0, 0.45), (8.0, 0.0, 0.2), (40.0, 0.0, 0.05), (0.0, 8.0, 0.15), (8.0, 8.0, 0.15))
# The noise prior is worth one observation, of this size: a part of the spread within seeds plus a part of `practical`.
NOISE_OF_SPREAD, NOISE_OF_PRACTICAL = 0.05, 0.3
SAME_LEVEL = 9  # decimals: levels closer than 1e-9 are one level
JITTER = 1e-8  # relative variance added to factorise smooth kernels; 1e-4 of the sd of f


@dataclass(frozen=True)
class Estimate:
    """A difference of losses in nats: posterior mean and central 95% interval."""

    value: float
    lo: float
    hi: float


@dataclass(frozen=True, eq=False)
class Optimum:
    """What a sweep says about the best lambda. Losses in nats.

    lambda_star     argmin, over the fine grid, of the posterior mean
    ci95            shortest interval that holds 95% of the posterior of the argmin (and lambda_star)
    p_interior      posterior probability that the minimum lies strictly between 0 and 1
    verdict         see `locate`
    gain_over_0/1   L(0) - L(lambda_star), L(1) - L(lambda_star)
    curve           lambda, mean, lo, hi: the curve averaged over the seeds at hand, pointwise 95% band
    p_argmin        by ladder level: posterior probability that it is the best level of the ladder
    noise_sd        posterior median of the sd of one observation around its seed's curve
    seed_sd         sd between seeds after taking out the noise; NaN with fewer than two seeds
    """

    lambda_star: float
    ci95: tuple[float, float]
    p_interior: float
    verdict: Verdict
    gain_over_0: Estimate
    gain_over_1: Estimate
    curve: pd.DataFrame
    p_argmin: "pd.Series[float]"
    noise_sd: float
    seed_sd: float
    observations: int
    seeds: int


def locate(observations: pd.DataFrame, ladder: Sequence[float], practical: float) -> Optimum:
    """The lambda that minimises the loss, with its uncertainty and a verdict.

    observations: columns lambda (in [0, 1]), seed, loss (nats); one row per (lambda, seed), any of them may be absent.
    ladder: the levels that could be trained, in [0, 1].  practical: smallest difference worth caring about, nats.

    The verdict is the first that holds; P is the posterior, mean its mean, "best" the minimum of the curve over [0, 1]:
    1. flat        P(max L - min L < practical) >= 0.95.
    2. interior    P(L(lambda_star) < L(0) and L(lambda_star) < L(1)) >= 0.95, and mean gains over 0 and over 1 are
                   both >= practical. Stricter than p_interior, which a curve that levels off at an end would raise.
    3. boundary_e  e = 0 or 1: P(L(e) - best < practical) >= 0.95 and P(L(e) < L(other end)) >= 0.95: nothing beats
                   this end by an amount that matters, and it truly beats the other. Other levels may do as well.
    4. undetermined.

    Raises ValueError when columns are missing, a value is not finite, a level lies outside [0, 1], a (lambda, seed)
    occurs twice, fewer than three distinct levels were observed, the ladder has under two levels, or practical <= 0.
    """
    levels = _checked_ladder(ladder, practical)
    data = _paired(_checked(observations), practical)
    grid = np.unique(np.round(np.concatenate([np.linspace(0, 1, FINE_STEPS + 1), levels, data.levels]), SAME_LEVEL))
    post = _posterior(data, grid)
    best = int(post.mean.argmin())
    argmins = grid[post.draws.argmin(axis=1)]
    on_ladder = post.draws[:, np.searchsorted(grid, np.round(levels, SAME_LEVEL))].argmin(axis=1)
    lo, hi = _shortest(argmins)
    noise_sd = float(np.median(post.noise))
    return Optimum(
        lambda_star=float(grid[best]),
        ci95=(min(lo, float(grid[best])), max(hi, float(grid[best]))),
        p_interior=float(np.mean((argmins > 0) & (argmins < 1))),
        verdict=_verdict(post, best, practical),
        gain_over_0=_gain(post, 0, best),
        gain_over_1=_gain(post, -1, best),
        curve=_curve(data, post),
        p_argmin=pd.Series(np.bincount(on_ladder, minlength=len(levels)) / DRAWS, index=levels, name="p_argmin"),
        noise_sd=noise_sd,
        seed_sd=_seed_sd(data, post, noise_sd),
        observations=len(data.loss),
        seeds=len(data.seed_counts),
    )


# 1. The door.


def _checked(observations: pd.DataFrame) -> pd.DataFrame:
    """The rows in one order, with levels rounded to `SAME_LEVEL`. Raises ValueError as `locate` says."""
    missing = [name for name in ("lambda", "seed", "loss") if name not in observations]
    if missing:
        raise ValueError(f"observations lack the columns {missing}; they have {list(observations)}")
    rows = observations[["lambda", "seed", "loss"]].reset_index(drop=True)
    bad = rows[~np.isfinite(rows[["lambda", "loss"]].to_numpy(float)).all(axis=1) | rows["seed"].isna()]
    if len(bad):
        raise ValueError(f"observations must be finite; got {bad.to_dict('records')[:5]}")
    rows = rows.assign(**{"lambda": rows["lambda"].astype(float).round(SAME_LEVEL)}).sort_values(["seed", "lambda"])
    outside = rows[(rows["lambda"] < 0) | (rows["lambda"] > 1)]
    if len(outside):
        raise ValueError(f"lambda must lie in [0, 1]; got {sorted(outside['lambda'].unique())[:5]}")
    twice = rows[rows.duplicated(["lambda", "seed"])]
    if len(twice):
        raise ValueError(f"one loss per (lambda, seed); twice: {twice[['lambda', 'seed']].to_dict('records')[:5]}")
    if rows["lambda"].nunique() < 3:
        raise ValueError(f"need losses at three levels of lambda or more; got {sorted(rows['lambda'].unique())}")
    return rows


def _checked_ladder(ladder: Sequence[float], practical: float) -> Array:
    levels = np.asarray(ladder, dtype=float)
    if not (levels.ndim == 1 and len(levels) >= 2 and np.all((levels >= 0) & (levels <= 1))):
        raise ValueError(f"the ladder must be two or more levels in [0, 1]; got {levels.tolist()}")
    if len(np.unique(levels.round(SAME_LEVEL))) < len(levels):
        raise ValueError(f"the ladder repeats a level: {levels.tolist()}")
    if not (np.isfinite(practical) and practical > 0):
        raise ValueError(f"practical must be a positive number of nats; got {practical}")
    return levels


# 2. The data, with the seed offsets projected out.


@dataclass(frozen=True)
class _Paired:
    """n observations of m levels by S seeds. With P the projection that centres every seed and Z the (n, m) incidence
    of levels: information = Z'PZ (m, m), score = Z'P loss (m), spread = loss'P loss; the likelihood needs no more."""

    levels: Array
    level_of: NDArray[np.intp]
    seed_of: NDArray[np.intp]
    seed_counts: NDArray[np.intp]
    loss: Array
    information: Array
    score: Array
    spread: float
    dof: int
    prior_variance: float


def _paired(rows: pd.DataFrame, practical: float) -> _Paired:
    levels, level_of = np.unique(rows["lambda"].to_numpy(float), return_inverse=True)
    _, seed_of, seed_counts = np.unique(rows["seed"].to_numpy(), return_inverse=True, return_counts=True)
    loss = rows["loss"].to_numpy(float)
    centred = loss - (np.bincount(seed_of, loss) / seed_counts)[seed_of]
    seen = np.zeros((len(levels), len(seed_counts)))
    seen[level_of, seed_of] = 1.0
    spread, dof = float(centred @ centred), len(loss) - len(seed_counts)
    return _Paired(
        levels=levels,
        level_of=level_of,
        seed_of=seed_of,
        seed_counts=seed_counts,
        loss=loss,
        information=np.diag(seen.sum(axis=1)) - (seen / seed_counts) @ seen.T,
        score=np.bincount(level_of, centred).astype(float),
        spread=spread,
        dof=dof,
        prior_variance=NOISE_OF_SPREAD**2 * spread / max(dof, 1) + (NOISE_OF_PRACTICAL * practical) ** 2,
    )


# 3. The posterior.


@dataclass(frozen=True)
class _Posterior:
    """grid (g), exact posterior mean of f on it (g), DRAWS joint draws of f (DRAWS, g) and of the noise sd (DRAWS).
    f is known up to a constant, which drops out of every difference."""

    grid: Array
    mean: Array
    draws: Array
    noise: Array


@dataclass(frozen=True)
class _Shape:
    """One kernel shape (warp and length) with all R ratios. Given the noise sd, f at the levels is Gaussian with mean
    mean[r] and square root sd * root @ diag(scale[r]); residual[r] is the sum of squares that the noise sd follows."""

    to_grid: Array  # (g, m): from f at the levels to the mean of f on the grid
    between: Array  # (g, g): covariance of f on the grid that the levels leave open, for an f of sd 1
    root: Array  # (m, m)
    mean: Array  # (R, m)
    scale: Array  # (R, m)
    residual: Array  # (R,)
    log_weight: Array  # (R,)


def _posterior(data: _Paired, grid: Array) -> _Posterior:
    shapes = [_shape(data, grid, kernel, prior) for kernel, prior in _kernels(grid)]
    log_weight = np.array([shape.log_weight for shape in shapes])
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    # Systematic allocation: cell k gets its share of the draws to within one, with no sampling error.
    counts = np.diff(np.round(np.append(0.0, np.cumsum(weight)) * DRAWS)).astype(int).reshape(weight.shape)
    rng = np.random.default_rng(0)
    parts = [_draw(shape, n, data.dof + 1, rng) for shape, n in zip(shapes, counts, strict=True) if n.any()]
    return _Posterior(
        grid=grid,
        mean=np.sum([shape.to_grid @ (w @ shape.mean) for shape, w in zip(shapes, weight, strict=True)], axis=0),
        draws=np.concatenate([curves for curves, _ in parts]),
        noise=np.concatenate([noise for _, noise in parts]),
    )


def _kernels(grid: Array) -> Iterator[tuple[Array, float]]:
    """Every kernel shape on the grid, with its log prior."""
    log_prior = _log_normal(LENGTHS, LENGTH_MEDIAN, LENGTH_LOG_SD)
    for at_0, at_1, weight in WARPS:
        axis = _warped(grid, at_0, at_1)
        distance = np.abs(axis[:, None] - axis[None, :])
        for length, log_length in zip(LENGTHS, log_prior, strict=True):
            r = np.sqrt(5.0) * distance / length
            yield (1 + r + r**2 / 3) * np.exp(-r), float(np.log(weight) + log_length)


def _warped(grid: Array, at_0: float, at_1: float) -> Array:
    """[0, 1] onto [0, 1], monotone: log-stretched near 0 and near 1."""
    stretched = np.log1p(at_0 * grid) - np.log1p(at_1 * (1 - grid)) if at_0 or at_1 else grid
    return np.asarray((stretched - stretched[0]) / (stretched[-1] - stretched[0]))


def _log_normal(values: Array, median: float, log_sd: float) -> Array:
    """Log density, up to a constant, on a grid that is even in the logarithm."""
    return np.asarray(-0.5 * (np.log(values / median) / log_sd) ** 2)


def _shape(data: _Paired, grid: Array, kernel: Array, log_prior: float) -> _Shape:
    """Conditions one kernel on the data. With information d in the eigenbasis of the kernel at the levels, the
    marginal likelihood is  prod (1 + ratio^2 d)^-1/2  *  residual^-(dof + 1)/2 ; the 1 is the prior of the noise."""
    at = np.searchsorted(grid, data.levels)
    lower = np.linalg.cholesky(kernel[np.ix_(at, at)] + JITTER * np.eye(len(at)))
    half = np.linalg.solve(lower, kernel[at])
    d, basis = np.linalg.eigh(lower.T @ data.information @ lower)
    root = lower @ basis
    score = root.T @ data.score
    growth = 1 + np.outer(RATIOS**2, np.maximum(d, 0.0))
    shrink = RATIOS[:, None] ** 2 / growth
    residual = data.prior_variance + np.maximum(data.spread - (shrink * score**2).sum(axis=1), 0.0)
    evidence = -0.5 * np.log(growth).sum(axis=1) - 0.5 * (data.dof + 1) * np.log(residual)
    return _Shape(
        to_grid=np.linalg.solve(lower.T, half).T,
        between=kernel - half.T @ half,
        root=root,
        mean=(shrink * score) @ root.T,
        scale=np.sqrt(shrink),
        residual=residual,
        log_weight=log_prior + _log_normal(RATIOS, RATIO_MEDIAN, RATIO_LOG_SD) + evidence,
    )


def _draw(shape: _Shape, counts: NDArray[np.intp], dof: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Curves on the grid (n, g) and noise sds (n,): counts[r] of them at ratio r, n in all."""
    cell = np.repeat(np.arange(len(RATIOS)), counts)
    noise = np.sqrt(shape.residual[cell] / rng.chisquare(dof, len(cell)))
    normal = rng.standard_normal((len(cell), len(shape.root)))
    at_levels = shape.mean[cell] + noise[:, None] * (shape.scale[cell] * normal) @ shape.root.T
    half = np.linalg.cholesky(shape.between + JITTER * np.eye(len(shape.between)))
    wander = rng.standard_normal((len(cell), len(half))) @ half.T
    return at_levels @ shape.to_grid.T + (noise * RATIOS[cell])[:, None] * wander, noise


# 4. What follows from it.


def _shortest(samples: Array) -> tuple[float, float]:
    """The shortest interval that holds at least `SURE` of the samples; the leftmost of equals."""
    ordered = np.sort(samples)
    inside = int(np.ceil(SURE * len(ordered)))
    start = int((ordered[inside - 1 :] - ordered[: len(ordered) - inside + 1]).argmin())
    return float(ordered[start]), float(ordered[start + inside - 1])


def _gain(post: _Posterior, end: int, best: int) -> Estimate:
    lo, hi = np.quantile(post.draws[:, end] - post.draws[:, best], [0.025, 0.975])
    return Estimate(float(post.mean[end] - post.mean[best]), float(lo), float(hi))


def _verdict(post: _Posterior, best: int, practical: float) -> Verdict:
    """The rules of `locate`, in their order."""
    at_0, at_1, at_best = post.draws[:, 0], post.draws[:, -1], post.draws[:, best]
    lowest = post.draws.min(axis=1)
    if np.mean(post.draws.max(axis=1) - lowest < practical) >= SURE:
        return "flat"
    mean_gain = min(post.mean[0], post.mean[-1]) - post.mean[best]
    if mean_gain >= practical and np.mean((at_best < at_0) & (at_best < at_1)) >= SURE:
        return "interior"
    if np.mean(at_0 - lowest < practical) >= SURE and np.mean(at_0 < at_1) >= SURE:
        return "boundary_0"
    if np.mean(at_1 - lowest < practical) >= SURE and np.mean(at_1 < at_0) >= SURE:
        return "boundary_1"
    return "undetermined"


def _curve(data: _Paired, post: _Posterior) -> pd.DataFrame:
    """f plus the mean seed offset. Given f, each offset is its seed's mean residual, to within noise / sqrt(count)."""
    at = np.searchsorted(post.grid, data.levels)[data.level_of]
    share = 1 / (len(data.seed_counts) * data.seed_counts[data.seed_of])  # weights that average over seeds
    error = post.noise * np.sqrt((1 / data.seed_counts).sum()) / len(data.seed_counts)
    shift = (data.loss - post.draws[:, at]) @ share + error * np.random.default_rng(1).standard_normal(DRAWS)
    lo, hi = np.quantile(post.draws + shift[:, None], [0.025, 0.975], axis=0)
    mean = post.mean + (data.loss - post.mean[at]) @ share
    return pd.DataFrame({"lambda": post.grid, "mean": mean, "lo": lo, "hi": hi})


def _seed_sd(data: _Paired, post: _Posterior, noise_sd: float) -> float:
    """Method of moments: variance of the seeds' mean residuals, less what the noise in those means explains."""
    if len(data.seed_counts) < 2:
        return float("nan")
    residual = data.loss - post.mean[np.searchsorted(post.grid, data.levels)][data.level_of]
    offsets = np.bincount(data.seed_of, residual) / data.seed_counts
    return float(np.sqrt(max(offsets.var(ddof=1) - noise_sd**2 * np.mean(1 / data.seed_counts), 0.0)))
