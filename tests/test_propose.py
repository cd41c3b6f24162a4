"""The search is a function of its results: resumed, reordered or cut short, it makes the same choices."""

import pickle
from collections import Counter
from itertools import product

import numpy as np
import pytest
from conftest import tiny

from ee_ray.choices import alike, effects
from ee_ray.forecast import FUTURES, forecast
from ee_ray.identity import ListKey, key_of
from ee_ray.ledger import settled
from ee_ray.plan import Point, Prices, build_trial
from ee_ray.propose import Replay, anchors, decide, estimate, leading
from ee_ray.spec.sweep import SweepSpec

DATA = {"pre": "a" * 16, "post": "b" * 16, "ft": "c" * 16}


def spec(**search: object) -> SweepSpec:
    asked = {"ladder": 16, "anchors": [0, 0.5, 1], "seeds": [0, 1, 2, 3], "max_trials": 14, "ci_width": 0.01} | search
    return SweepSpec.model_validate(
        tiny(**{f"search__{name}": value for name, value in asked.items()}, stages__posttrain__tokens=2048)
    )


def prices(of: SweepSpec, found: frozenset[str] = frozenset()) -> Prices:
    return Prices(of, DATA, found)


def loss(point: Point) -> float:
    noise = np.random.default_rng([point.seed, point.level]).normal(0, 0.002)
    return 2 + 0.3 * (point.level / 16 - 0.4) ** 2 + 0.03 * point.seed + noise


def played(of: SweepSpec, results: dict | None = None, lose: tuple[Point, ...] = ()) -> tuple[dict, str]:
    """Train what is asked for until the search stops; points in `lose` fail."""
    results, rounds = dict(results or {}), {}
    while not (decision := decide(of, results, prices(of), rounds)).stop:
        results |= {point: None if point in lose else loss(point) for point in decision.outstanding}
        rounds = decision.rounds
    return results, decision.stop


def test_the_anchors_come_first_with_the_first_seeds():
    decision = decide(spec(), {}, prices(spec()))
    assert decision.outstanding == [Point(level, seed) for seed in (0, 1) for level in (0, 8, 16)]
    assert anchors(spec(anchor_seeds=9)) == [Point(level, seed) for seed in range(4) for level in (0, 8, 16)]


def test_results_that_come_in_any_order_lead_to_the_same_search():
    results, _ = played(spec())
    shuffled = {
        point: results[point] for point in np.random.default_rng(0).permutation(np.array(list(results), object))
    }
    assert decide(spec(), shuffled, prices(spec())) == decide(spec(), results, prices(spec()))


@pytest.mark.parametrize("known", [3, 6, 9, 12])
def test_a_search_resumed_anywhere_ends_as_if_it_had_never_stopped(known):
    results, stop = played(spec())
    cut = dict(list(results.items())[:known])
    assert played(spec(), cut) == (results, stop)


def test_rounds_that_are_remembered_give_the_search_that_choosing_again_gives():
    results, stop = played(spec())
    anew = decide(spec(), results, prices(spec()))
    again = decide(spec(), results, prices(spec()), anew.rounds)
    assert (again.visited, again.stop) == (anew.visited, stop)


@pytest.mark.parametrize(
    ("search", "lose"),
    [
        ({}, ()),
        ({"max_tokens": 1_200_000, "max_trials": 40}, ()),
        ({"choices": {"posttrain.learning_rate": [0.001, 0.002]}, "max_trials": 21}, ()),
        ({"runs_per_round": 3}, (Point(8, 0), Point(16, 1))),
    ],
)
def test_a_replay_that_goes_on_decides_after_each_result_as_one_from_nothing(search, lose):
    of = spec(**search)
    results, replay = {}, Replay(of, prices(of))
    while not (decision := replay.decide(results)).stop:
        assert decision == decide(of, results, prices(of), decision.rounds)
        point = decision.outstanding[len(results) % len(decision.outstanding)]
        results[point] = None if point in lose else loss(point)
        if len(results) == 9:
            replay = pickle.loads(pickle.dumps(replay))
    assert len(results) > 9 and decision == decide(of, results, prices(of)), "chosen anew, without what was noted"


def test_a_whole_search_goes_through_each_of_its_runs_a_bounded_number_of_times():
    """Whose rounds are noted, so that nothing is fitted; what is counted is how often a run's stages are asked for."""
    seeds = list(range(40))
    of = spec(seeds=seeds, max_trials=1000, max_tokens=10**12)
    asked: Counter[Point] = Counter()

    class Counting(Prices):
        def stages(self, point: Point) -> dict[str, int]:
            asked[point] += 1
            return super().stages(point)

    later = [[Point(level, seed), Point(level + 1, seed)] for seed in seeds[2:] for level in range(0, 16, 2)]
    visited, results, rounds = anchors(of), {}, {}
    for batch in later:
        results |= {point: loss(point) for point in visited if point not in results}
        rounds[key_of({"known": [[p.level, p.seed, p.choice, results[p]] for p in visited]})] = batch
        visited += batch
    results |= {point: loss(point) for point in visited[:-1]}
    replay, known = Replay(of, Counting(of, DATA, frozenset()), rounds), dict[Point, float]()
    for point in visited[:-1]:
        known[point] = results[point]
        decision = replay.decide(results if point in later[0] else known)
    assert decision.visited == visited and decision.outstanding == visited[-1:]
    assert max(asked.values()) <= 3


@pytest.mark.parametrize("length", range(4))
def test_the_key_of_a_list_that_grows_is_the_key_of_that_list(length):
    items, grown = [[3, "a", None, 0.1], {"b": 1, "a": [2.5]}, "\u03bb"][:length], ListKey("known")
    for item in items:
        grown.add(item)
    assert grown.key() == key_of({"known": items})
    with pytest.raises(TypeError):
        grown.add(float("nan"))


def test_what_was_chosen_and_trained_stays_in_the_search_whatever_would_be_chosen_now():
    """As after a release with another model: the remembered round is not what this one would choose."""
    of = spec(max_trials=8)
    results = {point: loss(point) for point in anchors(of)}
    first = decide(of, results, prices(of))
    (key,) = first.rounds
    other = [Point(level, 0) for level in range(1, 16) if Point(level, 0) not in first.outstanding][:2]
    results |= {point: loss(point) for point in other}
    assert decide(of, results, prices(of), {key: other}).visited[-2:] == other
    assert set(decide(of, results, prices(of)).visited).isdisjoint(other)


def test_a_longer_search_goes_on_from_a_shorter_one():
    shorter, _ = played(spec(max_trials=10))
    longer, _ = played(spec(max_trials=14))
    assert list(longer.items())[: len(shorter)] == list(shorter.items())


def test_a_run_that_failed_is_not_asked_for_again_and_the_search_goes_on():
    lost = (Point(8, 0), Point(16, 1))
    results, stop = played(spec(), lose=lost)
    assert all(results[point] is None for point in lost)
    assert len(results) > 6 and "max_trials" in stop


def test_a_search_that_cannot_learn_enough_says_so():
    results, stop = played(spec(), lose=tuple(Point(level, seed) for level, seed in product(range(17), range(4))))
    assert len(results) == 6 and "fewer than three levels" in stop


def test_the_search_stops_when_the_interval_is_as_narrow_as_asked():
    results, stop = played(spec(ci_width=0.5, max_trials=40))
    assert "at most 0.5 was asked for" in stop and len(results) < 20
    low, high = estimate(spec(), results).ci95
    assert high - low <= 0.5


def test_budgets_of_runs_and_of_tokens_hold_and_are_named():
    one = prices(spec())(Point(0, 0), [])
    results, stop = played(spec(max_tokens=9 * one))
    assert len(results) in (8, 9) and f"max_tokens {9 * one:,}" in stop
    results, stop = played(spec(max_trials=11))
    assert len(results) in (10, 11) and "max_trials 11" in stop


def test_no_budget_is_spent_on_half_of_a_pair():
    for most in range(6, 15):
        results, _ = played(spec(max_trials=most))
        seeds = [point.seed for point in results]
        assert min(seeds.count(seed) for seed in set(seeds)) >= 2


def test_a_trial_is_settled_when_nothing_of_it_is_left_to_train():
    """Published, diverged, or under a stage that diverged; then its objective counts if it is there."""
    of = spec()
    trial = build_trial(of, DATA, Point(8, 0))
    losses = {"pre": 2.0, "post": 1.5, "ft": 3.0}
    every = {stage.key: {"losses": losses} for stage in trial.stages}
    assert settled(of, trial, every, {}) == (True, 1.5)
    hot = trial.finetunes[1][1].key
    without = {key: record for key, record in every.items() if key != hot}
    assert settled(of, trial, without, {}) == (False, None)
    assert settled(of, trial, without, {hot: {"diverged": False}}) == (False, None)
    assert settled(of, trial, without, {hot: {"diverged": True}}) == (True, 1.5)
    assert settled(of, trial, {}, {trial.pretrain.key: {"diverged": True}}) == (True, None)


def test_a_seed_with_one_run_left_and_none_told_is_passed_over():
    of = spec(ladder=2, seeds=[0, 1], anchor_seeds=1)
    results = {Point(level, 0): loss(Point(8 * level, 0)) for level in range(3)}
    results |= {Point(0, 1): None, Point(1, 1): None}
    assert decide(of, results, prices(of)).visited


def test_prices_count_what_is_not_trained_yet():
    of = spec()
    point = Point(4, 0)
    whole = prices(of)(point, [])
    assert prices(of)(point, prices(of).had([point])) == 0
    assert prices(of)(Point(4, 1), prices(of).had([point])) == whole
    pretrain = next(iter(prices(of).stages(point)))
    left = prices(of, frozenset([pretrain]))
    assert left(point, left.had([])) == whole - prices(of).stages(point)[pretrain]


def test_levels_whose_pretraining_another_sweep_has_left_are_taken_first():
    """They cost a fraction of the others and so teach more for each token."""
    of = spec(runs_per_round=1)
    results = {point: loss(point) for point in anchors(of)}
    cheap = [Point(level, seed) for level in (2, 11) for seed in (0, 1)]
    found = frozenset(next(iter(prices(of).stages(point))) for point in cheap)
    assert set(decide(of, results, prices(of, found)).outstanding) <= set(cheap)


def test_a_forecast_plays_the_search_forward():
    of = spec(ci_width=0.4, max_trials=40)
    results = {point: loss(point) for point in anchors(of)}
    futures = list(forecast(of, results, prices(of)))
    assert len(futures) == FUTURES and futures == list(forecast(of, results, prices(of)))
    one = prices(of)(Point(0, 0), [])
    for future in futures:
        assert future.runs >= len(results) and future.tokens == future.runs * one
        assert future.enough is None or "at most 0.4 was asked for" in future.enough or "flat" in future.enough
    assert sum(bool(future.enough) for future in futures) >= FUTURES - 2


def test_a_forecast_asks_for_more_runs_where_runs_are_noisier(monkeypatch):
    monkeypatch.setattr("ee_ray.forecast.MOST_RUNS", 18)

    def needed(noise: float) -> float:
        rng = np.random.default_rng(5)
        of = spec(ci_width=0.5, max_trials=40)
        results = {p: loss(p) + rng.normal(0, noise) for p in anchors(of)}
        return float(np.median([future.runs for future in forecast(of, results, prices(of))]))

    assert needed(0.03) > needed(0.0)


def test_a_grid_that_is_all_tried_ends_however_often_it_is_asked():
    of = spec(ladder=2, anchors=[0, 0.5, 1], seeds=[0, 1], max_trials=20)
    results, stop = played(of)
    assert len(results) == 6 and stop == "every level of the ladder is tried with every seed"
    once = decide(of, results, prices(of))
    assert decide(of, results, prices(of), once.rounds) == once


RATES = {"posttrain.learning_rate": [0.001, 0.002]}


def with_choices(point: Point) -> float:
    """The second choice is better by 0.05, and by nothing at lambda = 1, where nothing is left for post-training."""
    return loss(Point(point.level, point.seed)) - 0.05 * (point.choice == 1) * (1 - point.level / 16)


def test_every_choice_is_tried_at_every_anchor_and_a_clearly_better_one_goes_on():
    of = spec(choices=RATES, max_trials=30)
    first = decide(of, {}, prices(of)).outstanding
    assert len(first) == 2 * 2 * 3 == len(set(first))
    results = {point: with_choices(point) for point in first}
    assert leading(of, {}) == 0 and leading(of, results) == 1
    later: list[Point] = []
    for _ in range(3):
        batch = decide(of, results, prices(of)).outstanding
        results |= {point: with_choices(point) for point in batch}
        later += batch
    assert sum(point.choice for point in later) > len(later) / 2


def test_a_choice_that_looked_worse_at_the_anchors_can_still_win():
    """Its valley lies between two anchors."""
    of = spec(choices=RATES, max_trials=40, ci_width=0.15, seeds=[0, 1, 2])

    def told(point: Point) -> float:
        x, noise = point.level / 16, np.random.default_rng([point.seed, point.level, point.choice]).normal(0, 0.001)
        wide, narrow = 0.1 * (x - 0.5) ** 2, 0.02 * (1 - x) - 0.06 * np.exp(-(((x - 0.25) / 0.12) ** 2))
        return 2 + 0.03 * point.seed + (noise + narrow * (1 - x) if point.choice else noise + wide * (1 - x))

    results, rounds = {}, {}
    while not (decision := decide(of, results, prices(of), rounds)).stop:
        results |= {point: told(point) for point in decision.outstanding}
        rounds = decision.rounds
    anchored = {point: results[point] for point in anchors(of)}
    assert leading(of, anchored) == 0 and leading(of, results) == 1
    assert estimate(of, results).lambda_star == pytest.approx(0.25, abs=0.07)


def test_where_a_choice_is_a_choice_of_nothing_its_runs_are_one_observation():
    """The same stages gave the same loss: seeing it twice must not make anything surer."""
    of = spec(choices=RATES, max_trials=30)
    results = {point: with_choices(point) for point in anchors(of)}
    once = {point: value for point, value in results.items() if (point.level, point.choice) != (16, 1)}
    assert estimate(of, results).ci95 == estimate(of, once).ci95
    assert prices(of)(Point(16, 0, 1), prices(of).had([Point(16, 0, 0)])) == 0
    asked = decide(of, results, prices(of)).outstanding
    assert all(point.choice == 0 for point in asked if point.level == 16)


def test_choices_of_post_training_matter_less_towards_all_pretraining_and_those_of_both_do_not():
    of = spec(choices={"posttrain.learning_rate": [1e-3, 2e-3], "pretrain.learning_rate": [1e-3, 2e-3]}, max_trials=40)
    rate, pretrain, both = effects(of, alike(of))
    assert (rate.values, rate.pinned) == ((0, 0, 1, 1), (1,))
    assert (pretrain.values, pretrain.pinned) == ((0, 1, 0, 1), ())
    assert (both.values, both.pinned) == ((0, 1, 2, 3), (1,))
    assert alike(of) == {0: [0, 1, 2, 3], 16: [0, 1, 0, 1]}


def test_where_in_pretraining_matters_to_none_who_mix_nothing_in():
    windows = [{"window": [0.0, 1.0]}, {"window": [0.5, 1.0]}]
    of = spec(choices={"pretrain.exposure": windows}, max_trials=30)
    assert [effect.pinned for effect in effects(of, alike(of))] == [(0,)]


def test_one_choice_alone_is_answered_as_if_there_were_none_to_choose():
    of = spec(choices={"posttrain.learning_rate": [0.001]}, max_trials=30)
    results = {point: loss(point) for point in anchors(of)}
    mine, plain = estimate(of, results), estimate(spec(), results)
    assert (mine.lambda_star, mine.ci95, mine.gain_over_0) == (plain.lambda_star, plain.ci95, plain.gain_over_0)


def test_two_anchors_draw_frontiers_and_seek_no_optimum():
    of = spec(anchors=[0, 1], max_trials=4)
    results, stop = played(of)
    assert len(results) == 4 and "frontiers, no lambda*" in stop
    with pytest.raises(ValueError, match="two anchors locate no optimum"):
        spec(anchors=[0, 1], max_trials=10)
