"""Is the answer still as sure as it says, when the search itself decides where to look and when to stop?

    python benchmarks/stopping.py [--sweeps 40] [--json FILE]

Simulated searches with three anchor seeds, two runs a round, until the interval is 0.25 wide and the verdict certain, or
40 runs are spent.
"""

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from itertools import product

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas as pd
from rich.progress import track
from truths import LADDER, NOISES, PRACTICAL, TRUTHS, Lab

from ee_ray.acquisition import choose
from ee_ray.curve import fit
from ee_ray.optimum import summarise

CASES = [
    "paper varying 30M", "paper compute_matched 30M", "paper compute_matched 150M", "paper compute_matched 300M",
    "valley", "falling, then level", "level, then rising", "flat to 0.004", "jump at 0.4",
]  # fmt: skip
LEVELS_OF_NOISE = ["0.006", "0.015"]
MOST, WIDTH = 40, 0.25


def search(case: int, noise: int, number: int) -> dict:
    truth = TRUTHS[case]
    lab = Lab(truth, NOISES[noise], number)
    runs = list(product((0, 8, 16), (0, 1, 2)))
    while True:
        curve = fit(lab.table(runs), LADDER, PRACTICAL)
        found = summarise(curve, LADDER, PRACTICAL)
        width = found.ci95[1] - found.ci95[0]
        certain = found.verdict == "flat" or (found.verdict != "undetermined" and width <= WIDTH)
        if certain or len(runs) >= MOST:
            break
        left = [run for run in product(range(17), range(8)) if run not in runs]
        runs += choose([curve], LADDER, left, 2, len)
    return {"truth": truth.name, "noise": NOISES[noise].name, "runs": len(runs), "certain": certain, "width": width,
            "covered": truth.covered(found.ci95), "verdict": found.verdict}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sweeps", type=int, default=40)
    parser.add_argument("--json")
    options = parser.parse_args()
    cases = [i for i, truth in enumerate(TRUTHS) if truth.name in CASES]
    noises = [i for i, noise in enumerate(NOISES) if noise.name in LEVELS_OF_NOISE]
    with ProcessPoolExecutor() as pool:
        jobs = [pool.submit(search, *job) for job in product(cases, noises, range(options.sweeps))]
        frame = pd.DataFrame([job.result() for job in track(jobs, "searching")])
    if options.json:
        with open(options.json, "w") as file:
            json.dump(frame.to_dict("records"), file)
    groups = frame.assign(interior=frame["verdict"] == "interior").groupby(["truth", "noise"], sort=False)
    print(groups[["runs", "certain", "width", "covered", "interior"]].mean().round(3).to_string())


if __name__ == "__main__":
    main()
