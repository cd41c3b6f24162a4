"""Where retained loss is least, how sure that is, and what to call it: intervals and verdicts from a fitted curve."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from ee_ray.curve import DRAWS, SAME_LEVEL, Curve, fit
from ee_ray.kernels import Array

Verdict = Literal["interior", "boundary_0", "boundary_1", "flat", "undetermined"]

SURE = 0.95  # every claim below is made at this posterior probability


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
    ci95            shortest interval that holds 95% of the posterior of the argmin and every rival: a level that beats
                    lambda_star with a probability of 5% or more and is in the mean worse than it by less than `practical`
                    or than the noise of one run. Where the curve is level, its lowest point is decided by noise, and only
                    with the rivals is it covered as often as the interval says
    p_interior      posterior probability that the minimum lies strictly between 0 and 1
    verdict         see `locate`
    gain_over_0/1   L(0) - L(lambda_star), L(1) - L(lambda_star)
    curve           lambda, mean, lo, hi: the curve averaged over the seeds at hand, pointwise 95% band; and noise_sd,
                    the posterior median of the sd of one run at that lambda around its seed's curve
    p_argmin        by ladder level: posterior probability that it is the best level of the ladder
    noise_sd        noise_sd of the curve at lambda_star
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
    return summarise(fit(_checked(observations), levels, practical), levels, practical)


def summarise(post: Curve, levels: Array, practical: float) -> Optimum:
    """What a fitted curve says, as `locate` has it."""
    best = int(post.mean.argmin())
    argmins = post.grid[post.draws.argmin(axis=1)]
    on_ladder = post.draws[:, post.at(levels)].argmin(axis=1)
    lo, hi = _shortest(argmins)
    lambda_star = float(post.grid[best])
    noise_sd = float(np.median(post.noise(post.grid[[best]])))
    rival = np.mean(post.draws < post.draws[:, [best]], axis=0) >= 1 - SURE
    rival &= post.mean - post.mean[best] < max(practical, noise_sd)
    rival[best] = True
    return Optimum(
        lambda_star=lambda_star,
        ci95=(min(lo, float(post.grid[rival][0])), max(hi, float(post.grid[rival][-1]))),
        p_interior=float(np.mean((argmins > 0) & (argmins < 1))),
        verdict=_verdict(post, best, practical),
        gain_over_0=_gain(post, 0, best),
        gain_over_1=_gain(post, -1, best),
        curve=_curve(post),
        p_argmin=pd.Series(np.bincount(on_ladder, minlength=len(levels)) / DRAWS, index=levels, name="p_argmin"),
        noise_sd=noise_sd,
        seed_sd=_seed_sd(post),
        observations=len(post.seen),
        seeds=post.seen["seed"].nunique(),
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


# 2. What follows from it.


def _shortest(samples: Array) -> tuple[float, float]:
    """The shortest interval that holds at least `SURE` of the samples; the leftmost of equals."""
    ordered = np.sort(samples)
    inside = int(np.ceil(SURE * len(ordered)))
    start = int((ordered[inside - 1 :] - ordered[: len(ordered) - inside + 1]).argmin())
    return float(ordered[start]), float(ordered[start + inside - 1])


def _gain(post: Curve, end: int, best: int) -> Estimate:
    lo, hi = np.quantile(post.draws[:, end] - post.draws[:, best], [0.025, 0.975])
    return Estimate(float(post.mean[end] - post.mean[best]), float(lo), float(hi))


def _verdict(post: Curve, best: int, practical: float) -> Verdict:
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


def _curve(post: Curve) -> pd.DataFrame:
    """f plus the mean seed offset. Given f, each offset is its seed's mean residual, to within noise / sqrt(count)."""
    levels, counts = post.seen["lambda"].to_numpy(float), post.seen.groupby("seed")["seed"].transform("size")
    choice, at = post.at_seen()
    share = 1 / (post.seen["seed"].nunique() * counts.to_numpy(float))  # weights that average over seeds
    error = np.sqrt((post.noise(levels) ** 2) @ share**2) * np.random.default_rng(1).standard_normal(DRAWS)
    loss = post.seen["loss"].to_numpy(float)
    shift = (loss - post.every[:, choice, at]) @ share + error
    lo, hi = np.quantile(post.draws + shift[:, None], [0.025, 0.975], axis=0)
    mean = post.mean + (loss - post.means[choice, at]) @ share
    noise = np.median(post.noise(post.grid), axis=0)
    return pd.DataFrame({"lambda": post.grid, "mean": mean, "lo": lo, "hi": hi, "noise_sd": noise})


def _seed_sd(post: Curve) -> float:
    """Method of moments: variance of the seeds' mean residuals, less what the noise in those means explains."""
    levels = post.seen["lambda"].to_numpy(float)
    residual = post.seen["loss"] - post.means[post.at_seen()]
    offsets = residual.groupby(post.seen["seed"]).mean()
    if len(offsets) < 2:
        return float("nan")
    noise = pd.Series(np.median(post.noise(levels), axis=0) ** 2).groupby(post.seen["seed"])
    explained = (noise.mean() / noise.size()).mean()
    return float(np.sqrt(max(offsets.var(ddof=1) - explained, 0.0)))
