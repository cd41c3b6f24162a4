"""What mattered among the things that were chosen."""

import json

import numpy as np
import pandas as pd
import pytest
from test_propose import spec

from ee_ray.frontier import hypervolume
from ee_ray.importance import FEWEST, importance
from ee_ray.plan import Point
from ee_ray.spec.sweep import SweepSpec

FIELDS = {
    "posttrain.learning_rate": [0.001, 0.002],
    "posttrain.replay": [0.0, 0.5],
    "posttrain.min_learning_rate": [1e-4],
}


def runs(of: SweepSpec) -> list[Point]:
    return [Point(level, seed, choice) for level in range(5) for seed in (0, 1) for choice in range(len(of.choices))]


def test_what_moves_the_objective_has_the_share_and_what_does_not_has_none():
    of = spec(choices=FIELDS, ladder=4, max_trials=60)
    rates = [choice["posttrain.learning_rate"] for choice in of.choices]
    shares = importance(of, {point: 3.0 + 100 * rates[point.choice] for point in runs(of)})
    assert shares and shares["posttrain.learning_rate"] == pytest.approx(1.0, abs=0.01)
    assert shares["posttrain.replay"] == pytest.approx(0.0, abs=0.01)
    assert "posttrain.min_learning_rate" not in shares  # there was nothing to choose
    by_lambda = importance(of, {point: (point.level / 4 - 0.5) ** 2 + 0.1 * point.seed for point in runs(of)})
    assert by_lambda and sum(by_lambda.values()) == pytest.approx(1.0, abs=1e-3)
    assert by_lambda["lambda"] > by_lambda["seed"] > 0.1 > by_lambda["posttrain.learning_rate"]


def test_runs_that_failed_count_for_nothing_and_few_runs_say_nothing():
    of = spec(choices=FIELDS, ladder=4, max_trials=60)
    results: dict[Point, float | None] = {point: float(point.level) for point in runs(of)[: FEWEST - 1]}
    assert importance(of, results) is None
    assert importance(of, results | {runs(of)[-1]: None}) is None
    assert importance(of, results | {runs(of)[-1]: 1.0})
    assert importance(spec(), {Point(level, 0): float(level) for level in range(20)}) is None


def test_the_hypervolume_of_each_round_is_that_of_its_runs_and_never_shrinks(finished):
    tables = finished.folder / "reports/tiny/data"
    runs, rounds = pd.read_csv(tables / "runs.csv"), pd.read_csv(tables / "search.csv")
    losses = runs[["L_ft", "L_ret"]].to_numpy(float)
    assert len(rounds) >= 2 and (np.diff(rounds["hypervolume"]) >= 0).all()
    assert rounds["hypervolume"].iloc[-1] == pytest.approx(hypervolume(losses, tuple(losses.max(axis=0))))
    anchors = runs[
        [f"{row['lambda']:g}:{row['seed']}" in rounds["chosen"][0].split(", ") for _, row in runs.iterrows()]
    ]
    assert 0 < len(anchors) < len(runs)
    assert rounds["hypervolume"][0] == pytest.approx(hypervolume(anchors[["L_ft", "L_ret"]].to_numpy(float), tuple(losses.max(axis=0))))  # fmt: skip
    assert json.loads((finished.folder / "reports/tiny/summary.json").read_text())["importance"] is None
