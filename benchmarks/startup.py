"""What a sweep's start-up is made of: from the command to the first step, and from one stage to the next.

    python benchmarks/startup.py [--turns 3] [--against COMMIT] [--json FILE]

A sweep of many stages of a fraction of a second on two slots of a Ray cluster of its own. Watched from outside, by /proc and
the sweep's journal: when each kind of process appears, when each slot begins its first stage, the CPU time that each kind of
process has taken by then (which others on the machine hardly change), and in each slot the time from one stage's publication
to the beginning of the next, at most 20 ms too long. `--against` takes turns with another commit and prints ratios. Linux.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOOK_SECONDS = 0.02
TICKS = os.sysconf("SC_CLK_TCK")
SPEC = """
schema: 1
name: startup
setting: compute_matched
model: nano
sequence_length: 128
data:
  pre: {source: "builtin:web", size: 300_000}
  post: {source: "builtin:music", size: 50_000}
  ft: {source: "builtin:chemistry", size: 50_000}
  heldout_fraction: 0.2
  heldout_windows: 16
stages:
  pretrain: {tokens: 65_536, global_batch_size: 16, learning_rate: 4e-3}
  posttrain: {tokens: 8192, global_batch_size: 4, learning_rate: 2e-3}
  finetune: {tokens: 8192, global_batch_size: 8, learning_rates: [1e-4, 3e-4, 1e-3]}
search: {ladder: 4, anchors: [0, 0.5, 1], seeds: [0, 1], max_trials: 6, runs_per_round: 2, ci_width: 0.01}
objective: {finetune_lr: 1e-4, practical: 0.0001}
"""


def processes(root: int) -> dict[int, tuple[str, float]]:
    """Descendants of a process: their names as people read them, and the CPU seconds that each has taken."""
    found, parents = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
                words = (folder / "cmdline").read_bytes().decode(errors="replace").strip("\0").split("\0")
                parents[int(folder.name)] = int(stat[1])
                found[int(folder.name)] = (_title(words), (int(stat[11]) + int(stat[12])) / TICKS)
    ours = {root}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return {pid: found[pid] for pid in ours if pid in found}


def _title(words: list[str]) -> str:
    if words[0].startswith("ray::"):
        return words[0].split(".")[0].split(" ")[0]
    if "ee-ray" in words[1:2] or any(word.endswith("/ee-ray") or word == "ee_ray.cli" for word in words[:3]):
        return "ee-ray run"
    script = next((Path(word).name for word in words if word.endswith(".py")), Path(words[0]).name)
    return {"default_worker.py": "idle Ray worker"}.get(script, script)


def journal(folder: Path) -> list[dict[str, Any]]:
    path = folder / "store/sweeps/startup/journal.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def watch(tree: Path, folder: Path) -> dict[str, Any]:
    """One sweep, from the command to its end."""
    (folder / "startup.yaml").write_text(SPEC)
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    main = [sys.executable, "-c", "from ee_ray.cli import main; main()"]
    subprocess.run([*main, "prepare", "startup.yaml"], cwd=folder, env=environment, check=True, capture_output=True)
    started = time.monotonic()
    run = subprocess.Popen([*main, "run", "startup.yaml"], cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    appeared: dict[str, float] = {}
    cpu: dict[int, tuple[str, float]] = {}
    first: dict[int, float] = {}  # slot's process: when it began its first stage
    ended: dict[int, float] = {}
    gaps, read, at_first = [], 0, {}
    while run.poll() is None:
        now = time.monotonic() - started
        for line in journal(folder)[read:]:
            read += 1
            if line["event"] == "begun":
                first.setdefault(line["pid"], now)
                if line["pid"] in ended:
                    gaps.append(now - ended.pop(line["pid"]))
            else:
                ended[line["pid"]] = now
        if not at_first:
            cpu |= processes(run.pid)
            for name, _ in cpu.values():
                appeared.setdefault(name, now)
            if len(first) == 2:
                at_first = dict(cpu)
        time.sleep(LOOK_SECONDS)
    if run.returncode or len(first) < 2:
        raise SystemExit(f"{tree}: the sweep ended with {run.returncode}; {len(first)} slots worked")
    by_name: dict[str, list[float]] = defaultdict(list)
    for name, seconds in at_first.values():
        by_name["ee-ray run" if name == "-c" else name].append(seconds)
    return {
        "first_stage_s": round(min(first.values()), 1),
        "both_slots_s": round(max(first.values()), 1),
        "cpu_s": round(sum(seconds for _, seconds in at_first.values()), 1),
        "gap_s": round(statistics.median(gaps), 3),
        "whole_s": round(time.monotonic() - started, 1),
        "processes": {name: {"count": len(each), "cpu_s": round(sum(each), 1), "appeared_s": round(appeared.get(name, 0.0), 1)}
                      for name, each in sorted(by_name.items(), key=lambda item: -sum(item[1]))},
    }  # fmt: skip


def show(name: str, results: list[dict[str, Any]]) -> None:
    middle = {key: statistics.median(result[key] for result in results) for key in results[0] if key != "processes"}
    print(f"{name}: first stage after {middle['first_stage_s']:.1f} s, both slots after {middle['both_slots_s']:.1f} s and "
          f"{middle['cpu_s']:.0f} CPU-seconds; from stage to stage {middle['gap_s']:.3f} s; whole sweep {middle['whole_s']:.0f} s")  # fmt: skip
    for kind, row in results[-1]["processes"].items():
        if row["cpu_s"] >= 0.5:
            print(f"  {row['cpu_s']:6.1f} CPU-s  {row['count']:2d} x {kind:<34} from {row['appeared_s']:5.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--against", help="a commit to take turns with")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {"this tree": []}
    with tempfile.TemporaryDirectory(prefix="startup-") as made:
        trees = {"this tree": ROOT}
        if asked.against:
            trees[asked.against] = Path(made) / "other"
            subprocess.run(["git", "-C", ROOT, "worktree", "add", "--detach", trees[asked.against], asked.against], check=True, capture_output=True)  # fmt: skip
            results[asked.against] = []
        try:
            for turn in range(asked.turns):
                for name, tree in trees.items():
                    folder = Path(made) / f"{turn}-{'this' if tree == ROOT else 'other'}"
                    folder.mkdir()
                    results[name].append(watch(tree, folder))
                    show(name, results[name][-1:])
        finally:
            if asked.against:
                subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", trees[asked.against]], check=True)
    if asked.against:
        for key in ("first_stage_s", "both_slots_s", "cpu_s", "gap_s", "whole_s"):
            ratios = [one[key] / other[key] for one, other in zip(*results.values(), strict=True)]
            print(f"{key}: {statistics.median(ratios):.2f} of {asked.against} ({min(ratios):.2f} to {max(ratios):.2f})")
    if asked.json:
        asked.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
