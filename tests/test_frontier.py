"""Frontiers agree with their definitions, checked by brute force, and with the lines that the paper drew."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ee_ray.compare import compare
from ee_ray.frontier import Points, envelope, frontiers, hull, hypervolume, pareto
from ee_ray.report import words

PAPER = Path(__file__).resolve().parent.parent / "ee_ray/report/paper_figures"
READING = 1e-6  # the figures were read to 1e-7
KINDS = ["hull", "pareto"]
LINE = ["figure", "panel", "subpanel", "pipeline", "view", "method"]
grid_points = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=12)


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


def cells(points: list[tuple[int, int]], corner: tuple[int, int]) -> int:
    """Unit squares below and left of the corner that lie above and right of a point."""
    return sum(any(x <= i and y <= j for x, y in points) for i in range(corner[0]) for j in range(corner[1]))


@given(grid_points, st.tuples(st.integers(0, 7), st.integers(0, 7)))
def test_hypervolume_is_the_area_that_the_points_beat(points, corner):
    assert hypervolume(np.array(points, float).reshape(-1, 2), corner) == cells(points, corner)


@given(grid_points, st.randoms())
def test_hypervolume_is_that_of_the_pareto_set_in_any_order_and_multiplicity(points, random):
    shuffled = random.sample(points * 2, len(points) * 2)
    points, shuffled = (np.array(rows, float).reshape(-1, 2) for rows in (points, shuffled))
    assert hypervolume(points, (5, 6)) == hypervolume(shuffled, (5, 6)) == hypervolume(points[pareto(points)], (5, 6))


def test_a_reference_that_is_not_two_numbers_is_refused():
    for bad in [(1.0, np.nan), (1.0, 2.0, 3.0)]:
        with pytest.raises(ValueError, match="points must"):
            hypervolume(np.zeros((1, 2)), bad)


def test_the_pareto_envelope_is_the_lowest_y_reached_at_x_or_below():
    for points in clouds():
        first, last = points[pareto(points)[[0, -1]], 0]
        x = np.linspace(first, last, 40)
        expected = [points[points[:, 0] <= value, 1].min() for value in x]
        assert envelope(points, x, "pareto").tolist() == expected


def test_the_hull_envelope_is_convex_passes_through_its_vertices_and_has_no_point_below():
    for points in clouds():
        vertices = points[hull(points)]
        assert np.allclose(envelope(points, vertices[:, 0]), vertices[:, 1])
        inside = points[(points[:, 0] >= vertices[0, 0]) & (points[:, 0] <= vertices[-1, 0])]
        assert (envelope(points, inside[:, 0]) <= inside[:, 1] + 1e-12).all()
        assert (np.diff(envelope(points, np.linspace(*vertices[[0, -1], 0], 40)), 2) > -1e-12).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_frontier_says_nothing_beyond_its_ends_nor_does_one_of_no_points(kind):
    points = np.array([[1.0, 3.0], [2.0, 1.0], [5.0, 1.0]])
    assert np.isnan(envelope(points, [0.99, 2.01, 5.0, np.nan], kind)).all()
    assert envelope(points, [[1.0], [2.0]], kind).tolist() == [[3.0], [1.0]]
    assert np.isnan(envelope(np.empty((0, 2)), [1.0], kind)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_point_is_a_frontier_at_its_own_x(kind):
    assert np.array_equal(envelope([[1.0, 3.0]], [0.0, 1.0, 2.0], kind), [np.nan, 3.0, np.nan], equal_nan=True)


def test_an_unknown_kind_of_frontier_is_refused():
    with pytest.raises(ValueError, match="kind"):
        envelope(np.zeros((1, 2)), np.zeros(1), "convex")


def drawn(*figures: int) -> pd.DataFrame:
    return pd.concat([pd.read_csv(PAPER / f"fig{figure}.csv") for figure in figures])


def points_and_line(rows: pd.DataFrame) -> tuple[Points, pd.DataFrame]:
    points = rows.loc[rows["kind"] == "point", ["x", "y"]].to_numpy(float)
    return points, rows[rows["kind"] == "frontier"].sort_values("x")


@pytest.mark.parametrize(("figure", "lines", "vertices", "false_vertices"), [(2, 16, 115, 3), (4, 12, 126, 6)])
def test_every_vertex_that_the_paper_drew_is_one_of_our_hull(figure, lines, vertices, false_vertices):
    """All 241 of them, in sequence. Our hull of the drawn points has a vertex more only at the ends where a line leaves
    the canvas: there the point that the line leads to is not in the data, so one above the line may look like a vertex.
    """
    reproduced, extra = [], 0
    for name, rows in drawn(figure).groupby(LINE):
        points, line = points_and_line(rows)
        cut = line["canvas_cut"].to_numpy(bool)
        assert not cut[1:-1].any(), name
        theirs = line.loc[~cut, ["x", "y"]].to_numpy(float)
        ours = points[hull(points)]
        start = int(np.abs(ours[:, 0] - theirs[0, 0]).argmin())
        shared = ours[start : start + len(theirs)]
        assert shared.shape == theirs.shape, name
        assert np.abs(shared - theirs).max() < READING, name
        before, after = start, len(ours) - start - len(theirs)
        assert before <= cut[0] and after <= cut[-1], name
        reproduced.append(len(theirs))
        extra += before + after
    assert (len(reproduced), sum(reproduced), extra) == (lines, vertices, false_vertices)


def known_points(pipeline: str, method: str, x: str, y: str) -> Points:
    """The checkpoints of a method by two losses, from both figures, which draw L_ft and L_ret with axes exchanged."""
    rows = drawn(2, 4)
    rows = rows[(rows["kind"] == "point") & (rows["pipeline"] == pipeline) & (rows["method"] == method)]
    same, exchanged = ((rows["x_name"] == a) & (rows["y_name"] == b) for a, b in [(x, y), (y, x)])
    points = np.concatenate([rows.loc[same, ["x", "y"]], rows.loc[exchanged, ["y", "x"]]]).astype(float)
    return points[np.unique(points.round(6), axis=0, return_index=True)[1]]


def test_cut_ends_lie_on_the_way_to_hull_vertices_beyond_the_canvas():
    """The 20 cut ends are no checkpoints: the drawing program clipped a segment of the hull at the edge of the canvas,
    beyond which it also left out the points. A point lost from one figure may stand in the other, which draws the same
    two losses with axes exchanged. With the points of both, 14 cut ends lie on our hull, and none of its vertices is
    false. The far ends of the other six stand in no figure: five are of dropout and replay, which Figure 4 alone shows,
    and one (C4>MusicPile>FLAN, unmixed) needs an L_pre that Figure 2b right alone shows. Their lines are still convex
    with no point below them.
    """
    on_hull, unseen = 0, []
    for name, rows in drawn(2, 4).groupby(LINE):
        points, line = points_and_line(rows)
        everything = rows.loc[rows["kind"] == "point", ["x", "y"]]
        known = known_points(rows["pipeline"].iloc[0], name[-1], line["x_name"].iloc[0], line["y_name"].iloc[0])
        cut = line["canvas_cut"].to_numpy(bool)
        theirs = line[["x", "y"]].to_numpy(float)
        for end in theirs[cut]:
            assert (end > everything.to_numpy().max(axis=0)).any(), f"{name}: the edge is not beyond every drawn point"
        off = np.abs(envelope(known, theirs[:, 0]) - theirs[:, 1])
        if np.isnan(off).any():
            unseen += [name[-1]] * int(cut.sum())
            assert len(hull(np.concatenate([theirs, points + 1e-6]))) == len(theirs), name
            continue
        assert off.max() < READING, name
        on_hull += cut.sum()
        ours = known[hull(known)]
        inside = (ours[:, 0] > theirs[0, 0] - READING) & (ours[:, 0] < theirs[-1, 0] + READING)
        assert np.abs(ours[inside] - theirs[~cut]).max() < READING, name
    assert on_hull == 14
    assert sorted(unseen) == ["mixed_dropout"] * 2 + ["mixed_replay"] * 3 + ["unmixed"]


def test_the_pareto_set_of_the_papers_points_is_more_than_what_it_drew():
    """The text says Pareto set; the lines are hulls. The two differ on these very points."""
    sizes = []
    for _, rows in drawn(2, 4).groupby(LINE):
        points, _ = points_and_line(rows)
        assert set(hull(points)) <= set(pareto(points))
        sizes.append((len(pareto(points)), len(hull(points))))
    assert sum(on_pareto > on_hull for on_pareto, on_hull in sizes) == 27


def test_the_papers_methods_differ_in_trials_and_what_was_gained_survives_matching():
    """One seed each, so no band. Figure 2 has mixed and unmixed alone; dropout and replay are in Figure 4. Points beyond
    the canvas are lost, so these counts are less than what was run, and gaps are of what was drawn."""
    points = drawn(2, 4).query("kind == 'point'").assign(seed=0)
    counts = {}
    for (figure, panel, subpanel), trials in points.groupby(["figure", "panel", "subpanel"]):
        method, baseline = next(
            pair
            for pair in [("mixed_replay", "mixed"), ("mixed_dropout", "mixed"), ("mixed", "unmixed")]
            if pair[0] in set(trials["method"])
        )
        found = compare(trials, method, baseline, "pareto")
        counts[f"{figure}{panel} {subpanel}"] = tuple(found.counts.iloc[0])
        assert found.unequal
        assert found.matched.mean > 0.02 and np.isnan(found.matched.ci95).all()
        if len(trials[trials["method"] == method]) > len(trials[trials["method"] == baseline]):
            assert found.matched.mean < found.plain.mean
    assert counts == {
        "2a left": (46, 50), "2a right": (48, 50), "2b left": (56, 54), "2b right": (39, 45),
        "2c left": (37, 49), "2c right": (37, 49), "2d left": (42, 49), "2d right": (42, 48),
        "4a left": (74, 40), "4a right": (119, 40), "4b left": (83, 43), "4b right": (130, 40),
    }  # fmt: skip
    known = {
        (pipeline[13:], method): len(known_points(pipeline, method, "L_ft", "L_ret"))
        for pipeline in ("C4>MusicPile>ChemPile", "C4>MusicPile>FLAN")
        for method in ("mixed", "unmixed")
    }
    assert known == {("ChemPile", "mixed"): 56, ("ChemPile", "unmixed"): 60, ("FLAN", "mixed"): 57, ("FLAN", "unmixed"): 59}  # fmt: skip


def test_the_report_says_which_levels_may_lie_on_the_frontiers_and_what_that_may_be_wrong_by(finished):
    two, three = finished.summary()["tradeoffs"]
    assert (two["losses"], three["losses"]) == (["L_ft", "L_ret"], ["L_ft", "L_ret", "L_pre"])
    table = pd.read_parquet(finished.folder / "reports/tiny/data/tradeoffs.parquet")
    page = (finished.folder / "reports/tiny/index.html").read_text()
    for found in (two, three):
        levels, most = found["levels"], max(level["probability"] for level in found["levels"])
        assert [level["lambda"] for level in levels] == [step / 4 for step in range(5)]
        assert [level["kept"] for level in levels] == [level["probability"] >= min(0.2, most) for level in levels]
        assert all(min(level[loss] for level in levels) == 0 for loss in found["losses"])
        assert 0 <= found["short95"] < 1
        mine = table[table["losses"] == ",".join(found["losses"])]
        assert mine[["lambda", "probability", "kept"]].to_dict("records") == [{name: level[name] for name in ("lambda", "probability", "kept")} for level in levels]  # fmt: skip
        assert words.tradeoff(found) in page
