"""Frontiers agree with their definitions, checked by brute force, and with the lines that the paper drew."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ee_ray.frontier import Points, frontiers, hull, pareto

PAPER = Path(__file__).resolve().parents[1].parent / "shared" / "paper"
READING = 1e-6  # the figures were read to 1e-7


def clouds() -> list[Points]:
    """Random points: in general position, and on a small grid, where points are equal, tied and collinear."""
    rng = np.random.default_rng(0)
    sizes = [1, 2, 3, 5, 8, 13, 21] * 10
    return [rng.random((n, 2)) for n in sizes] + [rng.integers(0, 6, (n, 2)).astype(float) for n in sizes]


def beats(a: Points, b: Points) -> bool:
    return bool((a <= b).all() and (a < b).any())


def same_point_before(points: Points, row: int) -> bool:
    return any((points[other] == points[row]).all() for other in range(row))


def above_a_chord(points: Points, row: int) -> bool:
    """Whether some segment between two other points passes through the point or below it."""
    x, y = points[row]
    for ax, ay in points[points[:, 0] < x]:
        for bx, by in points[points[:, 0] > x]:
            if ay * (bx - x) + by * (x - ax) <= y * (bx - ax):
                return True
    return False


def test_the_pareto_set_is_every_point_that_none_beats():
    for points in clouds():
        expected = [
            row
            for row in range(len(points))
            if not any(beats(other, points[row]) for other in points) and not same_point_before(points, row)
        ]
        assert pareto(points).tolist() == sorted(expected, key=lambda row: points[row, 0])


def test_the_hull_is_every_pareto_point_that_lies_below_all_chords():
    for points in clouds():
        assert hull(points).tolist() == [row for row in pareto(points).tolist() if not above_a_chord(points, row)]


def test_every_weighting_of_the_two_losses_is_best_served_at_a_hull_vertex():
    weights = np.linspace(0.01, np.pi / 2 - 0.01, 25)
    for points in clouds():
        costs = points @ [np.cos(weights), np.sin(weights)]
        assert np.allclose(costs[hull(points)].min(axis=0), costs.min(axis=0))


def test_of_equal_points_the_first_stands_for_all():
    points = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    assert pareto(points).tolist() == hull(points).tolist() == [1, 0]


def test_no_points_have_empty_frontiers():
    assert pareto(np.empty((0, 2))).tolist() == hull(np.empty((0, 2))).tolist() == []


@pytest.mark.parametrize("bad", [[[0.0, np.nan]], [[np.inf, 0.0]], [[0.0, 1.0, 2.0]], [0.0, 1.0]])
@pytest.mark.parametrize("find", [pareto, hull])
def test_what_is_not_finite_or_not_in_two_columns_is_refused(find, bad):
    with pytest.raises(ValueError, match="points must"):
        find(np.array(bad))


def test_trials_are_marked_in_place_whatever_their_index():
    trials = pd.DataFrame({"seed": [7, 8, 9, 7], "L_ft": [3.0, 1.0, 2.0, 2.0], "L_ret": [1.0, 3.0, 2.5, 2.5]})
    trials.index = pd.Index([5, 5, 0, 2])
    marked = frontiers(trials, "L_ft", "L_ret")
    assert marked[trials.columns].equals(trials)
    assert marked["on_pareto"].tolist() == [True, True, True, False]
    assert marked["on_hull"].tolist() == [True, True, False, False]


def drawn(figure: str) -> list[tuple[str, pd.DataFrame]]:
    file = PAPER / figure
    if not file.exists():
        pytest.skip(f"the figure data of the paper are not at {file}")
    return [("/".join(key), lines) for key, lines in pd.read_csv(file).groupby(["panel", "subpanel", "method"])]


@pytest.mark.parametrize("figure", ["fig2.csv", "fig4.csv"])
def test_the_lines_that_the_paper_drew_are_hulls_of_its_points(figure):
    """Where a line leaves the canvas, towards a point that was not drawn, a drawn point above it may look like a
    vertex: at most one on that side. Everywhere else the drawn vertices are our hull, one for one."""
    for name, lines in drawn(figure):
        points = lines.loc[lines["kind"] == "point", ["x", "y"]].to_numpy(float)
        line = lines[lines["kind"] == "frontier"].sort_values("x")
        cut = line["canvas_cut"].to_numpy(bool)
        assert not cut[1:-1].any(), name
        vertices = line.loc[~cut, ["x", "y"]].to_numpy(float)
        ours = points[hull(points)]
        start = int(np.abs(ours[:, 0] - vertices[0, 0]).argmin())
        shared = ours[start : start + len(vertices)]
        assert shared.shape == vertices.shape, name
        assert np.abs(shared - vertices).max() < READING, name
        assert start <= int(cut[0]), name
        assert len(ours) - start - len(vertices) <= int(cut[-1]), name


@pytest.mark.parametrize("figure", ["fig2.csv", "fig4.csv"])
def test_the_pareto_set_of_the_papers_points_is_more_than_what_it_drew(figure):
    """The text says Pareto set; the lines are hulls. The two differ on these very points."""
    sizes = []
    for _, lines in drawn(figure):
        points = lines.loc[lines["kind"] == "point", ["x", "y"]].to_numpy(float)
        assert set(hull(points)) <= set(pareto(points))
        sizes.append((len(pareto(points)), len(hull(points))))
    assert any(on_pareto > on_hull for on_pareto, on_hull in sizes)
