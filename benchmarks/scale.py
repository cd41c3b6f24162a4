"""What a sweep costs beside its training, and how that grows with its number of stages.

    python benchmarks/scale.py                         17 to 3,400 trials that are published: each command's time and memory
    python benchmarks/scale.py --train 1 6             one and six seeds of 17 trials through the whole path, on Ray
    python benchmarks/scale.py --seeds 59 --profile report     where the time of one command goes
    python benchmarks/scale.py --board                 how many calls a second the board bears, and how many a cluster makes

Published stages are written by the publisher itself, with the weights of a tiny model and losses of a planted curve. What
is trained has one step of 256 tokens in each stage: the path (search, board, slots, claims, files, report) is the real
one, and the training in it is as near to nothing as it gets. A trial is three stages; two at lambda = 1. Times are wall and
CPU seconds of whole commands, imports included, each in a process of its own; memory is the highest of that process.
"""

import argparse
import cProfile
import os
import pstats
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import chdir, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import numpy as np
import psutil
import ray
import torch
import yaml
from click.testing import CliRunner

from ee_ray.board import Board, Order
from ee_ray.capacity import SLOT_BYTES, TRIAL_BYTES
from ee_ray.cli import main as command_line
from ee_ray.metrics import Curve
from ee_ray.model import build_config, build_model
from ee_ray.plan import Point, build_trial, distinct
from ee_ray.publish import publish
from ee_ray.search import MOST_POLL_SECONDS
from ee_ray.spec.sweep import SweepSpec
from ee_ray.sweep import Sweep, open_sweep
from ee_ray.train import REPORT_SECONDS, Progress
from ee_ray.world import World

LEVELS = 16
SEEDS = (1, 6, 59, 200)  # 17, 102, 1,003 and 3,400 trials; 50, 300, 2,950 and 10,000 stages
COMMANDS = (("plan", "--json"), ("status",), ("report",), ("run", "--local", "--quiet"), ("run", "--local", "--quiet"))
POINTS = 20  # of a stage's training curve


def spec_of(seeds: int, **more: Any) -> dict[str, Any]:
    """A sweep that tries every level with every seed in its first round, and then has enough."""
    model = {
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    stage = {"tokens": 256, "global_batch_size": 16}
    return {
        "schema": 1,
        "name": f"scale-{seeds}",
        "model": model,
        "sequence_length": 16,
        "data": {
            "pre": {"source": "builtin:web", "size": 20_000},
            "post": {"source": "builtin:music", "size": 20_000},
            "ft": {"source": "builtin:chemistry", "size": 20_000},
            "heldout_windows": 8,
        },
        "stages": {
            "pretrain": {**stage, "learning_rate": 0.001},
            "posttrain": {**stage, "learning_rate": 0.001},
            "finetune": {**stage, "learning_rates": [0.001]},
        },
        "search": {
            "ladder": LEVELS,
            "anchors": [level / LEVELS for level in range(LEVELS + 1)],
            "seeds": list(range(seeds)),
            "anchor_seeds": seeds,
            "max_trials": (LEVELS + 1) * seeds,
        },
        "objective": {"finetune_lr": 0.001, "practical": 0.001},
        **more,
    }


def planted(level: int, seed: int, rng: np.random.Generator) -> dict[str, float]:
    """Losses of a recipe: a valley at 0.4 that seeds move up and down, and noise."""
    place, offset = level / LEVELS, np.random.default_rng(seed).normal(0, 0.02)
    noise = rng.normal(0, 0.006, 3)
    return {
        "pre": 3 + 0.1 * place + noise[0],
        "post": 2 + 0.3 * (place - 0.4) ** 2 + offset + noise[1],
        "ft": 1.5 + 0.05 * place + noise[2],
    }


def fill(sweep: Sweep) -> int:
    """Publish every stage that the sweep asks for; how many."""
    spec, rng = sweep.spec, np.random.default_rng(0)
    packed = sweep.packed("pre")
    assert packed
    model = build_model(build_config(spec.model_config_fields, packed.vocab_size, spec.sequence_length), 0)
    had = set(sweep.store.published())
    world, seconds, number = World(torch.device("cpu")), {"setup": 0.01, "train": 0.02, "evaluate": 0.01}, 0
    for seed in spec.search.seeds:
        for level in range(LEVELS + 1):
            losses = planted(level, seed, rng)
            for stage in distinct([build_trial(spec, sweep.data, Point(level, seed))]).values():
                if stage.key in had:
                    continue
                curve = Curve()
                for name in vars(curve):
                    getattr(curve, name).extend(np.linspace(1, 2, POINTS).tolist())
                curve.step[:] = range(1, POINTS + 1)
                curve.tokens[:] = [stage.identity.tokens * (point + 1) // POINTS for point in range(POINTS)]
                curve.memory[:] = [0] * POINTS
                known = {role: losses[role] for role, _ in stage.identity.heldout}
                number += publish(sweep.store, Order(stage, spec.name, None, 300.0), model, None, world, Progress(step=1, curve=curve), known, seconds)  # fmt: skip
    return number


def run_command(*arguments: str) -> dict[str, float]:
    """Wall and CPU seconds and peak memory of one command, in MB."""
    began, peak = time.monotonic(), 0
    with open(os.devnull, "w") as silent, psutil.Popen([sys.executable, "-m", "ee_ray.cli", *arguments], stdout=silent) as done:  # fmt: skip
        while done.poll() is None:
            with suppress(psutil.Error):
                peak, times = max(peak, done.memory_info().rss), done.cpu_times()
            time.sleep(0.02)
    if done.returncode:
        raise SystemExit(f"{arguments}: exit {done.returncode}")
    return {"wall_s": time.monotonic() - began, "cpu_s": times.user + times.system, "memory_mb": peak / 1e6}


@contextmanager
def place(seeds: int, kept: Path | None = None, **more: Any) -> Iterator[Sweep]:
    """The sweep in a folder of its own, or in `kept`; its data prepared, that folder the current one."""
    with tempfile.TemporaryDirectory() as own, chdir(kept or own):
        Path("spec.yaml").write_text(yaml.safe_dump(spec_of(seeds, **more)))
        assert CliRunner().invoke(command_line, ["prepare", "spec.yaml"]).exit_code == 0
        yield open_sweep("spec.yaml", "store")


def published(seeds: int, keep: Path | None) -> dict[str, float]:
    """One line of the table: a store of so many seeds, and what each command takes on it."""
    folder = keep.resolve() / f"scale{seeds}" if keep else None
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    with place(seeds, folder) as sweep:
        began = time.monotonic()
        stages = fill(sweep)
        row = {"seeds": seeds, "trials": seeds * (LEVELS + 1)}
        row |= {"publish_ms": 1000 * (time.monotonic() - began) / stages} if stages else {}
        row["stages"] = len(sweep.store.published())
        for command, *options in COMMANDS:
            found = run_command(command, "spec.yaml", *options)
            row |= {f"{command}_{name}": value for name, value in found.items()}
        row["files"] = sum(len(files) for _, _, files in os.walk("store"))
        row["store_mb"] = sum(path.stat().st_size for path in Path("store").rglob("*") if path.is_file()) / 1e6
        row["page_mb"] = Path(f"reports/{sweep.spec.name}/index.html").stat().st_size / 1e6
    return row


def _memory(run: psutil.Process) -> dict[str, float]:
    """Proportional memory of a run's processes now, in MB, by what they are."""
    found: dict[str, float] = {"driver": 0.0, "slots": 0.0, "trials": 0.0, "ray": 0.0}
    for process in [run, *run.children(recursive=True)]:
        try:
            name, held = " ".join(process.cmdline())[:80], process.memory_full_info().pss / 1e6
        except psutil.Error:
            continue
        kind = "driver" if process == run else "trials" if "ImplicitFunc" in name or "ray::lambda" in name else "slots" if "Train" in name or "Synchronization" in name else "ray"  # fmt: skip
        found[kind] += held
    return found


def trained(seeds: int) -> dict[str, float]:
    """One line of the table of what is trained: `ee-ray run` on a Ray of its own, watched from outside."""
    with place(seeds, execution={"checkpoint_seconds": 3600.0}) as sweep:
        most: dict[str, float] = {}
        began, marks = time.monotonic(), list[tuple[float, int]]()
        with open("log", "w") as log:
            run = psutil.Popen([sys.executable, "-m", "ee_ray.cli", "run", "spec.yaml"], stdout=log, stderr=log)
            while run.poll() is None:
                time.sleep(1)
                marks.append((time.monotonic() - began, len(sweep.store.published())))
                if run.is_running() and len(marks) % 5 == 0:
                    now = _memory(run)
                    most = {name: max(value, most.get(name, 0.0)) for name, value in now.items()}
        if run.returncode:
            raise SystemExit(Path("log").read_text())
        stages = marks[-1][1]
        busy = [at for at, count in marks if 0 < count < stages]
        halves = [next(at for at, count in marks if count >= part * stages) for part in (0.1, 0.5, 0.9)]
        first, second = (0.4 * stages / max(b - a, 1) for a, b in pairwise(halves))
        return {
            "seeds": seeds, "trials": seeds * (LEVELS + 1), "stages": stages, "wall_s": time.monotonic() - began,
            "to_first_s": busy[0] if busy else 0.0, "stages_per_s_first_half": first, "stages_per_s_second_half": second,
            **{f"{name}_mb": value for name, value in most.items()},
        }  # fmt: skip


def table(rows: list[dict[str, float]]) -> str:
    """Markdown: a column for each row, so that growth is read from left to right."""
    lines = ["| | " + " | ".join(f"{row['trials']:,} trials" for row in rows) + " |", "|---" * (len(rows) + 1) + "|"]
    for name in [name for name in rows[0] if name not in ("seeds", "trials")]:
        values = [row.get(name) for row in rows]
        said = ["" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in values]
        lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(said) + " |")
    return "\n".join(lines)


def profiled(seeds: int, command: str) -> None:
    """Print where one command's time goes, the forty dearest functions."""
    with place(seeds) as sweep:
        fill(sweep)
        options = next(options for name, *options in COMMANDS if name == command)
        profile = cProfile.Profile()
        with profile:
            CliRunner().invoke(command_line, [command, "spec.yaml", *options], catch_exceptions=False)
        pstats.Stats(profile).sort_stats("cumulative").print_stats(r"ee_ray|plotly.*to_json|json|pandas.*to_", 45)


def board_calls() -> float:
    """Calls a second that a board of 2,000 open and 10,000 settled stages answers to four processes."""

    def submit(board: Any, published: bool) -> list[str]:
        spec = SweepSpec.model_validate(spec_of(100))
        data, seeds = dict.fromkeys(("pre", "post", "ft"), "0" * 16), range(*((0, 200) if published else (200, 240)))
        points = [Point(level, seed) for seed in seeds for level in range(LEVELS + 1)]
        orders = [Order(stage, "scale", None, 300.0) for stage in distinct([build_trial(spec, data, each) for each in points]).values()]  # fmt: skip
        keys = [order.stage.key for order in orders]
        ray.get(board.submit.remote(orders, keys if published else []))
        return keys

    @ray.remote(num_cpus=0)
    def ask(board: Any, keys: list[str], seconds: float) -> int:
        end, number = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            ray.get(board.progress.remote(keys[number % len(keys)], number))
            ray.get(board.patience.remote())
            ray.get(board.states.remote(keys[:3]))
            number += 3
        return number

    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    board = ray.remote(num_cpus=0)(Board).remote()
    submit(board, True)
    keys, seconds = submit(board, False), 10.0
    ray.get([ask.remote(board, keys, 1.0) for _ in range(4)])
    answered = sum(ray.get([ask.remote(board, keys, seconds) for _ in range(4)])) / seconds
    ray.shutdown()
    return answered


def limits(answered: float) -> str:
    """1,000 GPUs by what a stage takes of them: slots, the head's memory, and calls a second to the board, every slot busy."""
    lines = [
        f"| a stage takes | slots | memory of the head, GB | calls to the board a second, of {answered:,.0f} |",
        "|---|---|---|---|",
    ]
    for gpus in (8.0, 1.0, 0.25):
        slots = 1000 / gpus
        memory = (slots * (SLOT_BYTES + TRIAL_BYTES) + TRIAL_BYTES) / 1e9
        calls = slots / REPORT_SECONDS + 2 * slots / MOST_POLL_SECONDS
        lines.append(f"| {gpus:g} GPUs | {slots:,.0f} | {memory:,.0f} | {calls:,.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--train", type=int, nargs="+", metavar="SEEDS", help="train these instead, on Ray")
    parser.add_argument("--profile", choices=[command for command, *_ in COMMANDS], help="of one command instead")
    parser.add_argument("--board", action="store_true", help="calls to the board instead")
    parser.add_argument("--keep", type=Path, help="a folder for the stores; what is in them is not published again")
    asked = parser.parse_args()
    if asked.board:
        print(limits(board_calls()))
    elif asked.profile:
        profiled(asked.seeds[0], asked.profile)
    elif asked.train:
        print(table([trained(seeds) for seeds in asked.train]))
    else:
        print(table([published(seeds, asked.keep) for seeds in asked.seeds]))


if __name__ == "__main__":
    main()
