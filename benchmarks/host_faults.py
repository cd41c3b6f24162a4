"""Faults of hosts: `faults.py --hosts` hurts a sweep on three hosts of their own network, processes and clocks (tests/hosts.py).

The head has no CPU for Ray, each of the two workers one: two stages train at once, one on each. Hurt is what `worker1` has,
while a stage there is half-way; the disk is shared by all, and stays reachable when a link is down. Times are those at which
this program sees a line in the journal, for the hosts' own clocks may differ.
"""

import calendar
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from conftest import Place  # noqa: E402
from hosts import NETWORK, Host, Rack, _ip  # noqa: E402
from test_ray import TRAIN_WORKER  # noqa: E402

PORT = 6379
ALONE_SECONDS = 10.0  # that an orphan has before the rest of its host goes on, which ends it
USUAL = [
    f"export PATH={Path(sys.prefix) / 'bin'}:$PATH RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0",
    "export RAY_agent_register_timeout_ms=120000 OMP_NUM_THREADS=1",
]
# What Python's `time` tells every process of a host. Ray's own are C++ and do not start where libfaketime moves the clock, and a
# `datetime` that is replaced does not suit what Cython compiled.
CLOCK = """
import functools, time

off = {offset}
real_time, real_time_ns = time.time, time.time_ns
time.time, time.time_ns = lambda: real_time() + off, lambda: real_time_ns() + off * 10**9


def of_now(real, seconds=None):
    return real(time.time() if seconds is None else seconds)


# Not functions: `logging` keeps one in a class, where a function would become a method.
time.gmtime, time.localtime, time.ctime = (functools.partial(of_now, each) for each in (time.gmtime, time.localtime, time.ctime))
real_strftime = time.strftime
time.strftime = lambda format, when=None: real_strftime(format, time.localtime() if when is None else when)
"""


@dataclass
class Hosts:
    """Three hosts, a Ray cluster on them, and what a sweep on it has noted so far, with the time of this program."""

    rack: Rack
    place: Place
    seen: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    begun: float = field(default_factory=time.time)

    @property
    def head(self) -> Host:
        return self.rack.hosts[0]

    @property
    def hurt(self) -> Host:
        return self.rack.hosts[1]

    def start(self, host: Host, *options: str) -> None:
        done = host.run("ray", "start", *options, seconds=200)
        assert done.returncode == 0, done.stdout + done.stderr

    def start_head(self, cpus: int = 0) -> None:
        self.start(self.head, "--head", f"--port={PORT}", f"--num-cpus={cpus}", "--include-dashboard=false")

    def join(self, host: Host) -> None:
        self.start(host, f"--address={NETWORK}.2:{PORT}", "--num-cpus=1")

    def command(self) -> subprocess.Popen[bytes]:
        line = "cd /mnt/ee_ray && exec ee-ray run tiny.yaml --address auto"
        with (self.place.folder / "stderr.log").open("a") as log:
            return subprocess.Popen(self.head.inside("bash", "-c", line), stdout=log, stderr=log)

    def look(self) -> None:
        lines = self.place.store.journalled("tiny")
        self.seen += [(time.monotonic(), line) for line in lines[len(self.seen) :]]

    def half_way(self) -> dict[str, float]:
        """Stages that are being trained on the host to be hurt, with the age of the newest state of each, seconds."""
        last = {event["key"]: event for _, event in self.seen}
        ages = {}
        for key, event in last.items():
            states = sorted((self.place.store.root / "work" / key).glob("[0-9]*"))
            if event["event"] == "begun" and event["host"] == self.hurt.name and states:
                ages[key] = self.place.store.clock() - states[-1].stat().st_mtime
        return ages

    def states(self, key: str, since: float) -> list[Path]:
        """States of a stage that were written since then, seconds since the epoch."""
        return [path for path in (self.place.store.root / "work" / key).glob("[0-9]*") if path.stat().st_mtime > since]

    def wait(
        self, run: subprocess.Popen[bytes], until: Callable[[], Any] = lambda: False, limit: float = 280
    ) -> int | None:
        end = time.monotonic() + limit
        while (status := run.poll()) is None and not until():
            assert time.monotonic() < end, (self.place.folder / "stderr.log").read_text()[-4000:]
            time.sleep(0.1)
            self.look()
        self.look()
        return status


def kill(name: str) -> Callable[[Hosts], None]:
    """kill -9 processes of the hurt host, by their name there."""
    return lambda hosts: signal_all(hosts.hurt, "KILL", name)


def cut(seconds: float) -> Callable[[Hosts], None]:
    def down_and_up(hosts: Hosts) -> None:
        _ip(hosts.rack.laptop, f"link set to-{hosts.hurt.name} down")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            hosts.look()
            time.sleep(0.1)
        _ip(hosts.rack.laptop, f"link set to-{hosts.hurt.name} up")

    return down_and_up


def lose_head(hosts: Hosts) -> None:
    """All processes of the head die, its sshd apart."""
    subprocess.run(hosts.head.inside("bash", "-c", "kill -9 -1"), check=False)


def hang_and_lose_head(hosts: Hosts) -> None:
    """Ray's processes on the hurt host stop where they are, and the head dies."""
    signal_all(hosts.hurt, "STOP", "ray")
    lose_head(hosts)


def signal_all(host: Host, sign: str, name: str) -> None:
    """Send a signal to the processes of a host that have `name` in their command lines."""
    subprocess.run(host.inside("pkill", f"-{sign}", "-f", f"[{name[0]}]{name[1:]}"), check=True)


@dataclass(frozen=True)
class Fault:
    """`orphan`: a worker of the hurt host goes on alone, once the new head is half-way in what it was training. `clocks`: by how much the clocks of the workers are off, seconds."""

    says: str
    inject: Callable[[Hosts], None]
    clocks: tuple[int, int] = (0, 0)
    orphan: bool = False


FAULTS = {
    "worker": Fault("kill -9 of a train worker on another host", kill(TRAIN_WORKER)),
    "raylet": Fault("kill -9 of the raylet of a worker host, which stays away", kill("raylet/raylet")),
    "cut": Fault("a worker host cut off for 45 s, and back", cut(45)),
    "away": Fault("a worker host cut off for 90 s, and back", cut(90)),
    "clocks": Fault(
        "clocks of the workers an hour ahead and an hour behind; kill -9 of the raylet of the former, which stays away",
        kill("raylet/raylet"),
        (3600, -3600),
    ),
    "head": Fault("the head lost while its workers train on; a new head, the same command", lose_head),
    "orphan": Fault(
        "a worker host hangs, the head is lost; a new head takes over, and the hung worker goes on in the middle",
        hang_and_lose_head,
        orphan=True,
    ),
}


def _furnish(host: Host, offset: int) -> None:
    clock = host.home / "clock"
    clock.mkdir()
    if offset:
        (clock / "sitecustomize.py").write_text(CLOCK.format(offset=offset))
    (host.home / ".bashrc").write_text("\n".join([*USUAL, f"export PYTHONPATH={clock}:{ROOT}"]) + "\n")


def suffer(name: str, spec: dict[str, Any], unbroken: Place) -> dict[str, Any]:
    """One sweep on three new hosts, hurt once; a row of the table."""
    fault, folder = FAULTS[name], Path(tempfile.mkdtemp(prefix="rack-"))
    rack = Rack(folder, ["head", "worker1", "worker2"], keep=[ROOT])
    try:
        hosts = Hosts(rack, Place(folder / "shared"))
        for host, offset in zip(rack.hosts, (0, *fault.clocks), strict=True):
            _furnish(host, offset)
        hosts.start_head()
        for host in rack.hosts[1:]:
            hosts.join(host)
        hosts.place.write(**spec)
        run = hosts.command()
        hosts.wait(run, hosts.half_way)
        assert run.poll() is None, (hosts.place.folder / "stderr.log").read_text()[-4000:]
        lost, hit, at = max(hosts.half_way().values(), default=0.0), set(hosts.half_way()), time.monotonic()
        fault.inject(hosts)
        status = first = hosts.wait(run) or 0
        note = _clocks(hosts) if any(fault.clocks) else ""
        if status:
            note = _again(hosts, hit if fault.orphan else set())
        print((hosts.place.folder / "stderr.log").read_text()[-1500:], flush=True)
        return _row(hosts, fault.says, first, lost, hit, at, unbroken) | {"note": note}
    finally:
        rack.down()
        shutil.rmtree(folder, ignore_errors=True)


def _clocks(hosts: Hosts) -> str:
    """By how much the times that each worker noted were off, as the journal has them."""
    noted = {line["host"]: calendar.timegm(time.strptime(line["at"], "%Y-%m-%dT%H:%M:%SZ")) - hosts.begun for _, line in hosts.seen}  # fmt: skip
    return f"times in its journal: {', '.join(f'{host} {off / 60:+.0f} min' for host, off in sorted(noted.items()))}"


def _again(hosts: Hosts, hung: set[str]) -> str:
    """A new head that trains itself, and the same command on it, while the workers of the old one are left to themselves: a
    worker that hung goes on once the head is half-way in a stage of `hung`, and the rest of its host later."""
    begun, epoch, left, woken = time.monotonic(), time.time(), 0.0, 0.0
    hosts.start_head(cpus=1)
    run = hosts.command()

    def look() -> bool:
        nonlocal left, woken
        if any(host.processes(TRAIN_WORKER) for host in hosts.rack.hosts[1:]):
            left = time.monotonic() - begun
        taken = {line["key"] for at, line in hosts.seen if at > begun and line["event"] == "begun"} & hung
        if not woken and any(hosts.states(key, epoch) for key in taken):
            woken = time.monotonic()
            signal_all(hosts.hurt, "CONT", TRAIN_WORKER)
        if woken and time.monotonic() > woken + ALONE_SECONDS:
            signal_all(hosts.hurt, "CONT", "ray")
        return False

    assert hosts.wait(run, look) == 0, (hosts.place.folder / "stderr.log").read_text()[-4000:]
    after = [(at, line) for at, line in hosts.seen if at > begun and line["host"] != "head"]
    published = sum(line["event"] == "published" for _, line in after)
    note = f"orphans were seen until {left:.0f} s after it and published {published}" if left else ""
    if woken:
        gone = [at - woken for at, line in after if line["event"] == "left to another"]
        note += f"; woken, one left its stage after {gone[0]:.1f} s" if gone else "; woken, it wrote nothing"
        note += f"; states left behind: {len(list((hosts.place.store.root / 'work').glob('*')))}"
    return note


def _row(
    hosts: Hosts, says: str, status: int, lost: float, hit: set[str], at: float, unbroken: Place
) -> dict[str, Any]:
    begun: dict[str, list[float]] = {}
    published: set[str] = set()
    again = 0
    for when, event in hosts.seen:
        if event["event"] == "begun":
            begun.setdefault(event["key"], []).append(when)
            again += event["key"] in published
        elif event["event"] == "published":
            published.add(event["key"])
    after = [at, *(when for when, _ in hosts.seen if when > at)]
    stood = [begun[key][-1] - at for key in hit if begun[key][-1] > at]
    same = hosts.place.numbers() == unbroken.numbers() and hosts.place.summary()["optimum"] == unbroken.summary()["optimum"]  # fmt: skip
    return {
        "fault": says,
        "status": status,
        "lost_s": round(lost, 1),
        "silence_s": round(max(b - a for a, b in pairwise(after)), 1),
        "stood_s": round(max(stood, default=0.0), 1),
        "trained_again": again,
        "begun_twice": sum(
            count > 1 for count in Counter(e["key"] for _, e in hosts.seen if e["event"] == "begun").values()
        ),
        "same_bits": same,
        "traceback": "Traceback" in (hosts.place.folder / "stderr.log").read_text(),
    }
