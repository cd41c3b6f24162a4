"""Choices beside lambda: is the interval of lambda* still as sure as it says, and what does an answer cost?

    python benchmarks/joint.py [--sweeps 20]
    python benchmarks/joint.py --calibrate 500      coverage alone: the anchors and EXTRA runs at random, fitted once

Each sweep has three choices of post-training. Choice c adds to a truth of truths.py (1 - x) * (a + b x), with a and b drawn
anew (sd 0.03 and 0.06 nats), so that it adds nothing at lambda = 1. A run at a (level, seed) whose pretraining is
there costs 0.15, another 1. Strategies spend the same and are read by the same estimator:

    ours        anchors for all choices, then where a run teaches most
    anchors     anchors for all choices, then only the choice that was best there (the rule before 2026-11-25)
    TPE         Optuna's, over level and choice; a pair that it asks for again takes its next seed
"""

import argparse
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import product

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import optuna
import pandas as pd
from rich.progress import track
from truths import FINE, LADDER, PRACTICAL, TRUTHS, Truth

from ee_ray.acquisition import choose
from ee_ray.curve import Curve, fit
from ee_ray.kernels import Effect
from ee_ray.optimum import summarise

CASES = ["paper compute_matched 30M", "paper compute_matched 150M", "paper compute_matched 300M", "valley", "falling"]
NOISE = 0.006
CHOICES, SEEDS, LEVELS = 3, range(4), len(LADDER)
EFFECTS = (Effect((0, 1, 2), (1,)),)
ANCHORS = list(product((0, 8, 16), range(2), range(CHOICES)))
EXTRA = 10
CACHED, BUDGETS = 0.15, (9.0, 12.0, 16.0)

Run = tuple[int, int, int]  # level, seed, choice


class Lab:
    """Equal points give equal losses, as a deterministic trainer does; at lambda = 1 all choices are one run."""

    def __init__(self, truth: Truth, number: int):
        self.truth, self.number = truth, number
        self.effects = np.random.default_rng([number, 99]).standard_normal((CHOICES, 2)) * (0.03, 0.06)

    def curves(self, x: np.ndarray) -> np.ndarray:
        return np.stack([self.truth.loss(x) + (1 - x) * (a + b * x) for a, b in self.effects])

    def row(self, run: Run) -> tuple[float, int, int, float]:
        level, seed, choice = self.first(run)
        noise = np.random.default_rng([self.number, *run[:2], choice]).standard_normal() * NOISE
        offset = np.random.default_rng([self.number, seed]).standard_normal() * 0.02
        return level / 16, seed, choice, float(self.curves(np.array([level / 16]))[choice, 0] + offset + noise)

    @staticmethod
    def first(run: Run) -> Run:
        return (run[0], run[1], 0) if run[0] == LEVELS - 1 else run

    def fitted(self, runs: list[Run]) -> Curve:
        rows = [self.row(run) for run in dict.fromkeys(map(self.first, runs))]
        return fit(pd.DataFrame(rows, columns=["lambda", "seed", "choice", "loss"]), LADDER, PRACTICAL, EFFECTS)


def cost(run: Run, before: list[Run]) -> float:
    """Of one run after others: nothing where the very same was trained."""
    if Lab.first(run) in map(Lab.first, before):
        return 0.0
    return CACHED if run[:2] in {other[:2] for other in before} else 1.0


def chosen(lab: Lab, runs: list[Run], only: int | None = None) -> Iterator[Run]:
    """Where a run teaches most for what it costs, one after another."""
    while True:
        had = set(map(lab.first, runs))
        left = [
            run for run in product(range(LEVELS), SEEDS, range(CHOICES)) if lab.first(run) == run and run not in had
        ]
        places = [(choice * LEVELS + level, seed) for level, seed, choice in left if only in (None, choice)]

        def price(candidate: tuple[tuple[int, int], ...]) -> float:
            those = [(place % LEVELS, seed, place // LEVELS) for place, seed in candidate]
            return max(sum(cost(run, runs + those[:n]) for n, run in enumerate(those)), 0.02 * len(those))

        for place, seed in choose([lab.fitted(runs)], LADDER, places, 1, price):
            runs.append((place % LEVELS, seed, place // LEVELS))
            yield runs[-1]


def best_anchor(lab: Lab) -> int:
    rows = pd.DataFrame([lab.row(run) for run in ANCHORS], columns=["lambda", "seed", "choice", "loss"])
    means = rows.groupby(["choice", "lambda"])["loss"].mean().groupby("choice").min()
    return int(means.idxmin())


def tpe(lab: Lab) -> Iterator[Run]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=lab.number))
    asked: dict[tuple[int, int], int] = {}
    while True:
        trial = study.ask()
        level, choice = trial.suggest_int("level", 0, LEVELS - 1), trial.suggest_categorical("choice", range(CHOICES))
        seed = asked.get((level, choice), 0)
        asked[level, choice] = seed + 1
        study.tell(trial, lab.row((level, seed, choice))[3])
        yield level, seed, choice


def follow(case: int, number: int) -> list[dict]:
    lab = Lab(TRUTHS[case], number)
    profile = lab.curves(FINE).min(axis=0)
    best = Truth("profile", "", lambda x: np.interp(x, FINE, profile))
    strategies = {
        "ours": (list(ANCHORS), chosen(lab, list(ANCHORS))),
        "anchors": (list(ANCHORS), chosen(lab, list(ANCHORS), best_anchor(lab))),
        "TPE": ([], tpe(lab)),
    }
    rows = []
    for name, (runs, more) in strategies.items():
        spent = sum(cost(run, runs[:i]) for i, run in enumerate(runs))
        for budget in BUDGETS:
            while spent < budget:
                run = next(more)
                spent += cost(run, runs)
                runs.append(run)
            curve = lab.fitted(runs)
            found = summarise(curve, LADDER, PRACTICAL)
            place = int(np.abs(FINE - found.lambda_star).argmin())
            least = int(curve.means[:, int(curve.mean.argmin())].argmin())
            regret = float(lab.curves(FINE)[least, place] - profile.min())
            rows.append({"strategy": name, "cost": budget, "width": found.ci95[1] - found.ci95[0],
                         "covered": best.covered(found.ci95), "regret": regret, "truth": lab.truth.name})  # fmt: skip
    return rows


def calibrated(case: int, number: int) -> dict:
    """A sweep whose runs after the anchors were drawn, as a reader of a grid with gaps would have them."""
    lab = Lab(TRUTHS[case], number)
    places = list(product(range(LEVELS), SEEDS, range(CHOICES)))
    drawn = np.random.default_rng([number, 7]).choice(len(places), EXTRA, replace=False)
    found = summarise(lab.fitted(ANCHORS + [places[i] for i in drawn]), LADDER, PRACTICAL)
    profile = lab.curves(FINE).min(axis=0)
    best = Truth("profile", "", lambda x: np.interp(x, FINE, profile))
    inside = not best.covered((0.0, 0.0)) and not best.covered((1.0, 1.0))
    return {"truth": lab.truth.name, "covered": best.covered(found.ci95), "width": found.ci95[1] - found.ci95[0],
            "false interior": found.verdict == "interior" and not inside, "interior": found.verdict == "interior"}  # fmt: skip


def calibration(cases: list[int], sweeps: int) -> None:
    with ProcessPoolExecutor() as pool:
        jobs = [pool.submit(calibrated, *job) for job in product(cases, range(sweeps))]
        rows = pd.DataFrame([job.result() for job in track(jobs, "fitting")])
    print(rows.groupby("truth").mean().round(3).to_string())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sweeps", type=int, default=20)
    parser.add_argument("--calibrate", type=int, metavar="SWEEPS")
    options = parser.parse_args()
    cases = [i for i, truth in enumerate(TRUTHS) if truth.name in CASES]
    if options.calibrate:
        return calibration(cases, options.calibrate)
    with ProcessPoolExecutor() as pool:
        jobs = [pool.submit(follow, *job) for job in product(cases, range(options.sweeps))]
        frame = pd.DataFrame([row for job in track(jobs, "searching") for row in job.result()])
    for value in ("covered", "width", "regret"):
        table = frame.astype({value: float}).pivot_table(index="strategy", columns="cost", values=value, sort=False)
        print(f"\n{value}, by what was spent\n{table.round(4).to_string()}")
    ours = frame[frame["strategy"] == "ours"].astype({"covered": float})
    print(f"\nours by truth\n{ours.groupby('truth')[['covered', 'width', 'regret']].mean().round(4).to_string()}")


if __name__ == "__main__":
    main()
