"""The next runs go where they teach most for each token."""

from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest

from ee_ray.acquisition import DRAWS, _candidates, _Doubt, _noise, choose
from ee_ray.curve import NOISES, Curve, fit, noise_covariance
from ee_ray.optimum import summarise

LADDER = np.linspace(0, 1, 17)
PRACTICAL = 0.01
ANCHORS = list(product((0, 8, 16), (0, 1)))
EVERY = list(product(range(17), range(4)))


def loss(level: int, seed: int, depth: float = 0.3) -> float:
    noise = np.random.default_rng([seed, level]).normal(0, 0.006)
    return depth * (LADDER[level] - 0.35) ** 2 + 0.05 * seed + noise


def seen(runs: list[tuple[int, int]]) -> Curve:
    rows = [(LADDER[level], seed, loss(level, seed)) for level, seed in runs]
    return fit(pd.DataFrame(rows, columns=["lambda", "seed", "loss"]), LADDER, PRACTICAL)


def left(runs: list[tuple[int, int]], seeds: int = 4) -> list[tuple[int, int]]:
    return [run for run in EVERY if run not in runs and run[1] < seeds]


def test_choices_are_open_runs_and_each_is_made_once():
    chosen = choose([seen(ANCHORS)], LADDER, left(ANCHORS), 6, len)
    assert len(set(chosen)) == len(chosen) >= 6
    assert set(chosen) <= set(left(ANCHORS))


def test_the_order_in_which_open_runs_are_listed_changes_nothing():
    curve = seen(ANCHORS)
    assert choose([curve], LADDER, left(ANCHORS)[::-1], 3, len) == choose([curve], LADDER, left(ANCHORS), 3, len)


def test_a_new_seed_enters_with_two_levels_for_its_first_alone_teaches_nothing():
    fresh = [run for run in EVERY if run[1] == 3]
    chosen = choose([seen(ANCHORS)], LADDER, fresh, 1, len)
    assert len(chosen) == 2 and len({level for level, _ in chosen}) == 2


def test_a_fine_ladder_makes_no_more_pairs_of_a_new_seed_than_a_coarse_one():
    left = [(level, seed) for seed in (3, 4) for level in range(257)]
    pairs = list(_candidates(left, begun=set(), known={3}, levels=257))
    assert len(pairs) == 17 * 16 // 2
    assert {seed for pair in pairs for _, seed in pair} == {3}
    assert {0, 256} <= {level for pair in pairs for level, _ in pair}


def test_a_new_seed_may_enter_with_any_level_of_any_choice_and_with_two_choices_of_one_level():
    left = [(choice * 17 + level, 3) for choice in range(3) for level in range(17)]
    pairs = list(_candidates(left, begun=set(), known={3}, levels=17))
    assert len(pairs) == 3 * 17 * 16 // 2 + 17 * 3
    assert {place for pair in pairs for place, _ in pair} == set(range(51))


@pytest.mark.parametrize("kind", range(len(NOISES)))
def test_choices_share_the_smooth_part_of_a_seeds_noise_as_the_fit_has_it(kind):
    curve = seen(ANCHORS)
    two = replace(curve, means=np.repeat(curve.means, 2, axis=0), sigma=np.ones(DRAWS), kind=np.full(DRAWS, kind))
    few = LADDER[::4]
    noise = _noise(two, few, np.arange(DRAWS), np.random.default_rng(0))
    told, wanted = np.cov(noise.T), noise_covariance(kind, np.tile(few, 2))
    assert np.abs(told - wanted).max() < 0.12 * wanted.max()


def test_a_run_teaches_less_once_one_like_it_is_taken():
    doubt = _Doubt(seen(ANCHORS), LADDER, fresh=2)
    near, far = ((5, 0),), ((14, 1),)
    before = doubt.falls([near, far])
    doubt.take(((5, 1),))
    after = doubt.falls([near, far])
    assert (after >= 0).all() and after[0] < before[0]


def test_what_was_run_is_known_and_teaches_nothing():
    doubt = _Doubt(seen(ANCHORS), LADDER, fresh=2)
    assert doubt.falls([((8, 0),)])[0] == pytest.approx(0, abs=1e-6)
    doubt.take(((3, 2), (11, 2)))
    assert doubt.falls([((3, 2),), ((11, 2),)]) == pytest.approx([0, 0], abs=1e-6)


def test_a_seeds_own_offset_is_no_information():
    """All losses of one seed 5 nats higher: the same runs are chosen."""
    shifted = seen(ANCHORS).seen.copy()
    shifted.loc[shifted["seed"] == 1, "loss"] += 5
    again = fit(shifted, LADDER, PRACTICAL)
    assert choose([again], LADDER, left(ANCHORS), 4, len) == choose([seen(ANCHORS)], LADDER, left(ANCHORS), 4, len)


def test_when_all_is_tried_nothing_is_chosen():
    assert choose([seen(ANCHORS)], LADDER, [], 2, len) == []


def test_half_of_a_pair_is_no_candidate():
    assert choose([seen(ANCHORS)], LADDER, [(4, 3)], 2, len) == []


def test_a_run_that_costs_next_to_nothing_comes_first():
    chosen = choose([seen(ANCHORS)], LADDER, left(ANCHORS), 1, lambda runs: 0.02 if runs == ((3, 1),) else len(runs))
    assert chosen == [(3, 1)]


def test_a_run_that_costs_a_hundred_times_as_much_is_left():
    curve = seen(ANCHORS)
    first = choose([curve], LADDER, left(ANCHORS), 1, len)[0]
    assert first not in choose([curve], LADDER, left(ANCHORS), 4, lambda runs: 100.0 if first in runs else len(runs))


def test_the_search_closes_in_on_the_optimum_with_half_the_runs_of_a_full_grid():
    """51 runs: 17 levels by three seeds. Interval of at most 0.2, and the optimum in it."""
    runs = list(ANCHORS)
    while len(runs) < 24:
        runs += choose([seen(runs)], LADDER, left(runs), 3, len)
    optimum = summarise(seen(runs), LADDER, PRACTICAL)
    grid = summarise(seen(list(product(range(17), range(3)))), LADDER, PRACTICAL)
    assert optimum.verdict == "interior"
    assert optimum.ci95[0] <= 0.35 <= optimum.ci95[1]
    assert optimum.ci95[1] - optimum.ci95[0] <= grid.ci95[1] - grid.ci95[0] + 0.05


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_single_seed_is_searched_too(seeds):
    runs = list(product((0, 8, 16), range(seeds)))
    chosen = choose([seen(runs)], LADDER, left(runs, seeds), 2, len)
    assert len(chosen) == 2
