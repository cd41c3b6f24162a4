"""Theorems 5.1 to 5.3 as inequalities, checked over random worlds.

Each check returns a margin without unit: at least 0 where the claim holds, `nan` where its premise does not. The paper
states its theorems for T to infinity; at a finite T they hold up to exp(-2 T x distance from the threshold), so that a
feature counts as learned above NEAR of what it settles at, as absent below 1 - NEAR of it, and one whose m t / T lies
within BAND of 1 is in neither case and is not judged.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.optimize import brentq

from ee_ray.theory import matrices
from ee_ray.theory.flow import (
    INCONSISTENT,
    SPECIALIZED,
    Floats,
    Task,
    World,
    draw_world,
    flow,
    half_time,
    loss,
    losses,
    mixture,
    settling_lower,
)

NEAR, BAND = 0.9, 0.25
STEPS = 8000  # of gradient descent a stage: its error is then below 1% of c_mis, the largest where a feature is half learned
AGREEMENT, SOLVED = 0.01, 1e-5  # over c_mis
FOREVER = 60  # in units of T / c_mis: even a feature of 0.1 c_mis is within exp(-100) of where it settles


@dataclass(frozen=True)
class Instance:
    """A world, the fraction of D_post in the pretraining mixture, and the times of the three stages."""

    world: World
    alpha: float
    pretrain: float
    posttrain: float
    finetune: float
    seed: int

    @property
    def upstream(self) -> Task:
        return mixture(self.world.pre, self.world.post, self.alpha)

    def pretrained(self, mixed: bool) -> Floats:
        return flow(self.upstream if mixed else self.world.pre, self.world.start, self.pretrain)

    def present(self) -> Floats:
        """m t / T of the specialized features in mixed pretraining: learned above 1."""
        return self.alpha * self.world.betas * self.pretrain / self.world.log_scale


@dataclass(frozen=True)
class Claim:
    """A claim over many instances: `worst` is the smallest margin, `skipped` those whose premise did not hold."""

    name: str
    theorem: str
    says: str
    instances: int
    held: int
    worst: float
    skipped: int


def draw_instance(seed: int) -> Instance:
    """Pretraining of 6 to 40 T / c_mis, 3% to 60% of D_post in it; post-training in the window of theorem 5.2.

    That window is our reading of beta < c_mis / 2: post-training longer than T / c_mis learns what is larger than c_mis,
    and shorter than twice that, leaves every specialized feature that is absent absent.
    """
    rng = np.random.default_rng(seed)
    world = draw_world(rng)
    unit = world.log_scale / world.c_mis
    alpha, pretrain = np.exp(rng.uniform(np.log([0.03, 6]), np.log([0.6, 40])))
    return Instance(world, float(alpha), pretrain * unit, rng.uniform(1.05, 1.55) * unit, FOREVER * unit, seed)


def _threshold(case: Instance, task: Task, values: Floats) -> float:
    reached = task.correlation * case.pretrain / case.world.log_scale
    share = values * task.covariance / task.correlation
    above, below = share[reached > 1 + BAND] - NEAR, (1 - NEAR) - share[reached < 1 - BAND]
    return float(np.concatenate([above, below]).min())


def learned_above_threshold(case: Instance, reading: Callable[[Task], Task] = lambda task: task) -> float:
    """5.1: after mixed pretraining a feature is there if its effective value m exceeds T / t, and absent if it is below."""
    task = reading(case.upstream)
    return _threshold(case, task, flow(task, case.world.start, case.pretrain))


def absent_without_mixing(case: Instance) -> float:
    """5.1: without mixing the specialized features stay at exp(-2 T), however long pretraining lasts."""
    moved = case.pretrained(mixed=False)[case.world.of(SPECIALIZED)] / np.exp(-2 * case.world.log_scale)
    return float(1e-9 - np.abs(moved - 1).max())


def in_order(case: Instance) -> float:
    """Features are learned in descending order of effective value; pairs closer than BAND are not judged."""
    values = case.upstream.correlation
    times = half_time(case.upstream, case.world.start)
    pairs = [(i, j) for i in range(len(values)) for j in range(len(values)) if values[i] > (1 + BAND) * values[j]]
    return min(float(times[j] / times[i] - 1) for i, j in pairs)


def absent_stays_absent(case: Instance) -> float:
    """5.2, unmixed: post-training leaves the absent specialized features absent, so what falls is the inconsistent loss."""
    world, start = case.world, case.pretrained(mixed=False)
    end = flow(world.post, start, case.posttrain)
    fell = losses(world.post, start) - losses(world.post, end)
    absent = (1 - NEAR) - (end[world.of(SPECIALIZED)] / world.betas).max()
    return float(min(absent, fell[world.of(INCONSISTENT)].sum() / fell.sum() - NEAR))


def present_is_reused(case: Instance) -> float:
    """5.2, mixed: what pretraining learned of the specialized features is there after post-training."""
    there = case.present() > 1 + BAND
    if not there.any():
        return np.nan
    end = flow(case.world.post, case.pretrained(mixed=True), case.posttrain)[case.world.of(SPECIALIZED)]
    return float((end / case.world.betas)[there].min() - NEAR)


def time_to_loss(world: World, start: Floats, target: float, at_most: float) -> float | None:
    """Post-training time at which the loss on D_post falls to `target`; None if that is not between 0 and at_most."""

    def excess(time: float) -> float:
        return float(loss(world.post, flow(world.post, start, time))) - target

    return None if excess(0) < 0 or excess(at_most) > 0 else float(brentq(excess, 0, at_most, xtol=1e-12))


def matched_times(case: Instance) -> tuple[float, float] | None:
    """Post-training times (unmixed, mixed) that end at the same loss on D_post, or None if no loss is reached by both.

    The loss is drawn between the least that the unmixed model can reach within the window and what the mixed one
    starts from. At least one specialized feature must be there in the mixed model.
    """
    world, unmixed, mixed = case.world, case.pretrained(mixed=False), case.pretrained(mixed=True)
    low = float(loss(world.post, flow(world.post, unmixed, case.posttrain)))
    high = float(min(loss(world.post, mixed), loss(world.post, unmixed)))
    if high <= low or not (case.present() > 1 + BAND).any():
        return None
    target = low + np.random.default_rng(case.seed).uniform(0.02, 0.5) * (high - low)
    times = [time_to_loss(world, start, target, case.posttrain) for start in (unmixed, mixed)]
    return None if None in times else (times[0], times[1])  # type: ignore[return-value]


def gap(case: Instance, times: tuple[float, float], finetune: float, retained: bool = False) -> float:
    """Forgetting (or retained loss) of the unmixed model less that of the mixed one, over the whole specialized loss."""
    world, found = case.world, []
    for mixed, time in zip((False, True), times, strict=True):
        post = flow(world.post, case.pretrained(mixed), time)
        end = flow(world.ft, post, finetune)
        found.append(float(loss(world.post, end) - (0 if retained else loss(world.post, post))))
    return (found[0] - found[1]) / float(0.5 * (world.betas**2).sum())


def forgetting_at_equal_loss(case: Instance, finetune: float = FOREVER) -> float:
    """5.3: from equal loss on D_post, fine-tuning makes the unmixed model forget at least as much as the mixed one."""
    times = matched_times(case)
    return np.nan if times is None else gap(case, times, finetune * case.world.log_scale / case.world.c_mis)


def at_equal_time(case: Instance, retained: bool) -> float:
    """5.3 where both models are post-trained for the same time instead: forgetting, or the retained loss itself."""
    if not (case.present() > 1 + BAND).any():
        return np.nan
    return gap(case, (case.posttrain, case.posttrain), case.finetune, retained)


def descent_agrees(case: Instance) -> float:
    """The closed form equals gradient descent on full matrices in a random basis, after each of three stages."""
    return AGREEMENT - _disagreement(case, partial(matrices.descend, steps=STEPS))


def solver_agrees(case: Instance) -> float:
    """The same with gradient flow on the matrices, integrated numerically."""
    return SOLVED - _disagreement(case, matrices.integrate)


def _disagreement(case: Instance, train: Callable[..., matrices.Layers]) -> float:
    """The largest difference of a singular value from the closed form after any stage, over c_mis."""
    rng, world = np.random.default_rng(case.seed), case.world
    basis = matrices.random_basis(rng, len(world.kinds))
    layers, values, error = matrices.aligned_start(world, basis), world.start, 0.0
    brief = rng.uniform(0.1, 3) / world.c_mis  # fine-tuning that has not ended, where a difference would show
    for task, time in ((case.upstream, case.pretrain), (world.post, case.posttrain), (world.ft, brief)):
        layers = train(layers, matrices.moments(task, basis), time)
        values = flow(task, values, time)
        error = max(error, float(np.abs(matrices.singular_values(layers, basis) - values).max()))
    return error / world.c_mis


def threshold_from_identity(case: Instance) -> float:
    """5.1 by gradient descent from exp(-T) I taken literally, in bases U and V that differ: a start aligned with nothing."""
    world = case.world
    basis = matrices.random_basis(np.random.default_rng(case.seed), len(world.kinds))
    layers = matrices.descend(matrices.literal_start(world, basis), matrices.moments(case.upstream, basis), case.pretrain, STEPS)  # fmt: skip
    return _threshold(case, case.upstream, matrices.singular_values(layers, basis))


Check = Callable[[Instance], float]
ON_MATRICES: list[tuple[str, str, str, Check]] = [
    ("descent", "", "closed form = gradient descent on full matrices", descent_agrees),
    ("solver", "", "closed form = gradient flow, solved numerically", solver_agrees),
    ("identity", "5.1", "the threshold, from a start that is not aligned", threshold_from_identity),
]
CHECKS: list[tuple[str, str, str, Check]] = [
    ("order", "", "features learned in descending order of value", in_order),
    ("threshold", "5.1", "learned if and only if alpha beta t > T", learned_above_threshold),
    ("settling", "5.1", "the same if it settles at alpha beta, not beta", partial(learned_above_threshold, reading=settling_lower)),
    ("unmixed", "5.1", "no specialized feature without mixing", absent_without_mixing),
    ("absent", "5.2", "absent stays absent, inconsistent ones move", absent_stays_absent),
    ("reused", "5.2", "what pretraining learned is still there", present_is_reused),
    ("equal_loss", "5.3", "mixed forgets less: equal L_im, tuned to the end", forgetting_at_equal_loss),
    ("short", "5.3", "... equal L_im, tuned for 0.01 T / c_mis only", partial(forgetting_at_equal_loss, finetune=0.01)),
    ("equal_time", "5.3", "... equal post-training time, tuned to the end", partial(at_equal_time, retained=False)),
    ("retained", "5.3", "... equal time, by L_ret instead of forgetting", partial(at_equal_time, retained=True)),
]  # fmt: skip


def check_all(seed: int, instances: int, few: int) -> list[Claim]:
    """Every check over random instances; over the first `few` of them where full matrices are trained."""
    cases = [draw_instance(seed * 1_000_003 + number) for number in range(instances)]
    found = []
    for checks, judged in ((ON_MATRICES, cases[:few]), (CHECKS, cases)):
        for name, theorem, says, check in checks:
            margins = np.array([check(case) for case in judged])
            valid = margins[~np.isnan(margins)]
            held, worst = int((valid >= 0).sum()), float(valid.min(initial=np.inf))
            found.append(Claim(name, theorem, says, len(valid), held, worst, len(margins) - len(valid)))
    return found
