"""Retained loss against the fraction lambda of D_post that is mixed into pretraining, in the paper's two settings.

Pretraining sees D_pre for a time P and, added to it, lambda of the D_post budget, which alone would take a time B:
time P + lambda B on a mixture with alpha = lambda B / (P + lambda B). Post-training sees D_post for (1 - lambda) B
(compute-matched, section 4.2) or for B whatever lambda (varying, section 4.1), at `rate` times the learning rate of
pretraining. Fine-tuning then takes a fixed time.

A specialized feature grows as exp(2 alpha beta (P + lambda B)) = exp(2 beta lambda B) in pretraining and as
exp(2 beta rate (1 - lambda) B) in post-training. At rate 1 the sum does not depend on lambda: the order in which the
budget is spent is then nothing to a specialized feature. Below 1 it is learned if lambda exceeds

    (T / (beta B) - rate) / (1 - rate)        (for T large; the exact T is T + ln(beta) / 2)
"""

from dataclasses import dataclass

import numpy as np

from ee_ray.theory.flow import INCONSISTENT, SPECIALIZED, Floats, World, draw_world, flow, loss, losses, mixture

LEVELS = np.linspace(0, 1, 201)
# What counts as a difference between losses: this share of what the specialized features are worth, sum beta^2 / 2.
MATTERS = 0.01
REGIMES = ("never learned", "learned only by mixing", "learned anyway")
ANSWERS = ("lambda = 0", "interior", "lambda = 1", "level")


@dataclass(frozen=True)
class Budget:
    """Times at pretraining's learning rate: P, B, and fine-tuning; `rate` is that of post-training over pretraining's."""

    world: World
    pretrain: float
    post: float
    finetune: float
    rate: float

    def reach(self, fraction: float) -> Floats:
        """beta B / T of the specialized features, after a fraction of the budget at full rate: learned above 1."""
        world = self.world
        needed = world.log_scale + 0.5 * np.log(world.betas)
        return np.asarray(world.betas * self.post * fraction / needed)

    @property
    def regime(self) -> str:
        """Whether mixing can decide over a specialized feature: it takes the whole budget but not the slowed one."""
        if ((self.reach(1) > 1) & (self.reach(self.rate) < 1)).any():
            return REGIMES[1]
        return REGIMES[2] if (self.reach(self.rate) >= 1).any() else REGIMES[0]


@dataclass(frozen=True)
class Curve:
    """What each lambda gives, (levels,): immediate and retained loss on D_post, and the retained loss by kind."""

    immediate: Floats
    retained: Floats
    specialized: Floats


def upstream(budget: Budget, levels: Floats, matched: bool) -> Floats:
    """Singular values after post-training at each lambda: (levels, features)."""
    world, level = budget.world, levels[:, None]
    seen = budget.pretrain + level * budget.post
    mixed = mixture(world.pre, world.post, level * budget.post / seen)
    share = 1 - level if matched else 1.0
    return flow(world.post, flow(mixed, world.start, seen), budget.rate * share * budget.post)


def curve(budget: Budget, matched: bool, levels: Floats = LEVELS) -> Curve:
    """Losses against lambda in the compute-matched or the varying setting."""
    post, world = upstream(budget, levels, matched), budget.world
    end = flow(world.ft, post, budget.finetune)
    special = losses(world.post, end)[:, world.of(SPECIALIZED)].sum(axis=1)
    return Curve(loss(world.post, post), loss(world.post, end), special)


def worth(world: World) -> float:
    """What the specialized features are worth: the retained loss without any of them, sum beta^2 / 2."""
    return 0.5 * float((world.betas**2).sum())


def valley(world: World, losses: Floats) -> tuple[float, float]:
    """The first and last lambda whose loss is least but for MATTERS."""
    low = LEVELS[losses <= losses.min() + MATTERS * worth(world)]
    return float(low[0]), float(low[-1])


def answer(world: World, losses: Floats) -> str:
    """Where the least loss lies along lambda; `level` if nothing matters by more than MATTERS."""
    ends, allowed = losses[[0, -1]], losses.min() + MATTERS * worth(world)
    if losses.max() <= allowed:
        return ANSWERS[3]
    if (ends > allowed).all():
        return ANSWERS[1]
    # An end within MATTERS of the minimum is as good as it; if both are, the lower one.
    return ANSWERS[0] if ends[0] <= ends[1] else ANSWERS[2]


def overshoots(world: World) -> bool:
    """Whether fine-tuning carries some inconsistent feature from D_pre's side of its D_post value to the other side.

    Such a feature is retained better if post-training falls short: a reason for mixing that is not the paper's.
    """
    before, target, after = (task.correlation[world.of(INCONSISTENT)] for task in (world.pre, world.post, world.ft))
    return bool(((before - target) * (after - target) < 0).any())


def draw_budget(seed: int, rate: float) -> Budget:
    """A random world and budget; the same world at every rate. Our distribution, not the paper's.

    B: 0.7 to 30 times what the strongest specialized feature needs. P: 30 to 300 times B, as in the paper's 135M runs. Fine-tuning: from 1/30 to 3
    times 1 / c_mis, which moves inconsistent features by a few percent or all the way.
    """
    rng = np.random.default_rng([seed, 2])
    world = draw_world(rng)
    low, high = np.log([0.7, 30, 1 / 30]), np.log([30, 300, 3])
    needs, ratio, tuned = np.exp(rng.uniform(low, high))
    post = needs * world.log_scale / world.betas.max()
    return Budget(world, ratio * post, post, tuned / world.c_mis, rate)
