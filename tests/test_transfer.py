"""Where the optimum will be at the next size, and how unsure that is."""

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from scipy import stats

from ee_ray.optimum import locate
from ee_ray.spec.load import load_sweep
from ee_ray.transfer import predict, unlike

LADDER = np.linspace(0, 1, 17)


def around(centre: float, sd: float) -> pd.Series:
    mass = np.exp(-0.5 * ((LADDER - centre) / sd) ** 2)
    return pd.Series(mass / mass.sum(), index=LADDER)


def test_a_planted_shift_is_found_and_carried_on():
    sizes = [2**k for k in range(5)]
    found = predict(sizes, [around(0.2 + 0.1 * k, 0.03) for k in range(5)], 2**5)
    assert abs(found.shift - 0.1) < 0.02
    assert found.shift_ci95[0] > 0
    assert found.ci95[0] <= 0.7 <= found.ci95[1] and found.ci95[1] - found.ci95[0] < 0.5


def test_an_optimum_that_does_not_move_is_predicted_to_stay():
    found = predict([1, 2, 4, 8], [around(0.4, 0.03)] * 4, 16)
    assert abs(found.value - 0.4) < 0.03
    assert found.shift_ci95[0] < 0 < found.shift_ci95[1]


def test_the_farther_the_size_the_wider_the_interval():
    posteriors = [around(0.3, 0.05), around(0.35, 0.05), around(0.4, 0.05)]
    widths = [np.ptp(predict([1, 2, 4], posteriors, size).ci95) for size in (2, 8, 32, 128)]
    assert widths == sorted(widths)


def test_sweeps_that_know_nothing_leave_everything_open():
    flat = pd.Series(1 / 17, index=LADDER)
    found = predict([1, 2, 4], [flat] * 3, 8)
    assert found.ci95[1] - found.ci95[0] > 0.9


def test_a_sweep_that_is_unsure_pulls_little():
    sure = [around(0.3, 0.03)] * 3
    off = predict([1, 2, 4, 8], [*sure, around(0.9, 0.4)], 8)
    assert abs(off.value - 0.3) < 0.15


def test_the_optimum_never_leaves_the_unit_interval():
    found = predict([1, 2, 4], [around(0.5, 0.03), around(0.75, 0.03), around(1.0, 0.03)], 64)
    assert found.ci95[1] == 1.0 and found.value <= 1.0


def test_predictions_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(3)
    hits, runs = 0, 100
    for _ in range(runs):
        start, shift, scatter = rng.uniform(0.1, 0.9), rng.normal(0, 0.1), rng.choice([0.02, 0.05, 0.1])
        truth = np.clip(start + shift * np.arange(5) + scatter * rng.standard_normal(5), 0, 1)
        seen = [around(value + rng.normal(0, 0.05), 0.05) for value in truth[:4]]
        low, high = predict([1, 2, 4, 8], seen, 16).ci95
        hits += low - 1 / 32 <= truth[4] <= high + 1 / 32
    assert hits >= stats.binom.ppf(1e-3, runs, 0.95)


def test_each_size_of_the_paper_is_held_by_what_the_other_two_predict():
    """Figure 3b, one run for each level: the curves say little by themselves, and the intervals must own up to that."""
    figure = pd.read_csv(ROOT / "ee_ray/report/paper_figures/fig3.csv")
    figure = figure[figure["setting"] == "compute_matched"]
    sizes, posteriors, stars = [], [], []
    for tokens, rows in figure.groupby("dataset_tokens"):
        table = rows.rename(columns={"retained_loss": "loss"})[["lambda", "loss"]].assign(seed=0)
        sizes.append(float(tokens.removesuffix("M")))
        posteriors.append(locate(table, LADDER.tolist(), 0.01).p_argmin)
        stars.append(float(rows.loc[rows["is_star"] == 1, "lambda"].iloc[0]))
    assert sorted(sizes) == [30, 150, 300]
    for left_out in range(3):
        others = [i for i in range(3) if i != left_out]
        found = predict([sizes[i] for i in others], [posteriors[i] for i in others], sizes[left_out])
        assert found.ci95[0] <= stars[left_out] <= found.ci95[1]
        assert found.ci95[1] - found.ci95[0] > 0.4


@pytest.mark.parametrize(("sizes", "size"), [([4.0, 4.0], 8.0), ([4.0], 8.0), ([4.0, -1.0], 8.0), ([4.0, 8.0], 0.0)])
def test_what_cannot_be_predicted_from_is_refused(sizes, size):
    with pytest.raises(ValueError, match="two different positive sizes"):
        predict(sizes, [around(0.5, 0.1)] * len(sizes), size)


def test_sweeps_of_other_questions_predict_nothing_and_those_of_other_sizes_do(write):
    """Fields by which the sweeps of the paper's figure 3 differ may differ, and where and how long each was run."""
    first = load_sweep(write())
    size = {"data__post": {"source": "builtin:music", "size": 40_000}, "stages__posttrain__tokens": 4096}
    assert not unlike(
        first, load_sweep(write(name="large", **size, search__max_trials=10, execution__workers=2)), "tokens"
    )
    for figure in ("3a", "3b"):
        paper = [load_sweep(path) for path in sorted((ROOT / "sweeps/paper").glob(f"figure{figure}*.yaml"))]
        assert len(paper) == 3 and not [line for each in paper for line in unlike(paper[0], each, "tokens")]
    both = load_sweep(write(**size, model__hidden_size=64, objective__finetune_lr=1e-3))
    found = [[line.partition(" ")[0] for line in unlike(first, both, by)] for by in ("tokens", "parameters")]
    assert found == [["model.hidden_size", "objective.finetune_lr"], ["data.post.size", "stages.posttrain.tokens", "objective.finetune_lr"]]  # fmt: skip
    assert not unlike(first, load_sweep(write(model__hidden_size=64)), "parameters")
