"""How many more runs the asked-for precision will take, judged from the runs so far: the search itself, played forward.

Each future takes one curve of the posterior for the truth, with its noise, and lets the search go on against it until it
has enough. So the forecast knows all that the search will do (levels, new seeds, when it stops), and as little as the
runs so far have shown: after few of them the futures differ widely, and that is the answer.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ee_ray.curve import Curve, noise_covariance
from ee_ray.kernels import Array
from ee_ray.objective import Loss
from ee_ray.plan import Point, Prices
from ee_ray.propose import enough, fitted, next_round
from ee_ray.spec.sweep import SweepSpec

FUTURES = 12
RUNS_PER_ROUND = 4  # coarser than the search's own rounds may be: a forecast need not be exact to a run
MOST_RUNS = 64


@dataclass(frozen=True)
class Future:
    """How one future ended: runs, tokens and seeds in all, runs so far included, and why that was enough: None
    where MOST_RUNS or the last level and seed came before."""

    runs: int
    tokens: int
    seeds: int
    enough: str | None


class _World:
    """The losses that runs would have if one draw of the posterior were the truth. loss: which of several, by its number."""

    def __init__(self, curve: Curve, ladder: Array, number: int, loss: int):
        draw = int((number + 0.5) * len(curve.draws) / FUTURES)
        every = curve.every[draw][:, curve.at(ladder)]
        self.levels, self.truth, self.sigma = len(ladder), every.ravel(), float(curve.sigma[draw])
        self.covariance = noise_covariance(int(curve.kind[draw]), np.tile(ladder, len(every)))
        self.number, self.which, self.seen = number, loss, curve.seen
        self.place = curve.places(ladder)
        self.offsets: dict[int, Array] = {}

    def loss(self, point: Point) -> float:
        if point.seed not in self.offsets:
            self.offsets[point.seed] = self._seed(point.seed)
        place = point.choice * self.levels + point.level
        return float(self.truth[place] + self.offsets[point.seed][place])

    def _seed(self, seed: int) -> Array:
        """A seed's offset plus noise at every place, given what it has shown."""
        rng, mine = np.random.default_rng([self.number, seed, self.which]), (self.seen["seed"] == seed).to_numpy()
        normal, size = rng.standard_normal(len(self.truth) + 1), len(self.truth)
        at = self.place[mine]
        if not len(at):
            return np.asarray(self.sigma * np.linalg.cholesky(self.covariance) @ normal[:-1])
        residual = self.seen["loss"].to_numpy(float)[mine] - self.truth[at]
        precision = np.linalg.inv(self.covariance[np.ix_(at, at)])
        offset = (
            precision.sum(axis=0) @ residual + self.sigma * np.sqrt(precision.sum()) * normal[-1]
        ) / precision.sum()
        gain = self.covariance[:, at] @ precision
        left = self.covariance - gain @ self.covariance[at] + 1e-9 * np.eye(size)
        return np.asarray(offset + gain @ (residual - offset) + self.sigma * np.linalg.cholesky(left) @ normal[:-1])


def forecast(spec: SweepSpec, results: Mapping[Point, Loss | None], prices: Prices) -> Iterator[Future]:
    """FUTURES of a sweep, one after another, from results that span three levels or more."""
    steps = spec.search.ladder
    wide = spec.model_copy(update={"search": spec.search.model_copy(update={"runs_per_round": RUNS_PER_ROUND})})
    curves, ladder = fitted(spec, tuple(results.items())), np.arange(steps + 1) / steps
    for number in range(FUTURES):
        worlds = [_World(curve, ladder, number, loss) for loss, curve in enumerate(curves)]
        yield _play(wide, dict(results), prices, worlds)


def _play(spec: SweepSpec, known: dict[Point, Loss | None], prices: Prices, worlds: list[_World]) -> Future:
    while True:
        done = enough(spec, known)
        batch = [] if done or len(known) >= MOST_RUNS else next_round(spec, tuple(known.items()), prices)
        if not batch:
            break
        losses = {point: tuple(world.loss(point) for world in worlds) for point in batch}
        known |= losses if spec.objective.losses else {point: loss for point, (loss,) in losses.items()}
    points = list(known)
    return Future(
        runs=len(points),
        tokens=prices.together(points, prices.had([])),
        seeds=len({point.seed for point in points}),
        enough=done,
    )
