"""How much lower one method's frontier lies than another's: pairing by seed, bands, and equal numbers of trials.

Simulations have fixed seeds; their bounds are those that an honest routine would miss in one of a thousand.
"""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ee_ray.compare import GRID, Gap, compare, gap
from ee_ray.frontier import envelope

KINDS = ["hull", "pareto"]


def search(method: str, trials: int, seeds: int, draw: int, lower: float = 0.0) -> pd.DataFrame:
    """Trials of a method whose checkpoints lie on and above a trade-off curve, `lower` nats below its usual place."""
    rng = np.random.default_rng([draw, trials, round(lower * 1e6)])
    n = trials * seeds
    along, above = rng.random(n), rng.exponential(0.15, n)
    x, y = 2 + along + above * rng.random(n), 1.5 + 0.5 / (along + 0.5) + above - lower
    return pd.DataFrame({"method": method, "seed": np.repeat(np.arange(seeds), trials), "x": x, "y": y})


def numbers(found: Gap) -> list[float]:
    return [found.mean, *found.ci95, *found.curve.to_numpy().ravel()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_method_has_no_gap_to_itself_and_the_shift_of_its_copy_is_the_gap(kind):
    ours = search("ours", 12, 3, draw=0)
    trials = pd.concat([ours, ours.assign(method="copy"), ours.assign(method="higher", y=ours["y"] + 0.25)])
    for other in ("ours", "copy"):
        itself = gap(trials, "ours", other, kind)
        assert (itself.mean, itself.ci95) == (0, (0, 0))
        assert not itself.curve[["gap", "lo", "hi"]].to_numpy().any()
    shifted = gap(trials, "ours", "higher", kind)
    assert shifted.mean == pytest.approx(0.25)
    assert shifted.ci95 == pytest.approx((0.25, 0.25))
    assert np.allclose(shifted.curve[["gap", "lo", "hi"]], 0.25)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gap_seen_from_the_other_side_has_the_other_sign(kind):
    trials = pd.concat([search("a", 12, 3, draw=0), search("b", 20, 3, draw=1)])
    forth, back = gap(trials, "a", "b", kind), gap(trials, "b", "a", kind)
    assert forth.mean == pytest.approx(-back.mean)
    assert np.allclose(forth.curve[["x", "gap"]], back.curve[["x", "gap"]] * [1, -1])


def test_the_curve_is_the_mean_over_seeds_of_their_own_differences():
    trials = pd.concat([search("a", 12, 3, draw=0), search("b", 20, 3, draw=1)])
    found = gap(trials, "a", "b")
    points = {key: rows[["x", "y"]].to_numpy() for key, rows in trials.groupby(["method", "seed"])}
    x = found.curve["x"].to_numpy()
    assert len(x) == GRID
    each = [envelope(points["b", seed], x) - envelope(points["a", seed], x) for seed in range(3)]
    assert np.allclose(found.curve["gap"], np.mean(each, axis=0))


def test_neither_order_nor_duplicates_nor_dominated_trials_change_a_gap():
    trials = pd.concat([search("a", 12, 3, draw=0), search("b", 12, 3, draw=1)])
    dominated = trials.assign(x=trials["x"] + 0.1, y=trials["y"] + 0.1)
    more = pd.concat([trials, trials, dominated]).sample(frac=1, random_state=0)
    assert np.allclose(numbers(gap(more, "a", "b")), numbers(gap(trials, "a", "b")))


def test_what_a_seed_does_to_both_methods_widens_no_band():
    """Seeds pair: a seed of luckier data lowers both frontiers."""
    trials = pd.concat([search("a", 12, 4, draw=0), search("b", 12, 4, draw=1)])
    luck = trials.assign(y=trials["y"] + trials["seed"].map({0: 0.0, 1: 5.0, 2: -1.0, 3: 0.3}))
    assert np.allclose(numbers(gap(luck, "a", "b")), numbers(gap(trials, "a", "b")))


def test_the_band_holds_a_planted_gap_as_often_as_it_claims():
    sweeps, covered, pointwise = 150, 0, []
    for draw in range(sweeps):
        trials = pd.concat([search("better", 12, 4, draw, lower=0.05), search("usual", 12, 4, draw)])
        found = gap(trials, "better", "usual")
        covered += found.ci95[0] <= 0.05 <= found.ci95[1]
        pointwise.extend((found.curve["lo"] <= 0.05) & (found.curve["hi"] >= 0.05))
    assert stats.binom.ppf(0.001, sweeps, 0.95) <= covered <= stats.binom.ppf(0.999, sweeps, 0.95)
    assert np.mean(pointwise) == pytest.approx(0.95, abs=0.04)


def test_one_seed_gives_a_gap_without_a_band():
    found = gap(pd.concat([search("a", 12, 1, draw=0), search("b", 12, 1, draw=1)]), "a", "b")
    assert np.isfinite(found.mean) and found.seeds == 1
    assert np.isnan(found.ci95).all() and found.curve[["lo", "hi"]].isna().all(axis=None)


def test_frontiers_that_share_no_x_have_no_gap():
    ours = search("a", 12, 3, draw=0)
    found = gap(pd.concat([ours, ours.assign(method="b", x=ours["x"] + 10)]), "a", "b")
    assert np.isnan([found.mean, *found.ci95]).all() and found.curve.empty


def test_what_cannot_be_compared_is_refused():
    trials = pd.concat([search("a", 3, 1, draw=0), search("b", 3, 1, draw=1)])
    for bad, message in [
        (trials.drop(columns="seed"), "lack the columns"),
        (trials.assign(seed=np.nan), "needs a seed"),
        (trials.assign(y=np.inf), "finite"),
        (trials[trials["method"] == "a"], "no trials of 'b'"),
        (trials.assign(seed=trials["method"]), "no seed in common"),
    ]:
        with pytest.raises(ValueError, match=message):
            compare(bad, "a", "b")


def test_an_advantage_that_is_only_more_trials_goes_when_trials_are_matched(monkeypatch):
    monkeypatch.setattr("ee_ray.compare.SUBSAMPLES", 20)  # of each of the many sweeps averaged over here
    for kind in KINDS:
        found = [
            compare(pd.concat([search("few", 12, 1, draw), search("many", 48, 1, draw)]), "many", "few", kind)
            for draw in range(80)
        ]
        assert all(one.unequal for one in found)
        plain, matched = (np.array([getattr(one, name).mean for one in found]) for name in ("plain", "matched"))
        assert stats.ttest_1samp(plain, 0, alternative="greater").pvalue < 1e-9
        assert stats.ttest_1samp(matched, 0).pvalue > 1e-3
        assert abs(matched.mean()) < plain.mean() / 5


def test_matching_keeps_an_advantage_that_is_not_owed_to_more_trials():
    trials = pd.concat([search("better", 48, 4, draw=0, lower=0.1), search("usual", 12, 4, draw=0)])
    found = compare(trials, "better", "usual")
    lo, hi = found.matched.ci95
    assert 0 < lo < 0.1 < hi
    assert found.matched.mean < found.plain.mean


def test_a_matched_curve_stops_where_most_draws_do_not_reach():
    trials = pd.DataFrame(
        [("lucky", 0.0, 0.9)] + [("lucky", 0.5, 0.4)] * 9 + [("lucky", 1.0, -0.1)] * 10
        + [("usual", x, 1 - x) for x in (0.0, 0.3, 0.6, 1.0)],
        columns=["method", "x", "y"],
    ).assign(seed=0)  # fmt: skip
    found = compare(trials, "lucky", "usual")
    assert found.plain.curve["x"].agg(["min", "max"]).tolist() == [0, 1]
    assert found.matched.curve["x"].agg(["min", "max"]).tolist() == [0.5, 1]
    assert np.allclose(found.matched.curve["gap"], 0.1)


def test_a_comparison_counts_trials_by_seed_and_compares_the_seeds_that_both_ran():
    trials = pd.concat([search("a", 12, 3, draw=0), search("b", 20, 2, draw=1), search("c", 5, 9, draw=1)])
    found = compare(trials, "a", "b")
    assert found.counts.to_dict("list") == {"a": [12, 12, 12], "b": [20, 20, 0]}
    assert found.unequal and found.plain.seeds == found.matched.seeds == 2


def test_equal_numbers_of_trials_are_matched_as_they_are():
    trials = pd.concat([search("a", 12, 3, draw=0), search("b", 12, 2, draw=1)])
    found = compare(trials, "a", "b")
    assert not found.unequal and found.matched is found.plain


def test_the_same_trials_give_the_same_numbers_in_any_order():
    trials = pd.concat([search("a", 12, 3, draw=0), search("b", 20, 3, draw=1)])
    found, again = compare(trials, "a", "b"), compare(trials.sample(frac=1, random_state=0), "a", "b")
    assert numbers(found.matched) == numbers(again.matched)
    assert numbers(found.plain) == numbers(again.plain)
