"""Two losses that both matter: what is known of their frontier for what was spent, by where the runs were placed.

    python benchmarks/pareto.py [--sweeps 100]

A run at a (level, seed) returns both losses. Truths: retained and immediate loss of the paper's Figure 3, compute-matched,
and two made-up pairs; every run is a pretraining and costs the same. The frontier is that of the fitted means of both losses
over the ladder. All strategies spend the same and are read by the same estimator:

    grid        five even levels, seed after seed (those that the paper's curves are drawn through: they favour it)
    fine grid   all nine levels
    weighted    the search as it is, for the sum of the two losses, each over its range at the anchors
    TPE, NSGA   Optuna's, with two directions; a level that is asked for again is run with its next seed

Printed by strategy and runs: `missing`, the part of the true frontier's hypervolume that the true losses of the frontier that
was found lack; `short`, by how many thousandths of a nat some level is better than all of those (the additive epsilon
indicator of Zitzler et al., IEEE Transactions on Evolutionary Computation 7, 2003); `brier`, the squared error of each
level's posterior probability to lie on the frontier; `covered`, how often `short` is within its posterior's 95%.
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

from ee_ray.acquisition import choose
from ee_ray.curve import Curve, fit
from ee_ray.frontier import hypervolume

LADDER = np.linspace(0, 1, 9)
SEEDS, PER_ROUND, DRAWS = range(8), 4, 1000
ANCHORS = list(product((0, 4, 8), range(2)))
BUDGETS = (10, 14, 18)
NOISES = (0.006, 0.015)  # by turns

Run = tuple[int, int]  # level, seed


def _of_the_paper() -> list[tuple[str, Truth, Truth]]:
    pairs = []
    rows = pd.read_csv(FIGURE_3).query("setting == 'compute_matched'")
    for tokens, own in rows.groupby("dataset_tokens", sort=False):
        curves = [CubicSpline(own["lambda"], own[f"{loss}_loss"], bc_type="natural") for loss in ("retained", "immediate")]  # fmt: skip
        pairs.append((f"paper {tokens}", Truth("", "", curves[0]), Truth("", "", curves[1])))
    return pairs


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


def on_frontier(losses: Array) -> Array:
    """(..., p): whether no other of p levels is lower in all losses (..., p, k)."""
    beaten = np.zeros(losses.shape[:-1], bool)
    for level in range(losses.shape[-2]):
        beaten |= (losses[..., [level], :] < losses).all(axis=-1)
    return ~beaten


def shortfall(losses: Array, chosen: Array) -> Array:
    """(n,): by how much all losses of the chosen levels would have to fall so that every level has one of them that is
    nowhere worse; of losses (n, p, k), nats."""
    lacks = [(losses[:, [level]] - losses).max(axis=-1) for level in np.flatnonzero(chosen)]
    return np.maximum(np.min(lacks, axis=0).max(axis=-1), 0.0)


def weighted(pair: Pair) -> Iterator[list[Run]]:
    runs = list(ANCHORS)
    weights = 1 / np.ptp([pair.losses(run) for run in runs], axis=0)
    while True:
        yield runs
        rows = [(LADDER[run[0]], run[1], float(weights @ pair.losses(run)) / weights.sum()) for run in runs]
        curve = fit(pd.DataFrame(rows, columns=["lambda", "seed", "loss"]), LADDER, PRACTICAL)
        left = [run for run in product(range(len(LADDER)), SEEDS) if run not in runs]
        runs = runs + choose(curve, LADDER, left, PER_ROUND, lambda run: 1.0)


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
    "grid": grid(2),
    "fine grid": grid(1),
    "weighted": weighted,
    "TPE": of_optuna(lambda seed: optuna.samplers.TPESampler(seed=seed)),
    "NSGA": of_optuna(lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=6)),
}


def read(pair: Pair, runs: list[Run]) -> dict[str, float]:
    """What the runs say of the frontier, against the truth. Under three levels: that it is the levels that were run."""
    corner = tuple(pair.truth.max(axis=0) + 1e-3)
    tried = np.isin(np.arange(len(LADDER)), [level for level, _ in runs])
    chosen, chance, most = tried, np.full(len(LADDER), 0.5), np.inf
    if tried.sum() > 2:
        curves, rng = pair.curves(runs), np.random.default_rng(2)
        draws = np.stack([c.draws[rng.permutation(len(c.draws))[:DRAWS]][:, c.at(LADDER)] for c in curves], axis=-1)
        chosen = on_frontier(np.stack([c.mean[c.at(LADDER)] for c in curves], axis=-1))
        chance = on_frontier(draws).mean(axis=0)
        most = float(np.quantile(shortfall(draws, chosen), 0.95))
    short = float(shortfall(pair.truth[None], chosen)[0])
    return {
        "missing": 1 - hypervolume(pair.truth[chosen], corner) / hypervolume(pair.truth, corner),
        "short": 1000 * short,
        "brier": float(((chance - on_frontier(pair.truth)) ** 2).mean()),
        "covered": float(short <= most + 1e-9),
    }


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
    parser.add_argument("--sweeps", type=int, default=100)
    options = parser.parse_args()
    with ProcessPoolExecutor() as pool:
        jobs = [pool.submit(follow, *job) for job in product(range(len(PAIRS)), range(options.sweeps))]
        table = pd.DataFrame([row for job in track(jobs, "searching") for row in job.result()])
    values = ["missing", "short", "brier", "covered"]
    print(table.groupby(["runs", "strategy"], sort=False)[values].mean().round(4).to_string())
    against = table.pivot_table(index=["truth", "number", "runs"], columns="strategy", values="missing")
    for name in against.columns.drop("grid"):
        more = (against[name] - against["grid"]).groupby("runs")
        print(f"missing, {name} less grid: {more.mean().round(4).to_dict()}, standard errors {more.sem().round(4).to_dict()}")  # fmt: skip
    last = table[table["runs"] == BUDGETS[-1]]
    print(f"\nmissing at {BUDGETS[-1]} runs\n{last.pivot_table(index='truth', columns='strategy', values='missing', sort=False).round(4).to_string()}")  # fmt: skip


if __name__ == "__main__":
    main()
