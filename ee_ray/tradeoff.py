"""What fitted curves of several losses say of their frontier: which places lie on it, how surely, and what may be lacking.

A place is a choice at a level of lambda. Each loss has its own fitted curves (curve.py). Draws of different losses are
independent given the data (assumption! noise of one run that several losses share is not modelled), so that one draw of each
is a draw of the whole frontier. Kept is every place that lies on it with a probability of MAY or more: one left out that
belongs costs what only it could reach, one too many costs a run that is nearly as good. What is kept may be wrong in two
ways, in nats, which hold for any number of losses and need no reference:

    short   by how much some place is better than the kept: the least by which all losses of the kept places would have to
            fall so that every place has one of them that is nowhere worse
    beaten  by how much a place is beaten, in all losses at once, by another

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
SURE = 0.95
SAME = 1e-4  # nats; closer losses are not told apart


@dataclass(frozen=True, eq=False)
class Tradeoff:
    """Of p places = choice * (levels of the ladder) + level, and k losses.

    means   (p, k) posterior means, nats, each loss known up to a constant
    chance  (p,) posterior probability that no other place beats this one in all losses
    kept    (p,) chance >= MAY, or the most probable where none has that
    short   95% quantile of what is said above, nats
    beaten  (p,) the same for each place by itself
    """

    means: Array
    chance: Array
    kept: NDArray[np.bool_]
    short: float
    beaten: Array

    @property
    def known(self) -> float:
        """To how many nats the answer is known: nothing left out is better by more, and no place of it beaten by more."""
        return max(self.short, float(self.beaten[self.kept].max()))


def tradeoff(curves: Sequence[Curve], ladder: Array) -> Tradeoff:
    """The frontier over `ladder` and all choices, of curves of several losses that were fitted to the same runs."""
    rng = np.random.default_rng(2)
    drawn, means = [], []
    for curve in curves:
        pick, at = rng.permutation(len(curve.draws))[:FRONTS], curve.at(ladder)
        drawn.append(curve.every[pick][:, :, at].reshape(FRONTS, -1))
        means.append(curve.means[:, at].ravel())
    losses = np.stack(drawn, axis=-1)
    excess = beaten(losses)
    chance = (excess <= SAME).mean(axis=0)
    kept = chance >= min(MAY, chance.max())
    lack = float(np.quantile(short(losses, kept), SURE))
    return Tradeoff(np.stack(means, axis=-1), chance, kept, lack, np.quantile(excess, SURE, axis=0))


def beaten(losses: Array) -> Array:
    """(n, p): by how much each of p places (n, p, k) is beaten by another, nats; 0 where it lies on the frontier."""
    excess = [(losses[:, [place]] - losses).min(axis=-1).max(axis=-1) for place in range(losses.shape[1])]
    return np.stack(excess, axis=-1)


def short(losses: Array, kept: NDArray[np.bool_]) -> Array:
    """(n,): by how much some place is better than the kept ones (p,), of losses (n, p, k), nats."""
    lack = np.full(losses.shape[:2], np.inf)
    for place in np.flatnonzero(kept):
        lack = np.minimum(lack, (losses[:, [place]] - losses).max(axis=-1))
    return np.asarray(lack.max(axis=-1).clip(0.0))
