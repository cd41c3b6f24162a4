"""The number that lambda* minimises, and the same runs asked otherwise."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ee_ray.objective import alone, describe, matched, objective, observed, others, reachable
from ee_ray.spec.search import Objective

RATES = (1e-4, 3e-4, 1e-3)
ROWS = [
    {"finetune_lr": 1e-4, "L_im": 1.5, "L_ret": 1.6, "L_ft": 3.0, "L_pre": 2.0},
    {"finetune_lr": 3e-4, "L_im": 1.5, "L_ret": 1.9, "L_ft": 2.4, "L_pre": 2.3},
    {"finetune_lr": 1e-3, "L_im": 1.5, "L_ret": 2.9, "L_ft": 1.8, "L_pre": 3.0},
]


def goal(**fields: object) -> Objective:
    return Objective.model_validate({"finetune_lr": 3e-4, **fields})


def test_each_goal_reads_its_own_loss():
    assert objective(goal(), ROWS) == 1.9
    assert objective(goal(loss="L_im"), ROWS) == 1.5
    assert objective(goal(loss="weighted", weights={"L_ret": 1, "L_ft": 0.5}), ROWS) == pytest.approx(1.9 + 1.2)
    assert objective(goal(loss="L_ret_matched", finetune_loss=2.4), ROWS) == pytest.approx(1.9)


def test_of_a_frontier_each_loss_is_read_and_may_be_asked_by_itself():
    frontier = goal(loss="pareto", losses=["L_ret", "L_ft", "L_im"])
    assert objective(frontier, ROWS) == (1.9, 2.4, 1.5)
    assert objective(frontier, ROWS[:1]) is None
    assert objective(frontier, [ROWS[1] | {"L_ft": float("nan")}]) is None
    assert [objective(alone(frontier, loss), ROWS) for loss in frontier.losses] == [1.9, 2.4, 1.5]
    asked = [describe(other) for other in others(frontier, RATES, pd.DataFrame())]
    assert asked[:3] == ["retained loss L_ret, fine-tuned at 0.0003", "fine-tuning loss L_ft, fine-tuned at 0.0003", "immediate loss L_im"]  # fmt: skip
    assert len(set(asked)) == len(asked) and describe(frontier) not in asked


def test_a_recipe_without_the_goals_rate_has_no_number():
    assert objective(goal(), ROWS[:1]) is None
    assert objective(goal(loss="L_ret_matched", finetune_loss=1.0), ROWS) is None


@given(st.floats(1.8, 3.0))
def test_between_the_rates_the_matched_loss_falls_as_fine_tuning_loss_rises(level):
    value = matched(ROWS, level)
    assert 1.6 <= value <= 2.9
    assert matched(ROWS, min(level + 0.1, 3.0)) <= value + 1e-12


def test_the_matched_loss_meets_every_rate_and_ends_where_they_end():
    for row in ROWS:
        assert matched(ROWS, row["L_ft"]) == pytest.approx(row["L_ret"])
    assert np.isnan(matched(ROWS, 3.1)) and np.isnan(matched(ROWS, 1.7)) and np.isnan(matched([], 2.0))


def test_a_rate_that_another_beats_in_both_losses_is_passed_over():
    """Fine-tuned too hot: worse on D_ft and on D_post."""
    burnt = {"finetune_lr": 1e-2, "L_im": 1.5, "L_ret": 4.0, "L_ft": 2.1, "L_pre": 5.0}
    assert matched([*ROWS, burnt], 2.1) == matched(ROWS, 2.1)


def test_matching_takes_away_an_advantage_that_is_only_timid_fine_tuning():
    """Two recipes on one curve of L_ret over L_ft, one of which fine-tunes half as far at every rate."""

    def recipe(level: float, reach: tuple[float, ...]) -> list[dict]:
        return [
            {"lambda": level, "seed": 0, "finetune_lr": rate, "L_im": 1, "L_ret": 1 + 2 / ft, "L_ft": ft, "L_pre": 2}
            for rate, ft in zip(RATES, reach, strict=True)
        ]

    table = pd.DataFrame(recipe(0.0, (3.0, 2.5, 2.0)) + recipe(0.5, (3.2, 2.8, 2.4)))
    plain = observed(goal(), table).set_index("lambda")["loss"]
    at = observed(goal(loss="L_ret_matched", finetune_loss=2.6), table).set_index("lambda")["loss"]
    assert plain[0.0] - plain[0.5] > 0.08
    assert abs(at[0.0] - at[0.5]) < 0.01


def test_the_default_level_is_one_that_every_recipe_reaches_where_there_is_one():
    rows = pd.DataFrame([{**row, "lambda": level, "seed": 0} for level in (0.0, 1.0) for row in ROWS])
    rows.loc[rows["lambda"] == 1.0, "L_ft"] += 0.4
    level = reachable(rows)
    assert 2.2 <= level <= 3.0
    assert len(observed(goal(loss="L_ret_matched", finetune_loss=level), rows)) == 2
    assert reachable(rows.iloc[:0]) is None


def test_the_other_questions_leave_out_the_one_that_was_asked():
    rows = pd.DataFrame([{**row, "lambda": 0.0, "seed": 0} for row in ROWS])
    names = [describe(other) for other in others(goal(), RATES, rows)]
    assert describe(goal()) not in names
    assert names == ["immediate loss L_im", "retained loss L_ret, fine-tuned at 0.0001",
                     "retained loss L_ret, fine-tuned at 0.001", "retained loss L_ret at a fine-tuning loss of 2.4"]  # fmt: skip
