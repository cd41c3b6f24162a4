"""Simulated sweeps: curves of loss over lambda that we know, and runs in paired seeds around them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline, PchipInterpolator

Array = NDArray[np.float64]
LADDER = np.linspace(0, 1, 17)
FINE = np.linspace(0, 1, 129)
PRACTICAL = 0.01  # nats
FIGURE_3 = Path(__file__).parents[1] / "ee_ray/report/paper_figures/fig3.csv"


@dataclass(frozen=True)
class Truth:
    """A curve of loss over lambda in nats. kind: interior, monotone (the best level is an end), or flat."""

    name: str
    kind: str
    loss: Callable[[Array], Array]

    @property
    def argmin(self) -> float:
        return float(FINE[self.loss(FINE).argmin()])

    def covered(self, interval: tuple[float, float]) -> bool:
        """Does an interval on the fine grid hold a best level? Where all levels are equally good, any does."""
        losses = self.loss(FINE)
        inside = (interval[0] - 1 / 256 <= FINE) & (interval[1] + 1 / 256 >= FINE)
        return bool(losses[inside].min() <= losses.min() + 1e-12)


@dataclass(frozen=True)
class Noise:
    """Runs about the truth. sd in nats, `at_0` times as much at lambda = 0 (falling off within a quarter); seeds differ
    by an offset of sd 0.02 and, with `tilt`, by a straight line of that sd at the ends."""

    name: str
    sd: float
    at_0: float = 1.0
    tilt: float = 0.0

    def at(self, levels: Array) -> Array:
        return self.sd * np.asarray(1 + (self.at_0 - 1) * np.maximum(1 - 4 * levels, 0))


@dataclass
class Lab:
    """Trains (level, seed) of a truth: equal points give equal losses, as a deterministic trainer does."""

    truth: Truth
    noise: Noise
    number: int

    def loss(self, level: int, seed: int) -> float:
        x = np.array([level / 16])
        offset, tilt = np.random.default_rng([self.number, seed]).standard_normal(2)
        run = np.random.default_rng([self.number, seed, level]).standard_normal()
        drift = 0.02 * offset + self.noise.tilt * tilt * (2 * x[0] - 1)
        return float(self.truth.loss(x)[0] + drift + self.noise.at(x)[0] * run)

    def table(self, points: list[tuple[int, int]]) -> pd.DataFrame:
        rows = [(level / 16, seed, self.loss(level, seed)) for level, seed in points]
        return pd.DataFrame(rows, columns=["lambda", "seed", "loss"])


def _of_the_paper() -> list[Truth]:
    """The six retained curves of Figure 3 through their five points: smooth, and the compute-matched ones also with
    their minimum as a kink, so that nothing is true only of one interpolation."""
    truths = []
    for (setting, tokens), rows in pd.read_csv(FIGURE_3).groupby(["setting", "dataset_tokens"], sort=False):
        x, y = rows["lambda"].to_numpy(float), rows["retained_loss"].to_numpy(float)
        smooth = CubicSpline(x, y, bc_type="natural")
        kind = "interior" if 0 < FINE[smooth(FINE).argmin()] < 1 else "monotone"
        truths.append(Truth(f"paper {setting} {tokens}", kind, smooth))
        if setting == "compute_matched":
            truths.append(Truth(f"paper {setting} {tokens}, kinked", "interior", PchipInterpolator(x, y)))
    return truths


def _made_up() -> list[Truth]:
    return [
        Truth("falling", "monotone", lambda x: -0.06 * x),
        Truth("rising", "monotone", lambda x: 0.06 * x),
        Truth("falling, then level", "monotone", lambda x: 0.07 * np.exp(-5 * x)),
        Truth("level, then rising", "monotone", lambda x: 0.07 * np.exp(-5 * (1 - x))),
        Truth("flat", "flat", lambda x: 0.0 * x),
        Truth("flat to 0.004", "flat", lambda x: 0.016 * (x - 0.6) ** 2),
        Truth("valley", "interior", lambda x: 0.25 * (x - 0.4) ** 2),
        Truth("early exposure", "interior", lambda x: 0.25 * np.exp(-25 * x) + 0.08 * (x - 0.3) ** 2),
        Truth("jump at 0", "interior", lambda x: 0.06 * (x < 0.03) + 0.1 * (x - 0.55) ** 2),
        Truth("jump at 0.4", "interior", lambda x: 0.04 * (x < 0.4) + 0.12 * (x - 0.2) ** 2),
        Truth("jump at 0, then level", "monotone", lambda x: 0.06 * (x < 0.03) - 0.01 * x),
    ]


TRUTHS = _of_the_paper() + _made_up()
NOISES = [
    Noise("0.003", 0.003),
    Noise("0.006", 0.006),
    Noise("0.015", 0.015),
    Noise("0.006, 4x at 0", 0.006, at_0=4.0),
    Noise("0.004, tilted seeds", 0.004, tilt=0.01),
]
