"""How much lower one method's frontier lies than another's, with seeds as replicates and numbers of trials told."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import ndtri, stdtrit

from ee_ray.frontier import Kind, Points, Values, checked, envelope, pareto

Pair = tuple[Points, Points]  # one seed's points: of the method, of the baseline

GRID = 101  # values of x at which two frontiers are compared
SUBSAMPLES = 200  # of the trials of one seed
RESAMPLES = 2000  # of the seeds


@dataclass(frozen=True, eq=False)
class Gap:
    """How much lower in y one method's frontier lies than the baseline's at the same x, in nats; positive: better.

    curve   columns x, gap, lo, hi: the mean over seeds and its pointwise 95% band, at x that both frontiers of every
            seed cover; no rows where there are none
    mean    over the seeds, of the gap averaged over the x that the two frontiers of a seed share; NaN if they share
            none in some seed
    ci95    of the mean. One seed has no spread to learn from: ci95, lo and hi are then NaN
    seeds   number of seeds compared
    """

    curve: pd.DataFrame
    mean: float
    ci95: tuple[float, float]
    seeds: int


@dataclass(frozen=True, eq=False)
class Comparison:
    """A method against a baseline, as they were run and at equal numbers of trials.

    counts    trials by seed (rows), in columns named after the two; 0 where a seed was not run
    unequal   whether some seed that both ran has more trials in one: `plain` then favours that one, as the best of
              more trials is lower even where methods are the same
    plain     the gap between all trials
    matched   the gap expected when, in each seed, the larger number of trials is drawn down to the smaller, without
              replacement; `plain` itself where nothing is unequal. Its curve stops where fewer than half of the draws
              of a seed reach
    """

    counts: pd.DataFrame
    unequal: bool
    plain: Gap
    matched: Gap


def gap(trials: pd.DataFrame, method: str, baseline: str, kind: Kind = "hull") -> Gap:
    """How much lower the frontier of `method` lies than that of `baseline`, at matched x.

    trials: columns method, seed, x, y; a row is one trial, x and y its losses in nats. The seed is the replicate: each
    has its own two frontiers (that of pooled seeds is lower than what any seed reaches), the gap is the mean over the
    seeds that both methods ran, and the band resamples whole seeds, the same in both.

    Raises:
        ValueError: a column, a method or a seed is missing, a loss is not finite, or no seed is in both methods.
    """
    return _gap(_pairs(trials, method, baseline), kind)


def compare(trials: pd.DataFrame, method: str, baseline: str, kind: Kind = "hull") -> Comparison:
    """The gap as run and at equal numbers of trials, and these numbers. Arguments and errors: as `gap`."""
    pairs = _pairs(trials, method, baseline)
    counts = trials.groupby(["seed", "method"]).size().unstack(fill_value=0)[[method, baseline]]
    plain = _gap(pairs, kind)
    unequal = any(len(ours) != len(theirs) for ours, theirs in pairs)
    return Comparison(counts[counts.any(axis=1)], unequal, plain, _gap(pairs, kind, matched=True) if unequal else plain)


def frontier_band(points: pd.DataFrame) -> pd.DataFrame:
    """Columns x, lo, hi: a pointwise 95% band of the hull through the means of recipes, from drawing seeds again.

    points: columns recipe, seed, x, y; each seed's offset taken out. No rows with one seed, or where fewer than nine of
    ten draws reach any x. Widened for few seeds as `Gap.ci95` is.
    """
    seeds, number = np.unique(points["seed"], return_inverse=True)
    recipes, place = np.unique(points["recipe"], return_inverse=True)
    n, values = len(seeds), points[["x", "y"]].to_numpy(float)
    if n < 2:
        return pd.DataFrame(columns=["x", "lo", "hi"], dtype=float)

    def means(weights: Values) -> Points:
        each = weights[number]
        total = np.bincount(place, each, len(recipes))
        kept = total > 0
        columns = [np.bincount(place, each * column, len(recipes))[kept] / total[kept] for column in values.T]
        return np.stack(columns, axis=1)

    whole = means(np.ones(n))
    ends = whole[pareto(whole)[[0, -1]], 0]
    x = np.unique(np.linspace(ends[0], ends[1], GRID))
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), SUBSAMPLES)
    drawn = np.array([envelope(means(each), x) for each in weights.astype(float)])
    known = np.isfinite(drawn).mean(axis=0) >= 0.9
    if not known.any():
        return pd.DataFrame(columns=["x", "lo", "hi"], dtype=float)
    centre = envelope(whole, x)[known]
    wider = np.sqrt(n / (n - 1)) * stdtrit(n - 1, 0.975) / ndtri(0.975)
    lo, hi = centre + wider * (np.nanquantile(drawn[:, known], [0.025, 0.975], axis=0) - centre)
    return pd.DataFrame({"x": x[known], "lo": lo, "hi": hi})


def _pairs(trials: pd.DataFrame, method: str, baseline: str) -> list[Pair]:
    """By seed that both methods ran. Rows are sorted, so that draws do not depend on their order in the table."""
    if missing := [name for name in ("method", "seed", "x", "y") if name not in trials]:
        raise ValueError(f"trials lack the columns {missing}; they have {list(trials)}")
    if trials["seed"].isna().any():
        raise ValueError("every trial needs a seed")
    seeds = []
    for name in (method, baseline):
        rows = trials[trials["method"] == name].sort_values(["x", "y"])
        if rows.empty:
            raise ValueError(f"there are no trials of {name!r}, only of {sorted(trials['method'].unique())}")
        seeds.append({seed: checked(group[["x", "y"]].to_numpy(float)) for seed, group in rows.groupby("seed")})
    ours, theirs = seeds
    if not ours.keys() & theirs.keys():
        raise ValueError(f"{method!r} and {baseline!r} have no seed in common: {list(ours)} and {list(theirs)}")
    return [(points, theirs[seed]) for seed, points in ours.items() if seed in theirs]


def _gap(pairs: list[Pair], kind: Kind, matched: bool = False) -> Gap:
    rng = np.random.default_rng(0)
    x = _shared(pairs)
    seeds = [_expected(_evened(pair, rng) if matched else [pair], x, kind) for pair in pairs]
    gaps, means = np.array([curve for curve, _ in seeds]), np.array([[mean] for _, mean in seeds])
    known = np.isfinite(gaps).all(axis=0)
    x, gaps = x[known], gaps[:, known]
    lo, hi = _band(gaps)
    (mean_lo,), (mean_hi,) = _band(means)
    curve = pd.DataFrame({"x": x, "gap": gaps.mean(axis=0), "lo": lo, "hi": hi})
    return Gap(curve, float(means.mean()), (float(mean_lo), float(mean_hi)), len(pairs))


def _evened(pair: Pair, rng: np.random.Generator) -> list[Pair]:
    """The pair with its larger side drawn down to the size of the smaller, `SUBSAMPLES` times."""
    ours, theirs = pair
    size = min(len(ours), len(theirs))
    if len(ours) == len(theirs):
        return [pair]
    drawn = [rng.choice(max(len(ours), len(theirs)), size, replace=False) for _ in range(SUBSAMPLES)]
    return [(ours[rows], theirs) if len(ours) > size else (ours, theirs[rows]) for rows in drawn]


def _expected(draws: list[Pair], x: Values, kind: Kind) -> tuple[Values, float]:
    """Over the draws of one seed, the mean gap at each x (NaN where under half of them reach) and the mean of their own
    mean gaps. Each draw is averaged over its own range: a fixed one would be read off the larger side, and favour it.
    """
    gaps = np.array([_difference(pair, x, kind) for pair in draws])
    often = np.isfinite(gaps).mean(axis=0) >= 0.5
    curve = np.full(x.shape, np.nan)
    curve[often] = np.nanmean(gaps[:, often], axis=0)
    means = [_difference(pair, own, kind).mean() for pair in draws if len(own := _shared([pair]))]
    return curve, float(np.mean(means)) if means else float("nan")


def _difference(pair: Pair, x: Values, kind: Kind) -> Values:
    ours, theirs = pair
    return envelope(theirs, x, kind) - envelope(ours, x, kind)


def _shared(pairs: list[Pair]) -> Values:
    """The grid over the x that all frontiers cover; empty when there is none. Hull and Pareto set have the same ends."""
    ends = np.array([points[pareto(points)[[0, -1]], 0] for pair in pairs for points in pair])
    first, last = ends[:, 0].max(), ends[:, 1].min()
    return np.unique(np.linspace(first, last, GRID)) if first <= last else np.empty(0)


def _band(values: Values) -> Values:
    """95% bootstrap band, (2, columns), of the column means; rows are replicates.

    Percentiles of few replicates are too narrow; their distances from the mean are widened to what Student's t would
    give (after the expanded percentile interval of Hesterberg 2015, arXiv:1411.5279, which no sample of three can
    realise).
    """
    n = len(values)
    if n < 2:
        return np.full((2, values.shape[1]), np.nan)
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), RESAMPLES) / n
    mean = values.mean(axis=0)
    narrow = np.quantile(weights @ values, [0.025, 0.975], axis=0) - mean
    wider = np.sqrt(n / (n - 1)) * stdtrit(n - 1, 0.975) / ndtri(0.975)
    return np.asarray(mean + wider * narrow)
