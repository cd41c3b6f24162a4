"""What fitted curves of several losses say of their frontier: which levels of lambda lie on it, how surely, and what may be lacking.

Each loss has its own fitted curve (curve.py). Draws of different losses are independent given the data (assumption! noise
of one run that several losses share is not modelled), so that one draw of each is a draw of the whole frontier. Kept is
every level that lies on it with a probability of MAY or more: one left out that belongs costs what only it could reach,
one too many costs a run that is nearly as good. What is kept may be wrong by two sizes, in nats, which hold for any
number of losses and need no reference:

    short   by how much some level is better than the kept: the least by which all losses of the kept levels would have to
            fall so that every level has one of them that is nowhere worse
    over    by how much a kept level is beaten, in all losses at once, by another

Source: the additive epsilon indicator of Zitzler, Thiele, Laumanns, Fonseca and da Fonseca, Performance Assessment of
Multiobjective Optimizers, IEEE Transactions on Evolutionary Computation 7, 2003.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ee_ray.curve import Curve
from ee_ray.kernels import Array

FRONTS = 1000  # joint draws of all losses
MAY = 0.2
SAME = 1e-4  # nats; closer losses are not told apart


@dataclass(frozen=True, eq=False)
class Tradeoff:
    """Of p levels and k losses.

    means   (p, k) posterior means, nats, each loss known up to a constant
    chance  (p,) posterior probability that no other level beats this one in all losses
    kept    (p,) chance >= MAY, or the most probable where none has that
    short, over  95% quantiles of what is said above, nats
    """

    means: Array
    chance: Array
    kept: NDArray[np.bool_]
    short: float
    over: float


def tradeoff(curves: Sequence[Curve], ladder: Array) -> Tradeoff:
    """The frontier over the levels of `ladder`, of curves of several losses that were fitted to the same runs."""
    rng = np.random.default_rng(2)
    picked = [curve.draws[rng.permutation(len(curve.draws))[:FRONTS]][:, curve.at(ladder)] for curve in curves]
    draws, means = np.stack(picked, axis=-1), np.stack([curve.mean[curve.at(ladder)] for curve in curves], axis=-1)
    chance = on_frontier(draws).mean(axis=0)
    kept = chance >= min(MAY, chance.max())
    short, over = (float(np.quantile(size, 0.95)) for size in distances(draws, kept))
    return Tradeoff(means, chance, kept, short, over)


def on_frontier(losses: Array) -> NDArray[np.bool_]:
    """(..., p): whether no other of p levels is lower in all losses (..., p, k)."""
    beaten = np.zeros(losses.shape[:-1], bool)
    for level in range(losses.shape[-2]):
        beaten |= (losses[..., [level], :] < losses - SAME).all(axis=-1)
    return ~beaten


def distances(losses: Array, kept: NDArray[np.bool_]) -> tuple[Array, Array]:
    """short and over of the kept levels (p,), of losses (n, p, k); (n,) each, nats."""
    short, over = np.full(losses.shape[:2], np.inf), np.zeros(len(losses))
    for level in np.flatnonzero(kept):
        worse = losses[:, [level]] - losses
        short = np.minimum(short, worse.max(axis=-1))
        over = np.maximum(over, worse.min(axis=-1).max(axis=-1))
    return short.max(axis=-1).clip(0.0), over
