"""What each fault costs: a real sweep on a real Ray cluster of this machine, hurt once, and watched until it ends.

    python benchmarks/faults.py                     every fault, one after another; then the table of docs/reliability.md
    python benchmarks/faults.py --only worker       some of them; the others keep their rows
    python benchmarks/faults.py --hosts             those of three hosts (root; host_faults.py)
    python benchmarks/faults.py --soak 50           that many faults, drawn at random, in one sweep; with --keep FOLDER
                                                    --limit 200 for so many seconds, and the same line goes on

A fault is injected while at least one stage is half-way. Measured: the age of the oldest state that a stage goes back to
(what is lost), how long everything and how long a stage that was hit stood still (until the run itself, or the same command
once it has ended, went on), stages that were begun again after they had been published, and whether all numbers are, bit for bit, those of a sweep that
nothing happened to. A minute or two for each fault. Faults of the disk mount one (root, loop devices).
"""

import argparse
import calendar
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from conftest import Place  # noqa: E402
from fault_places import (  # noqa: E402
    FREEZE_SECONDS,
    LATE_SECONDS,
    clear,
    fill,
    freeze,
    hang,
    in_bucket,
    in_folder,
    on_disk,
    refuse,
    slow,
)
from host_faults import FAULTS as HOST_FAULTS  # noqa: E402
from host_faults import suffer as suffer_on_hosts  # noqa: E402
from test_ray import TRAIN_WORKER, TRIAL_DRIVER, Run  # noqa: E402

CHECKPOINT_SECONDS = 1.0
SWEEP: dict[str, Any] = {
    "stages__pretrain__tokens": 98_304,
    "stages__posttrain__tokens": 8192,
    "stages__finetune__tokens": 8192,
    "execution__checkpoint_seconds": CHECKPOINT_SECONDS,
}
RESULTS, PAGE = ROOT / "docs" / "reliability.json", ROOT / "docs" / "reliability.md"
MARKS = ("<!-- table of benchmarks/faults.py -->", "<!-- end of table -->")
CONTROLLER, BOARD, RAYLET, GCS = "ray::TrainController", "ray::Board", "raylet/raylet", "gcs/gcs_server"


@dataclass
class Row:
    """`silence_s`: the longest time in which no stage began or was published; `stood_s`: the longest from the first to the
    next beginning of a stage that was hit, what it had trained included; `status`: how the run ended that was hit."""

    fault: str
    status: int
    lost_s: float
    silence_s: float
    stood_s: float
    trained_again: int
    begun_twice: int
    same_bits: bool
    traceback: bool


def kill(name: str) -> Callable[[Run, Place], None]:
    return lambda run, place: run.kill_one(name)


def kill_training(run: Run, place: Place) -> None:
    """kill -9 the train worker of a stage that has just saved a state; the claims say who trains what."""

    def pids() -> list[int]:
        keys = {key for key, age in states(place).items() if age < CHECKPOINT_SECONDS / 2}
        keys -= set(place.store.published()) if keys else set()
        names = [entry.name for entry in place.store.claims() if entry.name.rpartition(".")[0] in keys]
        return [json.loads(content)["pid"] for name in names if (content := place.store.read_claim(name))]

    found: list[int] = []
    run.wait_for(lambda: found.extend(pids()) or found)
    os.kill(found[0], signal.SIGKILL)


def send(sign: signal.Signals) -> Callable[[Run, Place], None]:
    return lambda run, place: os.kill(run.process.pid, sign)


@dataclass(frozen=True)
class Fault:
    says: str
    inject: Callable[[Run, Any], None]
    where: Callable[[Path], AbstractContextManager[Place]] = in_folder


FAULTS = {
    "worker": Fault("kill -9 of a train worker", kill_training),
    "controller": Fault("kill -9 of a train controller", kill(CONTROLLER)),
    "driver": Fault("kill -9 of a trial driver", kill(TRIAL_DRIVER)),
    "board": Fault("kill -9 of the board", kill(BOARD)),
    "raylet": Fault("kill -9 of the raylet (its only node)", kill(RAYLET)),
    "head": Fault("kill -9 of the head's control store (gcs)", kill(GCS)),
    "run": Fault("kill -9 of `ee-ray run`", send(signal.SIGKILL)),
    "sigterm": Fault("SIGTERM to `ee-ray run`, as spot instances get it", send(signal.SIGTERM)),
    "full": Fault("disk full under the store, until the run has ended", lambda _, place: fill(place), on_disk),
    "slow": Fault(
        f"the store's disk hangs for {FREEZE_SECONDS:g} s (fsfreeze)", lambda _, place: freeze(place), on_disk
    ),
    "s3worker": Fault("kill -9 of a train worker", kill_training, in_bucket),
    "s3hangs": Fault("the server hangs for 20 s", lambda _, place: hang(place, 20), in_bucket),
    "s3away": Fault("the server refuses connections for 60 s", lambda _, place: refuse(place, 60), in_bucket),
    "s3slow": Fault(f"every answer is {LATE_SECONDS:g} s late, to the end", lambda _, place: slow(place), in_bucket),
}
PROCESSES = {"worker": TRAIN_WORKER, "controller": CONTROLLER, "driver": TRIAL_DRIVER, "board": BOARD}
DRAWN = ("worker", "worker", "controller", "driver", "driver", "board")
ENDING = ("sigterm", "run", "head", "raylet")  # the run ends, which costs a start of Ray: a few of each
SOAKED = SWEEP | {"stages__pretrain__tokens": 49_152, "execution__checkpoint_seconds": 0.2}


def states(place: Place) -> dict[str, float]:
    """Stages that are half-way, by key, and the ages of their newest states, seconds."""
    now, ages = time.time(), {}
    for folder in (place.store.root / "work").glob("*"):
        try:
            if found := sorted(folder.glob("[0-9]*")):
                ages[folder.name] = now - found[-1].stat().st_mtime
        except FileNotFoundError:
            continue  # published, or replaced by a newer one
    return ages


def half_way(place: Place) -> list[float]:
    return list(states(place).values())


def start(place: Place, spec: str) -> Run:
    return Run(place, spec, *(["--storage", place.storage] if place.storage else []))


def watch_until(
    run: Run, place: Place, spec: str, condition: Callable[[], bool], limit: float = 300
) -> tuple[Run, int]:
    """Wait for `condition`; a run that ends before it is cleared up after and started again. The last run, and how the
    first one ended (0: it did not)."""
    end, first = time.monotonic() + limit, 0
    while not condition():
        if (status := run.process.poll()) is not None:
            if status == 0:
                break
            first = first or status
            clear(place)
            run = start(place, spec)
        assert time.monotonic() < end, run.log.read_text()[-3000:]
        time.sleep(0.1)
    return run, first


def events(place: Place) -> tuple[int, int]:
    """Stages that were begun after they were published, and stages that were begun more than once."""
    begun: Counter[str] = Counter()
    published: set[str] = set()
    again = 0
    for event in place.store.journalled("tiny"):
        if event["event"] == "begun":
            begun[event["key"]] += 1
            again += event["key"] in published
        elif event["event"] == "published":
            published.add(event["key"])
    return again, sum(count > 1 for count in begun.values())


def standstill(place: Place) -> tuple[float, float]:
    """Seconds, to the second, of `Row.silence_s` and `Row.stood_s`."""
    found = [(calendar.timegm(time.strptime(e["at"], "%Y-%m-%dT%H:%M:%SZ")), e) for e in place.store.journalled("tiny")]
    begun: dict[str, list[int]] = {}
    for at, event in found:
        if event["event"] == "begun":
            begun.setdefault(event["key"], []).append(at)
    times = sorted(at for at, _ in found)
    silence = max(b - a for a, b in itertools.pairwise(times))
    return float(silence), float(max((ats[-1] - ats[0] for ats in begun.values()), default=0))


def suffer(fault: Fault, place: Place, unbroken: Place) -> Row:
    spec = place.write(**SWEEP, search__max_trials=6)
    run = start(place, spec)
    run.wait_for(lambda: len(place.store.published()) >= 2 and half_way(place), 300)
    lost, before = max(half_way(place), default=0.0), set(place.store.published())
    fault.inject(run, place)
    run, status = watch_until(run, place, spec, lambda: set(place.store.published()) > before)
    run, later = watch_until(run, place, spec, lambda: False)
    (again, twice), (silence, stood) = events(place), standstill(place)
    same = place.numbers() == unbroken.numbers() and place.summary()["optimum"] == unbroken.summary()["optimum"]
    traceback = "Traceback" in run.log.read_text()
    return Row(fault.says, status or later, round(lost, 1), silence, stood, again, twice, same, traceback)


@dataclass
class Soak:
    """How far a soak is; kept in its folder, so that a long one can be made in portions."""

    done: dict[str, int]
    seconds: float = 0.0

    @property
    def faults(self) -> int:
        return sum(self.done.values())


def hurt(run: Run, draw: random.Random) -> str | None:
    """Kill one process of the run, drawn by kind and then among those of its kind; the kind, None if there was none."""
    kind = draw.choice(DRAWN)
    victims = run.named(PROCESSES[kind])
    if victims:
        draw.choice(victims).kill()
    return kind if victims else None


def portion(soak: Soak, count: int, place: Place, spec: str, draw: random.Random, until: float) -> None:
    """One `ee-ray run`: hurt in its processes, each time once something was published after the fault before, until it ends
    or is ended by a fault that it cannot outlive."""
    run, begun, most = Run(place, spec), time.monotonic(), 1 + count // len(ENDING)
    faults, published = 0, len(place.store.published())
    while run.process.poll() is None:
        assert time.monotonic() < begun + 900, run.log.read_text()[-3000:]
        time.sleep(0.1)
        if soak.faults >= count or len(place.store.published()) <= published:
            continue
        if faults == most - 1 or time.monotonic() > until:
            name = min(ENDING, key=lambda name: soak.done.get(name, 0))
            FAULTS[name].inject(run, place)
            soak.done[name] = soak.done.get(name, 0) + 1
            run.process.wait(200)
            break
        time.sleep(draw.uniform(0, 1))
        published = len(place.store.published())
        if name := hurt(run, draw):
            soak.done[name], faults = soak.done.get(name, 0) + 1, faults + 1
    soak.seconds += time.monotonic() - begun
    print(f"{soak.faults} faults, {len(place.store.published())} stages, ended with {run.process.poll()}", flush=True)


def soak(count: int, folder: Path, seed: int, limit: float) -> dict[str, Any] | None:
    """`count` faults in one sweep; None if `limit` seconds were not enough, and the same call goes on."""
    until, notes = time.monotonic() + limit, folder / "soak.json"
    place, whole = Place(folder / "soak"), Place(folder / "whole")
    for each in (place, whole):
        each.folder.mkdir(parents=True, exist_ok=True)
    seeds = list(range(max(2, count // 5)))  # 11 stages each: about two stages a fault
    changes = SOAKED | {
        "search__seeds": seeds,
        "search__max_trials": 3 * len(seeds),
        "search__anchor_seeds": len(seeds),
    }
    spec, found = place.write(**changes), Soak(**json.loads(notes.read_text())) if notes.exists() else Soak({})
    while not (place.folder / "reports/tiny/summary.json").exists():
        if time.monotonic() > until:
            return None
        portion(found, count, place, spec, random.Random(seed + found.faults), until)
        notes.write_text(json.dumps(asdict(found)))
    if not (whole.folder / "reports/tiny/summary.json").exists():
        if time.monotonic() > until - limit / 2:
            return None
        whole.ee_ray("run", whole.write(**changes), "--local")
    again, twice = events(place)
    return {
        "faults": found.done,
        "stages": len(place.store.published()),
        "seconds": round(found.seconds),
        "trained_again": again,
        "begun_twice": twice,
        "same_bits": place.numbers() == whole.numbers() and place.summary()["optimum"] == whole.summary()["optimum"],
    }


HEADS = ["the run", "lost at most", "all stood still", "a hit stage began again after", "published stages trained again", "final numbers"]  # fmt: skip


def _lines(first: str, rows: list[dict[str, Any]]) -> list[str]:
    lines = [f"| {' | '.join([first, *HEADS])} |", "|---" * (len(HEADS) + 1) + "|"]
    for row in rows:
        how = " and a traceback" if row.get("traceback") else ""
        went = f"ended with {row['status']}{how}; the same command went on" if row["status"] else "went on"
        went += f" ({row['note']})" if row.get("note") else ""
        stood = f"{row['stood_s']:.0f} s" if row["begun_twice"] else "none was hit"
        same = "the same bits" if row["same_bits"] else "**differ**"
        lines.append(f"| {row['fault']} | {went} | {row['lost_s']:.1f} s | {row['silence_s']:.0f} s | {stood} | {row['trained_again']} | {same} |")  # fmt: skip
    return lines


def table(results: dict[str, Any]) -> str:
    lines = []
    for first, where in (("fault", (in_folder, on_disk)), ("fault, the store in a bucket", (in_bucket,))):
        rows = [row for name, fault in FAULTS.items() if fault.where in where and (row := results["faults"].get(name))]
        lines += ["", *_lines(first, rows)] if rows else []
    if rows := [row for name in HOST_FAULTS if (row := results.get("hosts", {}).get(name))]:
        lines += ["", *_lines("fault, on three hosts", rows)]
    for found in results["soaks"]:
        kinds = ", ".join(f"{count} {name}" for name, count in sorted(found["faults"].items()))
        lines.append(f"\nSoak: {sum(found['faults'].values())} faults ({kinds}) in a sweep of {found['stages']} stages, {found['seconds']} s: "
                     f"{found['begun_twice']} stages begun more than once, {found['trained_again']} trained again after they were published; "
                     f"final numbers: {'the same bits' if found['same_bits'] else '**differ**'}.")  # fmt: skip
    return "\n".join(lines).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=[])
    parser.add_argument("--hosts", nargs="*", choices=HOST_FAULTS, help="faults of three hosts, or all of them")
    parser.add_argument("--soak", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=3600, help="seconds that a soak may take before it is put off")
    parser.add_argument(
        "--keep", type=Path, help="a folder for what the sweeps leave, and for the unbroken one to be found again"
    )
    asked = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"faults": {}, "soaks": []}
    with tempfile.TemporaryDirectory(prefix="faults-") as made:
        base = asked.keep or Path(made)
        base.mkdir(exist_ok=True)
        if asked.soak:
            if (found := soak(asked.soak, base / f"soak-{asked.soak}-{asked.seed}", asked.seed, asked.limit)) is None:
                return
            results["soaks"] = [*(old for old in results["soaks"] if sum(old["faults"].values()) != asked.soak), found]
        else:
            unbroken = Place(base / "unbroken")
            if not (unbroken.folder / "reports/tiny/summary.json").exists():
                unbroken.folder.mkdir(exist_ok=True)
                unbroken.ee_ray("run", unbroken.write(**SWEEP, search__max_trials=6), "--local")
            for name in [] if asked.hosts is None else asked.hosts or HOST_FAULTS:
                row = suffer_on_hosts(name, {**SWEEP, "search__max_trials": 6}, unbroken)
                print(row, flush=True)
                results.setdefault("hosts", {})[name] = row
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            for name in asked.only if asked.hosts is not None else asked.only or FAULTS:
                with FAULTS[name].where(Path(tempfile.mkdtemp(dir=base))) as place:
                    row = suffer(FAULTS[name], place, unbroken)
                print(row, flush=True)
                results["faults"][name] = asdict(row)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    if PAGE.exists():
        head, _, rest = PAGE.read_text().partition(MARKS[0])
        PAGE.write_text(f"{head}{MARKS[0]}\n\n{table(results)}\n\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")
    print(table(results))


if __name__ == "__main__":
    main()
