"""Several losses that all matter: which levels of lambda are said to lie on their frontier, and what that may be wrong by."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ee_ray import curve
from ee_ray.tradeoff import MAY, SAME, Tradeoff, beaten, short, tradeoff

LADDER = np.linspace(0, 1, 9)
OPPOSED = np.stack([-0.06 * LADDER, 0.07 * LADDER**2], axis=1)
VALLEYS = np.stack([0.25 * (LADDER - 0.35) ** 2, 0.25 * (LADDER - 0.7) ** 2], axis=1)
losses_of_levels = arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(2, 3)), elements=st.integers(0, 4).map(float))  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_is_read_between_levels(monkeypatch):
    monkeypatch.setattr(curve, "FINE_STEPS", 8)


def read(truth: np.ndarray, number: int = 0, seeds: int = 2, noise: float = 0.006) -> Tradeoff:
    """From a run of every level with every seed, of true losses (9, k)."""
    rng, curves = np.random.default_rng(number), []
    for loss in truth.T:
        losses = loss[:, None] + rng.normal(0, 0.02, seeds) + rng.normal(0, noise, (len(LADDER), seeds))
        rows = [(level, seed, losses[at, seed]) for at, level in enumerate(LADDER) for seed in range(seeds)]
        curves.append(curve.fit(pd.DataFrame(rows, columns=["lambda", "seed", "loss"]), LADDER, 0.01))
    return tradeoff(curves, LADDER)


@given(losses_of_levels)
def test_a_level_is_on_the_frontier_unless_another_is_lower_in_every_loss(losses):
    expected = [[not any((other < level).all() for other in draw) for level in draw] for draw in losses]
    assert (beaten(losses) <= SAME).tolist() == expected


@given(losses_of_levels, st.data())
def test_kept_levels_lowered_by_what_they_are_short_of_serve_everyone_and_raised_by_what_they_are_beaten_by_no_one(losses, data):  # fmt: skip
    levels = losses.shape[1]
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=levels, max_size=levels).filter(any)))
    for draw, lack, excess in zip(losses, short(losses, kept), beaten(losses), strict=True):
        assert all((draw[kept] - lack <= level).all(axis=1).any() for level in draw)
        assert not any((level < mine - by).all() for level, (mine, by) in product(draw, zip(draw, excess, strict=True)))


def test_a_level_that_is_clearly_beaten_in_every_loss_is_left_out_whatever_the_others():
    found = read(VALLEYS, noise=0.002)
    assert found.chance[[0, 8]].max() < 0.01 and not found.kept[[0, 8]].any()
    assert found.chance[[4, 5]].min() > 0.8


@pytest.mark.parametrize("third", [[], [0.1 * LADDER**2]])
def test_both_ends_of_opposed_losses_lie_on_their_frontier(third):
    found = read(np.column_stack([-0.06 * LADDER, 0.08 * LADDER, *third]), noise=0.001)
    assert found.chance[[0, 8]].min() > 0.99 and found.kept[[0, 8]].all()


def test_of_losses_that_agree_the_best_alone_is_kept_and_nothing_is_lacking():
    found = read(np.stack([0.2 * LADDER, 0.1 * LADDER], axis=1), noise=0.001)
    assert found.kept.tolist() == [True] + [False] * 8 and found.known == 0.0


def test_kept_is_what_lies_on_the_frontier_with_a_fifth_or_more_and_equal_runs_read_equally():
    first, second = read(VALLEYS, noise=0.015), read(VALLEYS, noise=0.015)
    assert (first.kept == (first.chance >= MAY)).all() and 2 < first.kept.sum() < 9
    assert first.chance.tolist() == second.chance.tolist() and (first.short, first.known) == (
        second.short,
        second.known,
    )


def test_the_bound_on_what_is_left_out_holds_in_nearly_all_simulated_sweeps():
    held = []
    for number, (truth, noise) in product(range(20), product((OPPOSED, VALLEYS), (0.006, 0.015))):
        found = read(truth, number, noise=noise)
        held.append(short(truth[None], found.kept)[0] <= found.short + 1e-9)
    assert np.mean(held) >= 0.93
