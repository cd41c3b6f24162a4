"""Allocations conserve every window, mixing is exact and even, and the order depends on nothing but the seed."""

import numpy as np
import pytest
from conftest import tiny
from hypothesis import given
from hypothesis import strategies as st

from ee_ray.data.order import Run, interleave, permutation, schedule, windows
from ee_ray.plan import allocate
from ee_ray.spec.sweep import SweepSpec

seeds = st.integers(0, 2**40)


def spec(ladder: int = 4, mixing: str = "add", tokens: int = 2048) -> SweepSpec:
    raw = tiny(search__ladder=ladder, stages__pretrain__mixing=mixing, stages__posttrain__tokens=tokens)
    return SweepSpec.model_validate(raw)


@given(st.sampled_from([2, 4, 8, 16]), st.sampled_from(["add", "replace"]), st.integers(1, 6), st.data())
def test_every_allocation_conserves_the_budget_of_the_target_corpus(ladder, mixing, times, data):
    sweep = spec(ladder, mixing, tokens=32 * 16 * times)
    level = data.draw(st.integers(0, ladder))
    split = allocate(sweep, level)
    budget = sweep.stages.posttrain.tokens // 32
    assert split.exposed + split.post == budget
    assert split.exposed * ladder == budget * level
    total = split.pre + split.exposed
    assert total == 256 + (split.exposed if mixing == "add" else 0)


@given(st.integers(1, 200), seeds, st.integers(0, 5))
def test_an_epoch_visits_every_window_once(pool, seed, epoch):
    assert sorted(permutation(pool, seed, epoch)) == list(range(pool))


def test_the_order_is_the_same_on_every_machine_and_version():
    """Written down once. If this changes, every published stage was trained in another order: bump STAGE_VERSION."""
    assert permutation(10, 0, 0).tolist() == [7, 4, 8, 1, 2, 6, 5, 0, 9, 3]
    assert permutation(10, 7, 3).tolist() == [5, 8, 4, 1, 9, 6, 3, 7, 0, 2]


@given(st.integers(1, 50), seeds, st.integers(0, 120), st.integers(0, 120))
def test_a_run_is_a_slice_of_one_endless_order(pool, seed, a, b):
    start, stop = min(a, b), max(a, b)
    whole = windows(Run(pool, 0, 120, seed))
    assert np.array_equal(windows(Run(pool, start, stop, seed)), whole[start:stop])


@given(st.integers(1, 60), seeds, st.integers(0, 60), st.integers(0, 60))
def test_a_larger_lambda_only_adds_windows_to_pretraining(pool, seed, a, b):
    few, many = min(a, b), max(a, b)
    assert np.array_equal(windows(Run(pool, 0, many, seed))[:few], windows(Run(pool, 0, few, seed)))


@given(st.integers(1, 60), seeds, st.data())
def test_both_stages_together_see_the_whole_budget(pool, seed, data):
    split = data.draw(st.integers(0, pool))
    first, second = windows(Run(pool, 0, split, seed)), windows(Run(pool, split, pool, seed))
    assert sorted([*first, *second]) == list(range(pool))


@given(st.lists(st.integers(0, 80), min_size=1, max_size=4))
def test_mixing_is_exact_and_even(counts):
    parts = interleave(counts)
    assert np.bincount(parts, minlength=len(counts)).tolist() == counts
    total = sum(counts)
    for number, count in enumerate(counts):
        done = np.cumsum(parts == number)
        expected = count * np.arange(1, total + 1) / total if total else done
        assert np.all(np.abs(done - expected) <= len(counts))


@given(st.integers(1, 40), st.integers(0, 40), st.integers(1, 40), seeds)
def test_a_schedule_holds_each_part_in_its_own_order(a, b, pool, seed):
    runs = [Run(pool, 0, a, seed), Run(pool + 3, 2, 2 + b, seed + 1)]
    order = schedule(runs)
    for number, run in enumerate(runs):
        assert np.array_equal(order[order[:, 0] == number, 1], windows(run))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_workers_share_out_the_same_global_batches(size):
    torch = pytest.importorskip("torch")
    from ee_ray.train import shares
    from ee_ray.world import World

    order = schedule([Run(50, 0, 23, 0)])
    for start in range(0, 23, 6):
        batch = order[start : start + 6]
        found = [
            part for rank in range(size) for part in shares(batch, World(torch.device("cpu"), rank, size), 2, False)
        ]
        seen = [tuple(row) for part, weight, _ in found if weight for row in part]
        assert sorted(seen) == sorted(map(tuple, batch))
