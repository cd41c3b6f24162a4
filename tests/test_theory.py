"""The two-layer linear network: its closed form, the paper's theorems over random worlds, and the command."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from ee_ray.cli import main
from ee_ray.theory import allocation, claims, findings, matrices
from ee_ray.theory.allocation import ANSWERS, LEVELS, REGIMES, Budget, answer, curve, draw_budget, overshoots, valley
from ee_ray.theory.claims import draw_instance
from ee_ray.theory.flow import INCONSISTENT, SPECIALIZED, Task, draw_world, flow, half_time, loss, losses, mixture

SEEDS = range(50_000, 50_200)  # not those that the command draws with its default seed
positive = st.floats(0.05, 5)


def one(m: float, c: float = 1.0) -> Task:
    return Task(np.array([m]), np.array([c]))


def margins(check, seeds=SEEDS) -> np.ndarray:
    found = np.array([check(draw_instance(seed)) for seed in seeds])
    return found[~np.isnan(found)]


@given(m=st.just(0.0) | st.floats(1e-9, 3), c=positive, start=st.floats(1e-9, 3), first=positive, second=positive)
def test_flowing_twice_is_flowing_for_the_sum(m, c, start, first, second):
    task, s = one(m, c), np.array([start])
    assert flow(task, flow(task, s, first), second) == pytest.approx(flow(task, s, first + second), rel=1e-9)


@given(m=positive, c=positive, start=st.floats(1e-12, 1e-3))
def test_a_feature_is_half_learned_at_its_half_time_and_settles_at_correlation_over_covariance(m, c, start):
    task, s = one(m, c), np.array([start])
    assert flow(task, s, half_time(task, s)) == pytest.approx(m / c / 2, rel=1e-6)
    assert flow(task, s, 200 / m) == pytest.approx(m / c, rel=1e-9)


@given(beta=positive, more=st.floats(1.001, 3), alpha=st.floats(0.01, 1), time=st.floats(0.1, 200))
def test_a_larger_specialized_value_is_never_further_behind(beta, more, alpha, time):
    start = np.array([np.exp(-20)])
    weak, strong = (flow(mixture(one(0, 0), one(value), alpha), start, time) for value in (beta, beta * more))
    assert strong[0] >= weak[0]


def test_what_a_task_does_not_see_it_does_not_move():
    assert flow(one(0, 0), np.array([0.3]), 1e6) == 0.3
    world = draw_world(np.random.default_rng(1))
    values = np.linspace(0.1, 0.7, 7)
    unmoved = flow(world.ft, values, 1e3) == values
    assert (unmoved >= world.of(SPECIALIZED)).all() and not unmoved[world.of(INCONSISTENT)].any()


@given(alpha=st.floats(0.01, 0.99), seed=st.integers(0, 50))
def test_the_loss_of_a_mixture_is_the_mixture_of_the_losses_up_to_a_constant(alpha, seed):
    rng = np.random.default_rng(seed)
    world, values = draw_world(rng), rng.uniform(0, 2, (5, 7))
    apart = (1 - alpha) * loss(world.pre, values) + alpha * loss(world.post, values)
    assert np.ptp(apart - loss(mixture(world.pre, world.post, alpha), values)) < 1e-9


def test_gradient_descent_on_full_matrices_ends_where_the_closed_form_does():
    assert margins(claims.descent_agrees, SEEDS[:4]).min() > 0


def test_descent_comes_nearer_with_smaller_steps():
    case = draw_instance(50_005)
    basis = matrices.random_basis(np.random.default_rng(0), 7)
    exact = flow(case.upstream, case.world.start, case.pretrain)

    def error(steps: int) -> float:
        start, task = matrices.aligned_start(case.world, basis), matrices.moments(case.upstream, basis)
        layers = matrices.descend(start, task, case.pretrain, steps)
        assert matrices.off_diagonal(layers, basis) < 1e-9
        return float(np.abs(matrices.singular_values(layers, basis) - exact).max())

    assert error(16_000) < 0.6 * error(8_000)


def test_gradient_flow_solved_numerically_ends_where_the_closed_form_does():
    assert margins(claims.solver_agrees, SEEDS[:4]).min() > 0


def test_the_slope_of_the_matrices_is_that_of_the_loss():
    rng = np.random.default_rng(3)
    world, basis = draw_world(rng), matrices.random_basis(rng, 7)
    w1, w2, step = rng.normal(size=(7, 7)), rng.normal(size=(7, 7)), 1e-6
    ac, c = matrices.moments(world.post, basis)
    a = ac @ np.linalg.inv(c)

    def value(first):
        off = first @ w2 - a
        return 0.5 * np.trace(off @ c @ off.T)

    moved, _ = matrices.descend((w1, w2), (ac, c), step, 1)
    slope = (w1 - moved) / step
    nudge = np.zeros((7, 7))
    nudge[2, 4] = 1e-5
    assert slope[2, 4] == pytest.approx((value(w1 + nudge) - value(w1 - nudge)) / 2e-5, rel=1e-4)


@pytest.mark.parametrize("name", ["order", "threshold", "unmixed", "absent", "reused", "equal_loss", "retained"])
def test_a_theorem_holds_in_every_random_world(name):
    check = next(check for other, _, _, check in claims.CHECKS if other == name)
    found = margins(check)
    assert len(found) >= 50 and found.min() >= 0


def test_the_threshold_does_not_need_an_aligned_start():
    assert margins(claims.threshold_from_identity, SEEDS[:4]).min() > 0


@settings(max_examples=30)
@given(reached=st.floats(1.05, 3), beta=st.floats(0.1, 0.5), alpha=st.floats(0.01, 0.6))
def test_the_threshold_is_sharp_for_a_small_start(reached, beta, alpha):
    scale = 300.0
    task, start = mixture(one(0, 0), one(beta), alpha), np.array([np.exp(-2 * scale)])
    above, below = (flow(task, start, x * scale / (alpha * beta))[0] / beta for x in (reached, 1 / reached))
    assert above > 0.999 and below < 0.001


def test_forgetting_compared_briefly_or_at_equal_time_does_not_follow_5_3():
    brief = margins(lambda case: claims.forgetting_at_equal_loss(case, 0.01))
    assert 0.2 < (brief < 0).mean() < 0.8
    timed = margins(lambda case: claims.at_equal_time(case, retained=False))
    assert (timed < 0).any() and np.abs(timed).max() < 1e-3


def test_post_training_to_a_loss_ends_at_it_in_both_models():
    for case in map(draw_instance, SEEDS):
        if times := claims.matched_times(case):
            ends = [flow(case.world.post, case.pretrained(mixed), t) for mixed, t in zip((False, True), times, strict=True)]  # fmt: skip
            first, second = (float(loss(case.world.post, end)) for end in ends)
            assert first == pytest.approx(second, rel=1e-6)


def test_at_one_learning_rate_a_specialized_feature_does_not_care_when_it_was_seen():
    for seed in range(20):
        budget = draw_budget(seed, 1.0)
        special = curve(budget, matched=True).specialized
        assert np.ptp(special) <= 1e-9 * allocation.worth(budget.world)


def test_at_one_learning_rate_and_without_overshoot_nothing_beats_pure_post_training():
    budgets = [budget for seed in SEEDS if not overshoots((budget := draw_budget(seed, 1.0)).world)]
    assert len(budgets) > 30
    for budget in budgets:
        retained = curve(budget, matched=True).retained
        assert answer(budget.world, retained) in (ANSWERS[0], ANSWERS[3])
        assert retained[0] - retained.min() <= 1e-6 * allocation.worth(budget.world)


def test_without_overshoot_an_interior_optimum_comes_from_mixing_and_begins_at_the_threshold():
    rate, regimes, late = 0.1, [], []
    for budget in (draw_budget(seed, rate) for seed in SEEDS):
        world, retained = budget.world, curve(budget, matched=True).retained
        if overshoots(world) or answer(world, retained) != ANSWERS[1]:
            continue
        regimes.append(budget.regime == REGIMES[1])
        threshold = (1 / budget.reach(1) - rate) / (1 - rate)
        late.append(np.abs(valley(world, retained)[0] - threshold).min())
    assert len(regimes) > 20 and np.mean(regimes) > 0.9 and np.median(late) < 0.05


def test_specialized_loss_never_rises_with_mixing_where_post_training_sees_everything():
    for seed in range(30):
        budget = draw_budget(seed, 0.5)
        special = curve(budget, matched=False).specialized
        assert (np.diff(special) <= 1e-12).all()


def test_at_lambda_1_there_is_no_post_training_and_at_0_no_mixing():
    budget = draw_budget(7, 0.3)
    world, ends = budget.world, allocation.upstream(budget, np.array([0.0, 1.0]), matched=True)
    plain = flow(world.post, flow(world.pre, world.start, budget.pretrain), 0.3 * budget.post)
    seen = budget.pretrain + budget.post
    mixed = flow(mixture(world.pre, world.post, budget.post / seen), world.start, seen)
    assert np.allclose(ends, [plain, mixed])


def test_answers_are_told_apart():
    world = draw_world(np.random.default_rng(0))
    unit = allocation.worth(world)
    bowl = (LEVELS - 0.4) ** 2 * unit
    assert answer(world, bowl) == "interior" and valley(world, bowl) == pytest.approx((0.3, 0.5), abs=0.006)
    assert answer(world, LEVELS * unit) == "lambda = 0"
    assert answer(world, -LEVELS * unit) == "lambda = 1"
    assert answer(world, 0.009 * LEVELS * unit) == "level"


def test_regimes_follow_from_what_the_budget_reaches():
    world = findings.example()
    needs = (world.log_scale + 0.5 * np.log(world.betas.max())) / world.betas.max()
    regimes = [Budget(world, 1e4, share * needs, 1.0, 0.5).regime for share in (0.9, 1.1, 3, 6)]
    # At 3 the larger feature is learned anyway, and mixing decides over the smaller one.
    assert regimes == [REGIMES[0], REGIMES[1], REGIMES[1], REGIMES[2]]


def test_a_budget_that_just_reaches_a_feature_teaches_half_of_it():
    for seed in range(20):
        drawn = draw_budget(seed, 1.0)
        for place, beta in enumerate(drawn.world.betas):
            time = drawn.post / drawn.reach(1)[place]
            end = flow(one(beta), np.exp([-2 * drawn.world.log_scale]), time)
            assert end[0] == pytest.approx(beta / 2, rel=1e-6)


def test_losses_add_up_and_only_specialized_ones_are_left_by_a_finished_post_training():
    world = draw_world(np.random.default_rng(4))
    end = flow(world.post, flow(world.pre, world.start, 1e3), 8 * world.log_scale / world.c_mis / 10)
    parts = losses(world.post, end)
    assert parts.sum() == pytest.approx(float(loss(world.post, end)))
    assert parts[world.of(SPECIALIZED)].sum() == pytest.approx(allocation.worth(world), rel=0.01)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The command, over few instances: its output, its JSON and the folder it wrote."""
    folder = tmp_path_factory.mktemp("theory")
    with pytest.MonkeyPatch.context() as patch:
        for name, size in (("INSTANCES", 60), ("DESCENTS", 1), ("BUDGETS", 20)):
            patch.setattr(findings, name, size)
        text = CliRunner().invoke(main, ["theory", "--out", str(folder)])
        again = CliRunner().invoke(main, ["theory", "--out", str(folder / "again"), "--json"])
        other = CliRunner().invoke(main, ["theory", "--out", str(folder / "other"), "--json", "--seed", "1"])
    return text, again, other, folder


def test_the_command_prints_a_table_of_eighty_columns(told):
    text, _, _, folder = told
    assert text.exit_code == 0
    table = text.output.split("\n\npage: ")[0].splitlines()
    assert max(map(len, table)) <= 80
    assert sum(line.startswith("5.") for line in table) == 10
    assert text.output.strip().endswith(str(folder / "index.html"))


def test_the_command_says_the_same_twice_and_another_seed_something_else(told):
    _, again, other, folder = told
    assert again.exit_code == other.exit_code == 0
    first, second = json.loads(again.output), json.loads(other.output)
    assert first == json.loads((folder / "theory.json").read_text())
    assert first["schema"] == 1 and first["claims"] != second["claims"]
    assert all(sum(row["retained"].values()) == 20 for row in first["allocation"])


def test_the_page_stands_alone(told):
    page = (told[3] / "index.html").read_text()
    assert "<script src=" not in page and 'rel="stylesheet"' not in page
    assert page.count('class="figure"') == 6
    assert "not aligned" in page and 'id="verdict"' in page


def test_a_folder_that_cannot_be_is_the_users_mistake(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("ee_ray.theory.findings.findings", lambda seed: {})
    done = CliRunner().invoke(main, ["theory", "--out", str(tmp_path / "file" / "inside")])
    assert done.exit_code == 2 and "cannot write" in done.output
