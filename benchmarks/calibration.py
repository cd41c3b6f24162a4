"""Is the interval of lambda* as sure as it says? Simulated sweeps of five levels by three paired seeds.

    python benchmarks/calibration.py [--sweeps 500] [--json FILE]

For every truth and noise: how often the 95% interval holds the true argmin, how often the verdict is interior, the mean
width of the interval, and that width over an oracle's, which knows the noise and the smoothness of the true curve.
"""

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from itertools import product

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
from rich.progress import track
from truths import LADDER, NOISES, PRACTICAL, TRUTHS, Lab

from ee_ray.curve import DRAWS
from ee_ray.kernels import every_kernel
from ee_ray.optimum import _shortest, locate

DESIGN = list(product((0, 4, 8, 12, 16), (0, 1, 2)))


def cell(truth_at: int, noise_at: int, sweeps: int) -> dict:
    truth, noise = TRUTHS[truth_at], NOISES[noise_at]
    found = [locate(Lab(truth, noise, n).table(DESIGN), LADDER, PRACTICAL) for n in range(sweeps)]
    covers = [truth.covered(o.ci95) for o in found]
    width = np.mean([o.ci95[1] - o.ci95[0] for o in found])
    oracle = np.mean([oracle_width(truth, noise, n) for n in range(min(sweeps, 50))])
    verdicts = pd.Series([o.verdict for o in found]).value_counts(normalize=True).to_dict()
    return {"truth": truth.name, "kind": truth.kind, "noise": noise.name, "argmin": truth.argmin, "sweeps": sweeps,
            "coverage": float(np.mean(covers)), "width": float(width), "oracle_width": float(oracle), "verdicts": verdicts}  # fmt: skip


def oracle_width(truth, noise, number: int) -> float:
    """The same process, told the seeds' offsets and tilts, the noise at each level, and the kernel of the true curve."""
    levels, gain, root, prior = _oracle_posterior(truth, noise)
    x = LADDER[levels]
    losses = [[truth.loss(x[[i]])[0] + noise.at(x[[i]])[0] * np.random.default_rng([number, s, k]).standard_normal()
               for s in range(3)] for i, k in enumerate(levels)]  # fmt: skip
    mean = gain @ (np.mean(losses, axis=1) - prior)
    draws = mean + np.random.default_rng(0).standard_normal((DRAWS // 4, len(root))) @ root.T
    low, high = _shortest(np.linspace(0, 1, 129)[draws.argmin(axis=1)])
    return high - low


_KNOWN: dict = {}


def _oracle_posterior(truth, noise):
    if (truth.name, noise.name) not in _KNOWN:
        grid, levels = np.linspace(0, 1, 129), np.array([0, 4, 8, 12, 16])
        at, fine = levels * 8, np.arange(0, 129, 8)
        y = truth.loss(grid)
        y = y - y.mean()
        scale = max(float(np.std(y)), 1e-4)
        best, best_score = None, -np.inf
        for (covariance, _), times in product(every_kernel(grid), (0.5, 1, 2, 4)):
            K = (times * scale) ** 2 * covariance
            small = K[np.ix_(fine, fine)] + (0.02 * scale) ** 2 * np.eye(len(fine))
            score = -0.5 * y[fine] @ np.linalg.solve(small, y[fine]) - 0.5 * np.linalg.slogdet(small)[1]
            if score > best_score:
                best, best_score = K, score
        assert best is not None
        seen = best[np.ix_(at, at)] + np.diag(noise.at(LADDER[levels]) ** 2 / 3)
        gain = np.linalg.solve(seen, best[at]).T
        left = best - gain @ best[at]
        prior = truth.loss(grid).mean()
        _KNOWN[truth.name, noise.name] = (levels, gain, np.linalg.cholesky(left + 1e-9 * scale**2 * np.eye(129)), prior)
    return _KNOWN[truth.name, noise.name]


def table(rows: list[dict]) -> str:
    lines = [f"{'truth':<38}{'noise':<20}{'covered':>8}{'interior':>9}{'other verdicts':>34}{'width':>7}{'/oracle':>8}"]
    for row in rows:
        other = ", ".join(f"{k} {v:.2f}" for k, v in row["verdicts"].items() if k != "interior")
        lines.append(f"{row['truth']:<38}{row['noise']:<20}{row['coverage']:>8.3f}{row['verdicts'].get('interior', 0):>9.3f}{other:>34}{row['width']:>7.3f}{row['width'] / max(row['oracle_width'], 1 / 256):>8.2f}")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sweeps", type=int, default=500)
    parser.add_argument("--only", default="", help="truths whose name holds this")
    parser.add_argument("--json")
    options = parser.parse_args()
    cells = [(t, n) for t, n in product(range(len(TRUTHS)), range(len(NOISES))) if options.only in TRUTHS[t].name]
    with ProcessPoolExecutor() as pool:
        jobs = [pool.submit(cell, t, n, options.sweeps) for t, n in cells]
        rows = [job.result() for job in track(jobs, "simulating")]
    print(table(rows))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
