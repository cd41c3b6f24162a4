"""Two losses that both matter: what is known of their frontier for what was spent, by where the runs were placed.

    python benchmarks/pareto.py [--sweeps 40]

A run at a (level, seed) returns both losses. Truths: retained and immediate loss of the paper's Figure 3, compute-matched,
and two made-up pairs; the paper's also with lambda shifted, so that they turn between the grid's levels. Every run is a pretraining and
costs the same. All strategies spend the same and are read by the same estimator (ee_ray/tradeoff.py):

    frontier    ours (objective.loss: pareto), from the grid below with its first two seeds
    three       the same, from three anchors with two seeds
    grid        five even levels, seed after seed (those that the paper's curves are drawn through: they favour it)
    fine grid   all nine levels
    weighted    the search for one loss, of the sum of the two, each over its range at the anchors
    TPE, NSGA   Optuna's, with two directions; a level that is asked for again is run with its next seed

Printed by strategy and runs: `missing`, the part of the true frontier's hypervolume that the true losses of the answer lack,
and `means`, what the frontier of the fitted means lacks; `wrong`, how many of the nine levels are in the answer and not on
the frontier, or the other way round; `brier`, the squared error of each level's probability to lie on it; `short` and `beaten`
(ee_ray/tradeoff.py; of the kept levels the one that is beaten most) in thousandths of a nat, the bounds that are to hold them in 95%,
and how often they do (of `beaten`: for each kept level); `known`, how often both bounds are at most PRACTICAL, where a search ends,
and `false`, how often that is wrong.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import product

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import optuna
import pandas as pd
from rich.progress import track
from scipy.interpolate import CubicSpline
from truths import FIGURE_3, PRACTICAL, Array, Lab, Noise, Truth

import ee_ray.curve
from ee_ray.acquisition import choose
from ee_ray.curve import Curve, fit
from ee_ray.frontier import hypervolume
from ee_ray.tradeoff import SAME, Tradeoff, beaten, short, tradeoff

ee_ray.curve.FINE_STEPS = 8  # nothing is read between the levels of the ladder
LADDER = np.linspace(0, 1, 9)
SEEDS, PER_ROUND = range(8), 4
ANCHORS = list(product(range(2), (0, 4, 8)))
FIVE = list(product(range(2), (0, 2, 4, 6, 8)))
BUDGETS = (10, 14, 18, 26)
NOISES = (0.006, 0.015)  # by turns
SHIFT = 1.4  # knots at 0.25, 0.5 and 0.75 move to 0.37, 0.61 and 0.81
FIRST = 300  # the numbers before served to build the search

Run = tuple[int, int]  # level, seed


def _of_the_paper() -> list[tuple[str, Truth, Truth]]:
    pairs = []
    rows = pd.read_csv(FIGURE_3).query("setting == 'compute_matched'")
    for tokens, own in rows.groupby("dataset_tokens", sort=False):
        curves = [CubicSpline(own["lambda"], own[f"{loss}_loss"], bc_type="natural") for loss in ("retained", "immediate")]  # fmt: skip
        pairs.append((f"paper {tokens}", *(Truth("", "", curve) for curve in curves)))
        pairs.append((f"paper {tokens}, shifted", *(Truth("", "", _shifted(curve)) for curve in curves)))
    return pairs


def _shifted(curve: CubicSpline) -> Callable[[Array], Array]:
    return lambda x: np.asarray(curve(np.asarray(x) ** SHIFT))


PAIRS = [
    *_of_the_paper(),
    ("two valleys", Truth("", "", lambda x: 0.25 * (x - 0.35) ** 2), Truth("", "", lambda x: 0.25 * (x - 0.7) ** 2)),
    ("opposed", Truth("", "", lambda x: -0.06 * x), Truth("", "", lambda x: 0.07 * x**2)),
]


class Pair:
    """Trains (level, seed): both losses, their noises and seed offsets independent."""

    def __init__(self, case: int, number: int):
        self.name, *curves = PAIRS[case]
        self.number, noise = number, Noise("", NOISES[number // 2 % 2])
        self.labs = [Lab(curve, noise, 2 * number + which) for which, curve in enumerate(curves)]
        self.truth = np.stack([curve.loss(LADDER) for curve in curves], axis=1)

    def losses(self, run: Run) -> tuple[float, ...]:
        return tuple(lab.loss(2 * run[0], run[1]) for lab in self.labs)  # a lab's ladder has 16 steps

    def curves(self, runs: list[Run]) -> list[Curve]:
        return [fit(lab.table([(2 * level, seed) for level, seed in runs]), LADDER, PRACTICAL) for lab in self.labs]


def left(runs: list[Run]) -> list[Run]:
    return [run for run in product(range(len(LADDER)), SEEDS) if run not in runs]


def ours(anchors: list[tuple[int, int]]) -> Callable[[Pair], Iterator[list[Run]]]:
    def search(pair: Pair) -> Iterator[list[Run]]:
        runs = [(level, seed) for seed, level in anchors]
        while True:
            yield runs
            runs = runs + choose(pair.curves(runs), LADDER, left(runs), PER_ROUND, len)

    return search


def weighted(pair: Pair) -> Iterator[list[Run]]:
    runs = [(level, seed) for seed, level in ANCHORS]
    weights = 1 / np.ptp([pair.losses(run) for run in runs], axis=0)
    while True:
        yield runs
        rows = [(LADDER[run[0]], run[1], float(weights @ pair.losses(run)) / weights.sum()) for run in runs]
        curve = fit(pd.DataFrame(rows, columns=["lambda", "seed", "loss"]), LADDER, PRACTICAL)
        runs = runs + choose([curve], LADDER, left(runs), PER_ROUND, len)


def of_optuna(sampler: Callable[[int], optuna.samplers.BaseSampler]) -> Callable[[Pair], Iterator[list[Run]]]:
    def search(pair: Pair) -> Iterator[list[Run]]:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler(pair.number))
        runs: list[Run] = []
        while True:
            trial = study.ask()
            level = trial.suggest_int("level", 0, len(LADDER) - 1)
            runs = [*runs, (level, sum(level == other for other, _ in runs))]
            study.tell(trial, pair.losses(runs[-1]))
            yield runs

    return search


def grid(step: int) -> Callable[[Pair], Iterator[list[Run]]]:
    every = [(level, seed) for seed, level in product(range(100), range(0, len(LADDER), step))]
    return lambda pair: (every[:count] for count in range(1, len(every)))


STRATEGIES = {
    "frontier": ours(FIVE),
    "three": ours(ANCHORS),
    "grid": grid(2),
    "fine grid": grid(1),
    "weighted": weighted,
    "TPE": of_optuna(lambda seed: optuna.samplers.TPESampler(seed=seed)),
    "NSGA": of_optuna(lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=6)),
}


def on_frontier(losses: Array) -> Array:
    return np.asarray(beaten(losses[None])[0] <= SAME)


def read(pair: Pair, runs: list[Run]) -> dict[str, float]:
    """What the runs say of the frontier, against the truth."""
    corner, true = tuple(pair.truth.max(axis=0) + 1e-3), on_frontier(pair.truth)
    whole = hypervolume(pair.truth, corner)
    found = tradeoff(pair.curves(runs), LADDER) if len({level for level, _ in runs}) > 2 else _unread(runs)
    lack, excess = float(short(pair.truth[None], found.kept)[0]), beaten(pair.truth[None])[0]
    known = found.known <= PRACTICAL
    return {
        "missing": 100 * (1 - hypervolume(pair.truth[found.kept], corner) / whole),
        "means": 100 * (1 - hypervolume(pair.truth[on_frontier(found.means)], corner) / whole),
        "wrong": float((found.kept != true).sum()),
        "brier": float(((found.chance - true) ** 2).mean()),
        "short": 1000 * lack,
        "short95": 1000 * found.short,
        "short held": float(lack <= found.short + 1e-9),
        "beaten": 1000 * float(excess[found.kept].max()),
        "beaten95": 1000 * float(found.beaten[found.kept].max()),
        "beaten held": float((excess <= found.beaten + 1e-9)[found.kept].mean()),
        "known": float(known),
        "false": float(known and max(lack, excess[found.kept].max()) > PRACTICAL),
    }


def _unread(runs: list[Run]) -> Tradeoff:
    """Under three levels nothing is fitted: the answer is the levels that were run, and it may lack anything."""
    tried = np.isin(np.arange(len(LADDER)), [level for level, _ in runs])
    means = np.where(tried, 0.0, 1.0)[:, None].repeat(2, axis=1)
    return Tradeoff(means, np.full(len(LADDER), 0.5), tried, 1.0, np.ones(len(LADDER)))


def follow(case: int, number: int) -> list[dict]:
    pair, rows = Pair(case, number), []
    for name, strategy in STRATEGIES.items():
        search = strategy(pair)
        runs = next(search)
        for budget in BUDGETS:
            while len(runs) < budget:
                runs = next(search)
            rows.append({"truth": pair.name, "number": number, "strategy": name, "runs": budget} | read(pair, runs[:budget]))  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sweeps", type=int, default=40)
    options = parser.parse_args()
    with ProcessPoolExecutor() as pool:
        jobs = [
            pool.submit(follow, case, FIRST + number)
            for number, case in product(range(options.sweeps), range(len(PAIRS)))
        ]
        table = pd.DataFrame([row for job in track(jobs, "searching") for row in job.result()])
    print(table.drop(columns=["truth", "number"]).groupby(["runs", "strategy"], sort=False).mean().round(3).to_string())
    for value, rival in product(("missing", "means", "wrong", "known"), list(STRATEGIES)[1:]):
        both = table.pivot_table(index=["truth", "number", "runs"], columns="strategy", values=value)
        # The truths of one number share their noise: they are one sweep to a standard error.
        more = (both["frontier"] - both[rival]).groupby(["number", "runs"]).mean().groupby("runs")
        print(f"{value}, frontier less {rival}: {more.mean().round(3).to_dict()}, standard errors {more.sem().round(3).to_dict()}")  # fmt: skip
    for value in ("missing", "known"):
        print(f"\n{value}\n{table.pivot_table(index=['runs', 'truth'], columns='strategy', values=value, sort=False).round(2).to_string()}")  # fmt: skip


if __name__ == "__main__":
    main()
