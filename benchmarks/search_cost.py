"""What an answer costs: width of the interval and regret against runs trained, ours beside grids and Optuna's samplers.

    python benchmarks/search_cost.py [--sweeps 20] [--json FILE]

Every (level, seed) run costs the same tokens here: a pretraining, a post-training and the fine-tunings. All strategies are
read by the same estimator, so the curves compare only where the runs were placed.
"""

import argparse
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import product

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import optuna
import pandas as pd
from rich.progress import track
from truths import FINE, LADDER, NOISES, PRACTICAL, TRUTHS, Lab

from ee_ray.acquisition import choose
from ee_ray.curve import fit
from ee_ray.optimum import summarise

SEEDS = range(8)
MOST = 51
CHECKPOINTS = (6, 8, 10, 12, 14, 16, 20, 24, 28, 34, 42, 51)
CASES = ["paper compute_matched 30M", "paper compute_matched 150M", "paper compute_matched 300M", "valley", "falling"]
LEVELS_OF_NOISE = ["0.006", "0.015"]


def ours(lab: Lab) -> Iterator[tuple[int, int]]:
    runs = [(level, seed) for seed in (0, 1) for level in (0, 8, 16)]
    yield from runs
    while True:
        curve = fit(lab.table(runs), LADDER, PRACTICAL)
        left = [run for run in product(range(17), SEEDS) if run not in runs]
        chosen = choose([curve], LADDER, left, 2, len)
        yield from chosen
        runs += chosen


def grid(levels: int) -> Iterator[tuple[int, int]]:
    step = 16 // (levels - 1)
    return ((level, seed) for seed in range(100) for level in range(0, 17, step))


def of_optuna(lab: Lab, sampler: optuna.samplers.BaseSampler) -> Iterator[tuple[int, int]]:
    """A level that the sampler asks for again is run with that level's next seed."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=sampler)
    asked: dict[int, int] = {}
    while True:
        trial = study.ask()
        level = trial.suggest_int("level", 0, 16)
        seed = asked.get(level, 0)
        asked[level] = seed + 1
        study.tell(trial, lab.loss(level, seed))
        yield level, seed


def follow(case: int, noise: int, number: int) -> list[dict]:
    truth = TRUTHS[case]
    lab = Lab(truth, NOISES[noise], number)
    strategies = {
        "ours": ours(lab),
        "grid of 17 x seeds": grid(17),
        "grid of 9 x seeds": grid(9),
        "grid of 5 x seeds": grid(5),
        "Optuna TPE": of_optuna(lab, optuna.samplers.TPESampler(seed=number)),
        "Optuna GP": of_optuna(lab, optuna.samplers.GPSampler(seed=number)),
    }
    least = truth.loss(FINE).min()
    rows = []
    for name, runs in strategies.items():
        seen: list[tuple[int, int]] = []
        for at in CHECKPOINTS:
            while len(seen) < at:
                seen.append(next(runs))
            table = lab.table(seen[:at])
            if table["lambda"].nunique() < 3:
                continue
            found = summarise(fit(table, LADDER, PRACTICAL), LADDER, PRACTICAL)
            regret = float(truth.loss(np.array([found.lambda_star]))[0] - least)
            rows.append({"truth": truth.name, "noise": NOISES[noise].name, "strategy": name, "runs": at, "regret": regret,
                         "width": found.ci95[1] - found.ci95[0], "covered": truth.covered(found.ci95),
                         "verdict": found.verdict})  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sweeps", type=int, default=20)
    parser.add_argument("--json")
    options = parser.parse_args()
    cases = [i for i, truth in enumerate(TRUTHS) if truth.name in CASES]
    noises = [i for i, noise in enumerate(NOISES) if noise.name in LEVELS_OF_NOISE]
    with ProcessPoolExecutor() as pool:
        jobs = [pool.submit(follow, *job) for job in product(cases, noises, range(options.sweeps))]
        frame = pd.DataFrame([row for job in track(jobs, "searching") for row in job.result()])
    if options.json:
        with open(options.json, "w") as file:
            json.dump(frame.to_dict("records"), file)
    for (truth, noise), part in frame.groupby(["truth", "noise"], sort=False):
        print(f"\n{truth}, noise {noise}: mean width of the 95% interval (coverage), by runs trained")
        width, covered = _pivot(part, "width"), _pivot(part, "covered")
        print((width.map("{:.2f}".format) + " (" + covered.map("{:.2f}".format) + ")").to_string())
    print("\nover all cases: width, and regret in 1e-3 nats")
    print(_pivot(frame, "width").round(3).to_string())
    print(_pivot(frame.assign(regret=1000 * frame["regret"]), "regret").round(2).to_string())


def _pivot(frame: pd.DataFrame, value: str) -> pd.DataFrame:
    return frame.astype({value: float}).pivot_table(index="strategy", columns="runs", values=value, sort=False)


if __name__ == "__main__":
    main()
