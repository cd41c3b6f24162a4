"""Frontiers of points in two losses, both to be low: the Pareto set, and the lower-left convex hull that papers draw.

Section 4.3 of the paper speaks of the Pareto set; the lines of its Figures 2 and 4 are the hull (read from them).
Every hull vertex is Pareto-optimal; the converse does not hold.
"""

from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Points = NDArray[np.float64]
Values = NDArray[np.float64]
Rows = NDArray[np.intp]
Kind = Literal["hull", "pareto"]


def checked(points: Points) -> Points:
    """The points as floats. Raises ValueError: the shape is not (n, 2), or a value is not finite."""
    points = np.asarray(points, float)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"points must have shape (n, 2), got {points.shape}")
    if not np.isfinite(points).all():
        raise ValueError("points must be finite")
    return points


def pareto(points: Points) -> Rows:
    """Rows of the points that no other point beats, ordered by x; the first of equal points stands for them.

    points: (n, 2). One point beats another when it is nowhere higher and somewhere lower.

    Raises:
        ValueError: the shape is not (n, 2), or a value is not finite.
    """
    points = checked(points)
    order = np.lexsort((np.arange(len(points)), points[:, 1], points[:, 0]))
    if not len(order):
        return order
    y = points[order, 1]
    lower = np.r_[True, y[1:] < np.minimum.accumulate(y)[:-1]]
    return order[lower]


def hull(points: Points) -> Rows:
    """Rows of the vertices of the lower-left convex hull, ordered by x: the Pareto points that some weighted sum of the
    two losses with positive weights selects. Points on an edge between two vertices are not vertices.

    Raises:
        ValueError: as `pareto`.
    """
    points = checked(points)
    chain: list[int] = []
    for row in pareto(points):  # Andrew's monotone chain; the Pareto set holds every vertex
        while len(chain) >= 2 and _turn(points[chain[-2]], points[chain[-1]], points[row]) <= 0:
            chain.pop()
        chain.append(int(row))
    return np.array(chain, np.intp)


def _turn(a: Points, b: Points, c: Points) -> float:
    """Positive when a, b, c turn left (counter-clockwise)."""
    return float((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))


def frontiers(trials: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """The rows of `trials` with boolean columns `on_pareto` and `on_hull` for the losses in columns x and y."""
    points = trials[[x, y]].to_numpy(float)
    marks = np.zeros((2, len(trials)), bool)
    marks[0, pareto(points)] = True
    marks[1, hull(points)] = True
    return trials.assign(on_pareto=marks[0], on_hull=marks[1])


def hypervolume(points: Points, reference: tuple[float, float]) -> float:
    """Area (nats^2) of the losses that some point beats or equals, up to `reference` (x, y); compare at one reference.

    A point that is not lower than the reference in both losses adds nothing.

    Raises:
        ValueError: as `pareto`, also for the reference.
    """
    points, corner = checked(points), checked(np.array([reference], float))[0]
    points = points[(points < corner).all(axis=1)]
    x, y = points[pareto(points)].T
    return float(np.diff(x, append=corner[0]) @ (corner[1] - y))


def envelope(points: Points, x: Values, kind: Kind = "hull") -> Values:
    """The frontier as a function: y at each x, in the shape of x; NaN left of its first vertex and right of its last.

    "hull" is straight between hull vertices, as the paper draws it; no checkpoint need lie there. "pareto" is the steps
    that checkpoints reach: the lowest y of the points at x or below.

    Raises:
        ValueError: as `pareto`, or there is no such kind.
    """
    if kind not in ("hull", "pareto"):
        raise ValueError(f"kind must be 'hull' or 'pareto', got {kind!r}")
    points, x = checked(points), np.asarray(x, float)
    vertices = points[hull(points) if kind == "hull" else pareto(points)]
    if not len(vertices):
        return np.full(x.shape, np.nan)
    if kind == "hull":
        return np.asarray(np.interp(x, vertices[:, 0], vertices[:, 1], left=np.nan, right=np.nan))
    step = np.searchsorted(vertices[:, 0], x, side="right") - 1
    return np.where((x >= vertices[0, 0]) & (x <= vertices[-1, 0]), vertices[step, 1], np.nan)
