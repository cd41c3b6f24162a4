"""A sweep whose objective is a frontier (objective.loss: pareto): its search, and what is told of it."""

import numpy as np
import pytest
from conftest import Place, figures_of, tiny
from optuna.trial import TrialState

from ee_ray.errors import UserError
from ee_ray.forecast import forecast
from ee_ray.ledger import read_ledger
from ee_ray.plan import Point, Prices
from ee_ray.propose import Replay, anchors, decide, estimate, estimate_frontier
from ee_ray.report import words
from ee_ray.search import NOTHING, Job, LadderSearch, open_search
from ee_ray.spec.load import load_sweep
from ee_ray.spec.sweep import SweepSpec
from ee_ray.sweep import open_sweep

DATA = {"pre": "a" * 16, "post": "b" * 16, "ft": "c" * 16}
PARETO = {"loss": "pareto", "losses": ["L_ret", "L_ft"], "finetune_lr": 1e-4, "practical": 0.01}
LOST = Point(16, 1)


def spec(practical: float = 0.01, **search: object) -> SweepSpec:
    asked = {"ladder": 16, "anchors": [0, 0.5, 1], "seeds": [0, 1, 2], "max_trials": 14, "runs_per_round": 4} | search
    fields = {f"search__{name}": value for name, value in asked.items()}
    return SweepSpec.model_validate(tiny(**fields, stages__posttrain__tokens=2048, objective=PARETO | {"practical": practical}))  # fmt: skip


def prices(of: SweepSpec) -> Prices:
    return Prices(of, DATA, frozenset())


def run(point: Point) -> tuple[float, float] | None:
    """Least at lambda 0.3 and 0.7: what lies between is the frontier. The second choice is worse by both losses."""
    noise, x = np.random.default_rng([point.seed, point.level]).normal(0, 0.003, 2), point.level / 16
    worse = 0.05 * point.choice * (1 - x)  # at lambda = 1 it trains the same
    return (2 + 0.3 * (x - 0.3) ** 2 + 0.03 * point.seed + noise[0] + worse, 3 + 0.3 * (x - 0.7) ** 2 + noise[1] + worse)  # fmt: skip


def played(of: SweepSpec, known: dict | None = None) -> tuple[dict, str]:
    results, replay = dict(known or {}), Replay(of, prices(of))
    while not (decision := replay.decide(results)).stop:
        results |= {point: None if point == LOST else run(point) for point in decision.outstanding}
    return results, decision.stop


def searching(place: Place) -> LadderSearch:
    sweep = open_sweep(place.folder / "tiny.yaml", place.folder / "store")
    return open_search(Job(sweep.spec, sweep.data, place.store.place), read_ledger(sweep.spec, sweep.data, place.store))


@pytest.fixture(scope="module")
def whole() -> tuple[SweepSpec, dict, str]:
    of = spec(practical=0.002)
    return of, *played(of)


def test_the_search_finds_a_planted_frontier_and_ends_when_it_is_known():
    of = spec(max_trials=24)
    results, stop = played(of)
    found = estimate_frontier(of, results)
    assert stop == "the frontier is known to 0.01 nats" and found.known <= 0.01 and len(results) < 24
    assert found.kept[6:11].all() and not found.kept[[0, 1, 15, 16]].any()
    assert estimate(of, results) is None


def test_a_search_resumed_anywhere_ends_as_if_it_had_never_stopped(whole):
    of, results, stop = whole
    for known in (4, 9):
        assert played(of, dict(list(results.items())[:known])) == (results, stop)


def test_a_replay_from_nothing_decides_as_one_that_goes_on_whatever_the_order_and_though_a_run_failed(whole):
    of, results, stop = whole
    shuffled = {point: results[point] for point in np.random.default_rng(0).permutation(np.array(list(results), object))}  # fmt: skip
    anew = decide(of, shuffled, prices(of))
    assert results[LOST] is None and anew.visited == list(results) and anew.stop == stop
    assert stop == "max_trials 14 are spent"


def test_with_other_choices_the_frontier_is_over_all_of_them_and_what_is_beaten_is_seen():
    of = spec(0.002, choices={"posttrain.learning_rate": [0.001, 0.002]}, anchors=[0, 0.25, 0.5, 0.75, 1], max_trials=22, runs_per_round=2)  # fmt: skip
    results, _ = played(of)
    found = estimate_frontier(of, results)
    assert len(results) > 20 and found.kept.shape == (34,)
    assert found.kept[7:10].all() and found.chance[7:10].min() > 2 * found.chance[17:33].max()


def test_a_forecast_of_a_frontier_plays_its_search_forward(monkeypatch):
    monkeypatch.setattr("ee_ray.forecast.FUTURES", 2)
    of = spec()
    futures = list(forecast(of, {point: run(point) for point in anchors(of)}, prices(of)))
    assert {future.enough for future in futures} == {"the frontier is known to 0.01 nats"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": None}, "losses goes with loss: pareto, and loss: pareto needs it"),
        ({"loss": "L_ret"}, "losses goes with loss: pareto"),
        ({"losses": ["L_ret"]}, "at least 2"),
        ({"losses": ["L_ret", "L_ret"]}, "losses must not repeat one, got L_ret, L_ret"),
        ({"losses": ["L_ret", "L_fit"]}, "L_fit"),
    ],
)
def test_losses_that_are_missing_or_wrong_are_refused_in_one_message(changes, message, write):
    with pytest.raises(UserError) as caught:
        load_sweep(write(objective=PARETO | changes))
    assert len(caught.value.problems) == 1 and message in str(caught.value)


def test_a_sweep_for_a_frontier_runs_to_its_report_and_optuna_holds_every_loss(copy: Place):
    told = copy.ee_ray("run", copy.write(objective=PARETO | {"practical": 0.0001}), "--local").stdout
    summary = copy.summary()
    (found,) = summary["tradeoffs"]
    assert found["losses"] == ["L_ret", "L_ft"] and len(found["levels"]) == 5 and any(level["kept"] for level in found["levels"])  # fmt: skip
    assert summary["optimum"] is None and {other["loss"] for other in summary["others"]} >= {"L_ret", "L_im", "weighted"}  # fmt: skip
    page = (copy.folder / "reports/tiny/index.html").read_text()
    assert words.tradeoff(found) in page and {"tradeoff", "search", "question-1"} <= set(figures_of(page))
    assert words.tradeoff(found) in told and summary["stop_reason"] in told
    assert "0 problems" in copy.ee_ray("verify", "tiny.yaml").stdout, "a replay from nothing gives the same"
    search = searching(copy)
    rows = [row for row in summary["trials"] if row["finetune_lr"] == 1e-4]
    assert search._ot_study.metric_names == ["L_ret", "L_ft"] and search._ot_study.best_trials
    assert sorted(trial.values for trial in search._ot_study.trials) == sorted([row["L_ret"], row["L_ft"]] for row in rows)  # fmt: skip
    assert search.so_far()["frontier"]["of"] == 5


def test_a_trial_that_lacks_one_of_the_losses_has_failed_and_is_not_asked_for_again(copy: Place):
    copy.write(objective=PARETO, search__anchor_seeds=3, search__seeds=[0, 1, 2], search__max_trials=9)
    search = searching(copy)
    known = len(search.results)
    config = search.suggest("one")
    search.on_trial_complete("one", NOTHING | {"L_ret": 2.0, "failed_stages": 1, "settled": True})
    assert list(search.results.values())[known:] == [None] and Point(**config) not in search.decision.outstanding
    assert search._ot_study.trials[-1].state == TrialState.FAIL


def test_what_asks_for_one_lambda_says_once_that_a_frontier_has_none(copy: Place):
    copy.write(objective=PARETO)
    assert copy.ee_ray("export", "tiny.yaml", "out", status=2).stderr.count("error:") == 1
    assert "a frontier has no lambda* to predict" in copy.ee_ray("transfer", "tiny.yaml", "tiny.yaml", "--tokens", 9, status=2).stderr  # fmt: skip
