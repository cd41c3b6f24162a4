"""How lambda* moves with the size of D_post or of the model, from small sweeps, and where it will be at the next size.

    lambda*_i = clip(a + b log2(n_i) + s e_i, 0, 1),    e_i standard normal

n is a size, tokens of D_post or parameters of the model; b is the shift for each doubling and s what sizes do not explain. Each sweep enters
with its whole posterior of lambda*, so a sweep that is unsure pulls little. a, b and s are summed over a grid under weak
priors: with two or three sweeps any point estimate would be a fiction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.special import ndtr

from ee_ray.identity import differences
from ee_ray.kernels import Array
from ee_ray.optimum import SURE
from ee_ray.spec.search import Search
from ee_ray.spec.sweep import SweepSpec

FINE = np.linspace(0, 1, 129)
AT_MIDDLE = np.linspace(-0.5, 1.5, 61)  # a, at the sizes' geometric mean; flat prior
SHIFTS = np.linspace(-0.45, 0.45, 37)  # b, per doubling
SHIFT_SD = 0.1  # of its normal prior: an optimum that crosses half of [0, 1] in five doublings is ordinary
SCATTERS = np.array(
    [0.05, 0.1, 0.2]
)  # s; equal prior weights; above the steps of the grid, or sharp sweeps fall between
Size = Literal["tokens", "parameters"]
OF = {"tokens": "D_post", "parameters": "the model"}
# What may differ between sweeps of one question: what makes D_post or the model larger, how the answer was sought, and where.
LARGER: dict[Size, Any] = {
    "tokens": {"data": {"post": {"size"}}, "stages": {"posttrain": {"tokens", "passes"}}},
    "parameters": {"model": True},
}
MAY_DIFFER: Any = {
    "search": set(Search.model_fields) - {"choices"},
    **dict.fromkeys(("schema_version", "name", "execution"), True),
}


@dataclass(frozen=True)
class Prediction:
    """lambda* at a size: posterior mean, the shortest interval that holds 95%, and the shift per doubling of size with
    its central 95% interval."""

    size: float
    value: float
    ci95: tuple[float, float]
    shift: float
    shift_ci95: tuple[float, float]


def unlike(first: SweepSpec, other: SweepSpec, size: Size) -> list[str]:
    """Fields by which two sweeps ask different questions, not the same one at two sizes; a line for each."""
    one, two = (spec.model_dump(mode="json", exclude=MAY_DIFFER | LARGER[size]) for spec in (first, other))
    return [
        f"{field} is {theirs!r}, and {mine!r} in {first.name}: transfer takes sweeps that differ in the size of {OF[size]} alone"
        for field, mine, theirs in differences(one, two)
    ]


def predict(sizes: Sequence[float], posteriors: Sequence["pd.Series[float]"], size: float) -> Prediction:
    """Where lambda* will be at `size`.

    posteriors: for each of the sizes, the probability (values) that each level of lambda (index) is the best.

    Raises:
        ValueError: under two different sizes, a size that is not positive, or posteriors that are not one per size.
    """
    if len(sizes) != len(posteriors):
        raise ValueError(f"one posterior for each size: got {len(sizes)} sizes and {len(posteriors)} posteriors")
    if len(set(sizes)) < 2 or min([*sizes, size]) <= 0:
        raise ValueError(f"two different positive sizes or more are needed, got {list(sizes)}; asked for {size}")
    middle = float(np.mean(np.log2(sizes)))
    cells = np.array(list(product(AT_MIDDLE, SHIFTS, SCATTERS)))
    log_weight = -0.5 * (cells[:, 1] / SHIFT_SD) ** 2
    for n, posterior in zip(sizes, posteriors, strict=True):
        levels, chance = posterior.index.to_numpy(float), posterior.to_numpy(float)
        centre = cells[:, 0] + cells[:, 1] * (np.log2(n) - middle)
        log_weight += np.log(np.maximum(_mass(levels, centre, cells[:, 2]) @ chance, 1e-300))
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    ahead = weight @ _mass(FINE, cells[:, 0] + cells[:, 1] * (np.log2(size) - middle), cells[:, 2])
    by_shift = np.bincount(np.searchsorted(SHIFTS, cells[:, 1]), weight, len(SHIFTS))
    low, high = SHIFTS[np.searchsorted(np.cumsum(by_shift), [(1 - SURE) / 2, (1 + SURE) / 2])]
    return Prediction(
        size=size,
        value=float(ahead @ FINE),
        ci95=_shortest(ahead),
        shift=float(by_shift @ SHIFTS),
        shift_ci95=(float(low), float(high)),
    )


def _mass(levels: Array, centre: Array, scatter: Array) -> Array:
    """(cells, levels): probability of each level's own cell of [0, 1]; what falls outside belongs to the ends."""
    edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
    below = ndtr((edges[None, :] - centre[:, None]) / scatter[:, None])
    return np.asarray(np.diff(below, axis=1))


def _shortest(mass: Array) -> tuple[float, float]:
    """The shortest run of FINE that holds 95%; the leftmost of equals."""
    total = np.concatenate([[0.0], np.cumsum(mass)])
    ends = np.searchsorted(total, total[:-1] + SURE - 1e-9)
    starts = np.flatnonzero(ends <= len(mass))
    best = int(starts[(ends[starts] - starts).argmin()])
    return float(FINE[best]), float(FINE[ends[best] - 1])
