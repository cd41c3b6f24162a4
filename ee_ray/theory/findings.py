"""Everything that `ee-ray theory` says, as one dictionary that goes to JSON: claims, optima, and the figures' data."""

from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np

from ee_ray.theory.allocation import (
    ANSWERS,
    LEVELS,
    REGIMES,
    Budget,
    Curve,
    answer,
    curve,
    draw_budget,
    overshoots,
    valley,
    worth,
)
from ee_ray.theory.claims import BAND, check_all, draw_instance, gap, matched_times
from ee_ray.theory.flow import INCONSISTENT, INVARIANT, SPECIALIZED, World, flow, mixture, whitened

INSTANCES, DESCENTS, BUDGETS = 1000, 12, 500
# Learning rate of post-training over that of pretraining; the paper's 1B runs have 0.02 to 0.4.
RATES = (1.0, 0.5, 0.2, 0.1, 0.05)
LENGTHS = np.geomspace(1e-3, 1, 25)  # of fine-tuning, in T / c_mis
ALPHA = 0.3  # of the drawn mixed recipe
POINTS = 150  # of a drawn curve, a stage


def example() -> World:
    """The world of the drawn curves: few features, far apart, no overshoot; c_mis = 1, T = 10. Chosen to be legible."""
    kinds = (INVARIANT, INCONSISTENT, INCONSISTENT, SPECIALIZED, SPECIALIZED)
    seen = np.array([1, 1, 1, 0, 0])
    return World(
        whitened(np.array([2.0, 2.5, 1.5, 0, 0]), seen),
        whitened(np.array([2.0, 1.3, 2.7, 0.45, 0.2]), np.ones(5)),
        whitened(np.array([2.0, 3.6, 0.4, 0, 0]), seen),
        kinds, 1.0, 10.0,
    )  # fmt: skip


def trace(world: World, alpha: float) -> list[list[float]]:
    """Singular values through three stages, each POINTS long: a list per feature. Pretraining takes 10 T, post-training 1.3 T."""
    stages = ((mixture(world.pre, world.post, alpha), 10 * world.log_scale), (world.post, 1.3 * world.log_scale), (world.ft, 0.6))  # fmt: skip
    start, parts = world.start, []
    for task, time in stages:
        parts.append(flow(task, start, np.linspace(0, time, POINTS)[:, None]))
        start = parts[-1][-1]
    return [[round(float(v), 5) for v in feature] for feature in np.concatenate(parts).T]


def example_curves() -> list[dict[str, Any]]:
    """Losses of the example against lambda, in both settings and at each rate, over the worth of its specialized features."""
    world = example()
    post = 2.5 * world.log_scale / world.betas.max()
    found = []
    for matched in (False, True):
        for rate in RATES:
            budget = Budget(world, 100 * post, post, 0.1, rate)
            at = curve(budget, matched)
            scaled = {name: np.round(values / worth(world), 5).tolist() for name, values in asdict(at).items()}
            found.append({"matched": matched, "rate": rate, **scaled})
    return found


def gaps(seed: int, instances: int) -> dict[str, Any]:
    """Forgetting, unmixed less mixed from equal L_im, against the length of fine-tuning: median and 80% of instances."""
    found = []
    for number in range(instances):
        case = draw_instance(seed * 1_000_003 + number)
        if times := matched_times(case):
            unit = case.world.log_scale / case.world.c_mis
            found.append([gap(case, times, length * unit) for length in LENGTHS])
    low, middle, high = np.quantile(found, [0.1, 0.5, 0.9], axis=0)
    held = (np.array(found) >= 0).mean(axis=0)
    table = {"length": LENGTHS, "low": low, "median": middle, "high": high, "held": held}
    return {"instances": len(found), **{name: np.round(values, 5).tolist() for name, values in table.items()}}


def _quantiles(values: list[float]) -> list[float] | None:
    return [round(float(q), 3) for q in np.quantile(values, [0.1, 0.5, 0.9])] if values else None


def _summary(rate: float, budgets: list[Budget], curves: list[Curve]) -> dict[str, Any]:
    """Where the compute-matched optimum lies at one rate."""
    answers = [answer(b.world, c.retained) for b, c in zip(budgets, curves, strict=True)]
    inside = [(b, c) for b, c, a in zip(budgets, curves, answers, strict=True) if a == ANSWERS[1]]
    plain = [a for b, a in zip(budgets, answers, strict=True) if not overshoots(b.world)]
    # What figure 3b of the paper shows: the immediate loss rises with lambda, and yet the retained loss has a minimum.
    like_paper = [b for b, c in inside if answer(b.world, c.immediate) == ANSWERS[0]]
    return {
        "rate": rate,
        "budgets": len(budgets),
        "retained": dict(Counter(answers)),
        "retained_without_overshoot": dict(Counter(plain)),
        "immediate": dict(Counter(answer(b.world, c.immediate) for b, c in zip(budgets, curves, strict=True))),
        "immediate_at_0_though_interior": len(like_paper),
        "the_same_without_overshoot": sum(not overshoots(b.world) for b in like_paper),
        "by_regime": {r: dict(Counter(a for b, a in zip(budgets, answers, strict=True) if b.regime == r)) for r in REGIMES},
        "lambda_star": _quantiles([float(LEVELS[c.retained.argmin()]) for _, c in inside]),
        "valley_from": _quantiles([valley(b.world, c.retained)[0] for b, c in inside]),
        "valley_to": _quantiles([valley(b.world, c.retained)[1] for b, c in inside]),
        "gain": _quantiles([float(min(c.retained[[0, -1]]) - c.retained.min()) / worth(b.world) for b, c in inside]),
    }  # fmt: skip


def allocation(seed: int, budgets: int) -> list[dict[str, Any]]:
    """The compute-matched optimum over random budgets, at each rate; and the varying setting's answers."""
    found = []
    for rate in RATES:
        drawn = [draw_budget(seed * 1_000_003 + number, rate) for number in range(budgets)]
        varying: Counter[str] = Counter(answer(b.world, curve(b, matched=False).retained) for b in drawn)
        found.append(_summary(rate, drawn, [curve(b, matched=True) for b in drawn]) | {"varying": dict(varying)})
    return found


def findings(seed: int) -> dict[str, Any]:
    """The whole answer; the same for the same seed."""
    world = example()
    return {
        "schema": 1,
        "seed": seed,
        "band": BAND,
        "claims": [asdict(claim) for claim in check_all(seed, INSTANCES, DESCENTS)],
        "allocation": allocation(seed, BUDGETS),
        "gaps": gaps(seed, INSTANCES),
        "example": {
            "kinds": world.kinds,
            "values": [round(float(v), 3) for v in world.post.correlation],
            "alpha": ALPHA,
            "unmixed": trace(world, 0.0),
            "mixed": trace(world, ALPHA),
            "levels": np.round(LEVELS, 4).tolist(),
            "curves": example_curves(),
        },
    }
