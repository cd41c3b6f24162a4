"""`locate` finds what was planted, is wrong no oftener than it says, and claims nothing that the data cannot bear.

Simulations have fixed seeds, so nothing here can flake; the bounds are those that an honest routine would miss in one
of a thousand such simulations.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ee_ray.curve import Curve, fit
from ee_ray.optimum import Optimum, _shortest, locate

LADDER = np.linspace(0, 1, 17)
ANCHORS = np.linspace(0, 1, 5)
NINE = np.linspace(0, 1, 9)
PRACTICAL = 0.01
RARE = 1e-3
STEP = 1 / 128  # of the fine grid
Truth = Callable[[np.ndarray], np.ndarray]


def sweep(
    truth: Truth, levels: np.ndarray = ANCHORS, seeds: int = 3, noise: float = 0.006, draw: int = 0
) -> pd.DataFrame:
    """Losses of a full design: truth, an offset per seed, noise."""
    rng = np.random.default_rng(draw)
    table = pd.DataFrame({"lambda": np.repeat(levels, seeds), "seed": np.tile(np.arange(seeds), len(levels))})
    offsets = rng.normal(0, 0.02, seeds)[table["seed"]]
    return table.assign(loss=truth(table["lambda"].to_numpy()) + offsets + rng.normal(0, noise, len(table)))


def find(observations: pd.DataFrame, practical: float = PRACTICAL) -> Optimum:
    return locate(observations, LADDER.tolist(), practical)


def numbers(optimum: Optimum) -> list[float]:
    """All that an optimum says about lambda; not its levels of loss."""
    gains = [optimum.gain_over_0, optimum.gain_over_1]
    return [
        optimum.lambda_star, *optimum.ci95, optimum.p_interior, optimum.noise_sd, *optimum.p_argmin,
        *(number for gain in gains for number in (gain.value, gain.lo, gain.hi)),
    ]  # fmt: skip


def valley(bottom: float, left: float, right: float) -> Truth:
    """A smooth asymmetric valley: exp(-left x) falling, exp(right x) rising, slopes that cancel at the bottom."""

    def truth(x: np.ndarray) -> np.ndarray:
        z = x - bottom
        return 2 + 0.2 * (right * np.exp(-left * z) + left * np.exp(right * z)) / (left * right * (left + right))

    return truth


def flat(x: np.ndarray) -> np.ndarray:
    return 2 + 0 * x


def falling(x: np.ndarray) -> np.ndarray:
    return 2 - 0.1 * x


def levelling(x: np.ndarray) -> np.ndarray:
    """Falls steeply, ends level: the hardest curve not to take for an interior optimum."""
    return 2 + 0.3 * np.exp(-8 * x)


def early_exposure(x: np.ndarray) -> np.ndarray:
    """Nearly all of the fall within the first tenth, then a slow rise; the least at 0.176."""
    return 2 + 0.3 * np.exp(-15 * x) + 0.32 * x


# What it finds.


def test_the_interval_holds_a_planted_optimum_as_often_as_it_claims():
    rng = np.random.default_rng(1)
    hits, runs = 0, 80
    for draw in range(runs):
        bottom = rng.uniform(0.15, 0.85)
        truth = valley(bottom, *rng.uniform(1, 6, 2))
        levels, noise = [(ANCHORS, 0.006), (NINE, 0.015)][draw % 2]
        lo, hi = find(sweep(truth, levels, noise=noise, draw=draw)).ci95
        hits += lo <= bottom <= hi
    assert hits >= stats.binom.ppf(RARE, runs, 0.95)


def test_a_clear_valley_is_called_interior_and_its_gains_are_right():
    truth = valley(0.4, 3, 2)
    found = [find(sweep(truth, draw=draw)) for draw in range(8)]
    assert [optimum.verdict for optimum in found].count("interior") >= 7
    for optimum in found:
        assert abs(optimum.lambda_star - 0.4) < 0.15
        for end, gain in ((0.0, optimum.gain_over_0), (1.0, optimum.gain_over_1)):
            assert abs(gain.value - (truth(np.array(end)) - truth(np.array(0.4)))) < 0.02
            assert gain.lo < gain.value < gain.hi


@pytest.mark.parametrize("truth", [flat, falling, levelling])
def test_a_curve_without_an_interior_optimum_is_seldom_called_interior(truth):
    runs = 30
    wrong = sum(find(sweep(truth, noise=0.012, draw=draw)).verdict == "interior" for draw in range(runs))
    assert wrong <= stats.binom.isf(RARE, runs, 0.05)


def test_a_flat_curve_is_called_flat_once_the_noise_is_small():
    verdicts = [find(sweep(flat, noise=0.002, draw=draw)).verdict for draw in range(8)]
    assert verdicts.count("flat") >= 7


def test_a_flat_curve_is_not_called_flat_by_one_who_cares_about_less():
    assert find(sweep(flat, noise=0.002), practical=0.001).verdict == "undetermined"


@pytest.mark.parametrize(("truth", "verdict"), [(falling, "boundary_1"), (lambda x: falling(1 - x), "boundary_0")])
def test_a_monotone_curve_has_its_optimum_at_the_end(truth, verdict):
    found = [find(sweep(truth, draw=draw)) for draw in range(8)]
    assert [optimum.verdict for optimum in found].count(verdict) >= 7
    assert all(float(verdict[-1]) in optimum.ci95 for optimum in found)


def test_two_equal_ends_with_a_hump_between_are_left_undetermined():
    assert find(sweep(lambda x: 2 + 0.2 * x * (1 - x))).verdict == "undetermined"


def test_a_steep_fall_near_zero_is_neither_taken_for_noise_nor_allowed_to_hide_the_minimum():
    for draw in range(4):
        optimum = find(sweep(early_exposure, NINE, draw=draw))
        assert optimum.verdict == "interior"
        assert optimum.ci95[0] - STEP <= 0.176 <= optimum.ci95[1] + STEP
        assert optimum.ci95[1] - optimum.ci95[0] < 0.25
        assert 0.003 < optimum.noise_sd < 0.012


def test_noise_and_spread_between_seeds_are_told_apart():
    optimum = find(sweep(valley(0.5, 3, 3), LADDER, seeds=12, noise=0.006))
    assert optimum.noise_sd == pytest.approx(0.006, rel=0.2)
    assert optimum.seed_sd == pytest.approx(0.02, rel=0.6)
    assert (optimum.observations, optimum.seeds) == (17 * 12, 12)


# What it must not claim.


@pytest.mark.parametrize(
    "losses",
    [[2.291, 2.218, 2.306, 2.387, 2.328], [2.024, 1.967, 2.021, 2.025, 2.049], [1.950, 1.905, 1.888, 1.916, 1.912]],
)
def test_one_seed_decides_nothing_of_what_the_paper_measured(losses):
    """Figure 3b (compute-matched): five levels, no replicate. An interior optimum is likely, no more than likely."""
    optimum = find(pd.DataFrame({"lambda": ANCHORS, "seed": 0, "loss": losses}))
    assert optimum.verdict == "undetermined"
    assert optimum.p_interior < 0.95
    assert optimum.ci95[1] - optimum.ci95[0] > 0.3
    assert optimum.noise_sd > 0.003
    assert np.isnan(optimum.seed_sd)


def test_no_two_losses_of_one_seed_leave_everything_open():
    """All differences are then confounded with seeds."""
    optimum = find(pd.DataFrame({"lambda": [0.0, 0.5, 1.0], "seed": [0, 1, 2], "loss": [2.3, 1.9, 2.2]}))
    assert optimum.verdict == "undetermined"
    assert optimum.ci95 == (0.0, 1.0)


def test_more_seeds_narrow_the_interval():
    def width(seeds: int) -> float:
        found = [find(sweep(valley(0.4, 3, 2), NINE, seeds, noise=0.015, draw=draw)).ci95 for draw in range(6)]
        return float(np.mean([hi - lo for lo, hi in found]))

    assert width(16) < 0.75 * width(4) < 0.75 * width(2)


# What it is made of.


def test_the_ladder_probabilities_are_those_of_the_best_level_on_the_ladder():
    optimum = find(sweep(valley(0.4, 3, 2)))
    assert optimum.p_argmin.index.tolist() == LADDER.tolist()
    assert optimum.p_argmin.sum() == pytest.approx(1)
    assert abs(optimum.p_argmin.idxmax() - optimum.lambda_star) <= 1 / 16
    assert optimum.p_argmin[[0.0, 0.8125, 1.0]].sum() < 0.01


def test_the_curve_is_the_mean_of_the_seeds_and_its_least_point_is_lambda_star():
    table = sweep(valley(0.4, 3, 2), noise=0.003)
    optimum = find(table)
    curve = optimum.curve.set_index("lambda")
    assert curve["mean"].idxmin() == optimum.lambda_star
    assert (curve["lo"] < curve["mean"]).all() and (curve["mean"] < curve["hi"]).all()
    assert np.abs(curve["mean"][ANCHORS] - table.groupby("lambda")["loss"].mean()).max() < 0.004
    assert curve["mean"][0.0] - curve["mean"].min() == pytest.approx(optimum.gain_over_0.value)


# What it does not depend on.


def test_a_constant_added_to_all_losses_of_a_seed_changes_nothing():
    table = sweep(valley(0.4, 3, 2))
    moved = table.assign(loss=table["loss"] + table["seed"].map({0: 0.0, 1: 3.5, 2: -0.7}))
    assert numbers(find(moved)) == pytest.approx(numbers(find(table)), abs=1e-6)
    assert find(moved).verdict == find(table).verdict


def test_the_order_of_rows_their_index_and_other_columns_change_nothing():
    table = sweep(valley(0.4, 3, 2))
    shuffled = table.sample(frac=1, random_state=0).assign(L_im=1.0)
    assert numbers(find(shuffled)) == numbers(find(table))
    assert find(shuffled).curve.equals(find(table).curve)


def test_the_signs_of_eigenvectors_which_libraries_are_free_to_choose_change_nothing(monkeypatch):
    table = sweep(valley(0.3, 6, 2))
    found, eigh = find(table), np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda a: (lambda d, basis: (d, -basis))(*eigh(a)))
    assert numbers(find(table)) == pytest.approx(numbers(found), rel=1e-9)


def test_a_seed_seen_at_one_level_says_nothing_about_lambda():
    table = sweep(valley(0.4, 3, 2))
    lonely = pd.DataFrame({"lambda": [0.25], "seed": [9], "loss": [1.0]})
    assert numbers(find(pd.concat([table, lonely]))) == pytest.approx(numbers(find(table)), abs=1e-6)


def test_units_change_nothing_but_units():
    table = sweep(valley(0.4, 3, 2))
    nats, millinats = find(table), find(table.assign(loss=1000 * table["loss"]), 1000 * PRACTICAL)
    assert millinats.ci95 == pytest.approx(nats.ci95)
    assert millinats.gain_over_1.lo == pytest.approx(1000 * nats.gain_over_1.lo)


def test_designs_with_holes_are_welcome():
    table = sweep(valley(0.4, 3, 2), LADDER).sample(frac=0.5, random_state=1)
    optimum = find(table)
    assert optimum.verdict == "interior"
    assert optimum.ci95[0] <= 0.4 <= optimum.ci95[1]
    assert optimum.observations == len(table)


def argmins(table: pd.DataFrame, practical: float = PRACTICAL) -> tuple[Curve, tuple[float, float]]:
    curve = fit(table, LADDER, practical)
    return curve, _shortest(curve.grid[curve.draws.argmin(axis=1)])


def test_in_a_clear_valley_the_interval_is_that_of_the_argmin():
    """Levels there lose more than matters before they are sure to lose."""
    table = sweep(lambda x: 2 + 2 * (x - 0.4) ** 2)
    assert find(table).ci95 == argmins(table)[1]


@pytest.mark.parametrize("practical", [0.001, 0.01])
def test_where_a_curve_is_level_the_interval_also_holds_what_may_beat_the_best(practical):
    """However little is called small: what the noise of a run hides is never ruled out by it."""
    table = sweep(levelling)
    optimum, (curve, _) = find(table, practical), argmins(table, practical)
    best = int(curve.mean.argmin())
    may_beat = (curve.draws < curve.draws[:, [best]]).mean(axis=0) >= 0.05
    near = curve.mean - curve.mean[best] < max(practical, optimum.noise_sd)
    rivals = curve.grid[may_beat & near]
    assert optimum.ci95[0] <= rivals.min() and rivals.max() <= optimum.ci95[1]
    assert rivals.min() < argmins(table, practical)[1][0]


# What it refuses.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="seed"), "lack the columns"),
        (lambda t: t.assign(loss=t["loss"].where(t.index != 4)), "must be finite"),
        (lambda t: t.assign(loss=np.inf), "must be finite"),
        (lambda t: t.assign(**{"lambda": t["lambda"] * 2}), r"lie in \[0, 1\]"),
        (lambda t: pd.concat([t, t.head(1)]), "twice"),
        (lambda t: t[t["lambda"].isin([0, 1])], "three levels"),
        (lambda t: t.head(0), "three levels"),
    ],
)
def test_observations_that_cannot_be_used_are_refused_with_the_reason(change, message):
    with pytest.raises(ValueError, match=message):
        find(change(sweep(flat)))


@pytest.mark.parametrize(
    ("ladder", "practical", "message"),
    [
        ([0.5], 0.01, "two or more levels"),
        ([0.0, 1.5], 0.01, "two or more levels"),
        ([0.0, 0.5, 0.5], 0.01, "repeats"),
        ([0.0, 1.0], 0.0, "practical"),
    ],
)
def test_ladders_and_tolerances_that_mean_nothing_are_refused(ladder, practical, message):
    with pytest.raises(ValueError, match=message):
        locate(sweep(flat), ladder, practical)
