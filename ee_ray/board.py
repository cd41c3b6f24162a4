"""The queue of stages: which may run, who runs which, what became of them. Pure bookkeeping, no Ray in it.

A stage is ready when its parent is published. A slot that asks gets, of the kinds of stages that its shape is for, a child
of what it just trained if there is one (its weights are warm), else the stage that was submitted first. A slot that comes back while it holds a stage has
died in the middle of it, or was given more or fewer workers, and gets the same stage again: a bounded number of times
without getting further than before. A stage that another run trains is put off, and asked about again a moment later.

A board that dies comes back empty, and is filled by those who asked before: each trial sees that its stages are unknown
and submits them again. What a slot says of a stage that nobody has submitted again yet is no news worth keeping: a stage
that is being trained is put off, for its claim is held (lease.py), and one that was published is found.

Slots of several shapes share one cluster. One that has no work keeps its room for a while (to start again costs 13 s), but
gives way at once to another that waits for room with work at hand: so none waits for ever for what nobody uses.
"""

import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ee_ray.identity import Stage
from ee_ray.spec.stages import KINDS, Kind

ATTEMPTS = 3
PUT_OFF_SECONDS = 1.0
SPARE_SECONDS = 30.0  # a slot without work for so long gives its room back; to have it again takes 13 s
GIVE_WAY_SECONDS = (
    2.0  # the same, where another slot of the run waits for room: what follows a stage is there in a second
)
State = Literal["waiting", "running", "done", "failed"]


@dataclass(frozen=True)
class Order:
    """What a worker is asked to do: a stage, for which sweep, in which micro-batches, saving its state how often."""

    stage: Stage
    sweep: str
    micro_batch: int | None
    checkpoint_seconds: float
    checkpoint_steps: int | None = None


@dataclass
class _Entry:
    order: Order
    state: State
    slot: str = ""
    attempts: int = 0
    reached: int = 0
    tokens: int = 0
    evidence: dict[str, Any] | None = None
    put_off: float = 0.0  # not to be asked about before then, by this process's clock


def _orphaned(parent: _Entry) -> dict[str, Any]:
    return {"error": f"its parent {parent.order.stage.key} failed", "diverged": False}


class Board:
    """Every stage that was asked for, by key. One lives in the driver, or in an actor that all slots can reach."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._open: dict[
            str, _Entry
        ] = {}  # those that wait or run, as submitted: what is settled is not looked at again
        self._settled: Counter[tuple[Kind, State]] = Counter()
        self._awaited: dict[str, Collection[Kind]] = {}
        self._last: dict[str, str] = {}
        self._closed: str | Exception | None = None
        self._withdrawn = False
        self._trained_tokens = 0
        self._advances = 0
        self._started = time.monotonic()
        self._began: float | None = None

    def submit(
        self, orders: Iterable[Order], published: Iterable[str], diverged: Mapping[str, dict[str, Any]] | None = None
    ) -> None:
        """Ask for stages, parents first. Those that are known already, or published, are not trained again, nor are those
        that have diverged, here or (`diverged`, the evidence by key) in an earlier run, with what descends from them."""
        there, hopeless = set(published), diverged or {}
        for order in orders:
            key, known = order.stage.key, self._entries.get(order.stage.key)
            if known and (known.state != "failed" or (key not in there and (known.evidence or {}).get("diverged"))):
                continue
            if known:
                self._settled[order.stage.kind, "failed"] -= 1
            entry = self._entries[key] = self._open[key] = _Entry(order, "waiting")
            parent = self._entries.get(order.stage.parent or "")
            if key in there:
                self._done(entry)
            elif key in hopeless:
                self._fail(entry, hopeless[key])
            elif parent and parent.state == "failed":
                self._fail(entry, _orphaned(parent))

    def take(self, slot: str, kinds: Collection[Kind] = KINDS) -> Order | None:
        """The stage that `slot` shall train now, or None if none of its kinds is ready."""
        if self._closed:
            return None
        for entry in list(self._open.values()):
            if entry.state == "running" and entry.slot == slot:
                self._reach(entry)
                if entry.attempts < ATTEMPTS:
                    entry.attempts += 1
                    return entry.order
                self._fail(
                    entry,
                    entry.evidence
                    or {"error": f"its worker died {ATTEMPTS} times in the middle of it", "diverged": False},
                )
        now = time.monotonic()
        ready = [entry for entry in self._ready(kinds) if entry.put_off <= now]
        if not ready:
            return None
        warm = [e for e in ready if e.order.stage.parent == self._last.get(slot)]
        entry = (warm or ready)[0]
        entry.state, entry.slot, entry.attempts = "running", slot, entry.attempts + 1
        self._began = self._began or now
        return entry.order

    def _reach(self, entry: _Entry) -> None:
        """An attempt has ended: did it go on from the saved state, and further than those before?"""
        if entry.tokens > entry.reached:
            entry.reached, entry.attempts = entry.tokens, 0
            self._advances += 1

    def _ready(self, kinds: Collection[Kind]) -> list[_Entry]:
        waiting = (e for e in self._open.values() if e.state == "waiting" and e.order.stage.kind in kinds)
        parents = ((entry, entry.order.stage.parent) for entry in waiting)
        return [entry for entry, parent in parents if parent is None or self._entries[parent].state == "done"]

    def ready(self, kinds: Collection[Kind] = KINDS) -> list[str]:
        """Keys of the stages that nobody here trains and that need nothing but a slot, or another run to end with them."""
        return [entry.order.stage.key for entry in self._ready(kinds)]

    def await_room(self, slot: str, kinds: Collection[Kind]) -> None:
        """A slot for stages of these kinds waits until the cluster has room for it; of no kinds: it waits no more."""
        self._awaited[slot] = kinds
        if not kinds:
            del self._awaited[slot]

    def patience(self) -> float:
        """Seconds that a slot may keep its room without work."""
        if self._closed:
            return 0.0
        wanted = {kind for kinds in self._awaited.values() for kind in kinds}
        return GIVE_WAY_SECONDS if wanted and self._ready(wanted) else SPARE_SECONDS

    def is_settled(self) -> bool:
        """Whether every stage that was asked for is done or has failed."""
        return not self._open

    def put_off(self, key: str) -> None:
        """Another run trains this stage: its slot is free for others."""
        if entry := self._open.get(key):
            entry.state, entry.slot, entry.attempts = "waiting", "", max(0, entry.attempts - 1)
            entry.put_off = time.monotonic() + PUT_OFF_SECONDS

    def found(self, key: str) -> None:
        """Another run has published this stage."""
        if entry := self._entries.get(key):
            self._done(entry)

    def progress(self, key: str, tokens: int) -> bool:
        """Note how far a running stage is; False tells its slot to drop it."""
        if entry := self._entries.get(key):
            entry.tokens = tokens
        return not self._withdrawn

    def done(self, slot: str, key: str) -> None:
        if entry := self._entries.get(key):
            self._done(entry)
            self._trained_tokens += entry.tokens
        self._last[slot] = key

    def advances(self) -> int:
        """Stages that were done, and attempts that died further on than those before: grows while a sweep gets on."""
        return self._advances

    def _done(self, entry: _Entry) -> None:
        self._advances += 1
        entry.tokens = entry.order.stage.identity.tokens
        self._settle(entry, "done")

    def _settle(self, entry: _Entry, state: State) -> None:
        if self._open.pop(entry.order.stage.key, None) is None:
            self._settled[entry.order.stage.kind, entry.state] -= 1
        entry.state = state
        self._settled[entry.order.stage.kind, state] += 1

    def note(self, key: str, evidence: dict[str, Any]) -> None:
        """What an attempt raised. The stage stays with its slot, whose next attempt may succeed."""
        if entry := self._entries.get(key):
            entry.evidence = evidence

    def fail(self, key: str, evidence: dict[str, Any]) -> None:
        """A stage that is not to be tried again in this run; what descends from it fails with it."""
        if entry := self._entries.get(key):
            self._fail(entry, evidence)

    def _fail(self, entry: _Entry, evidence: dict[str, Any]) -> None:
        entry.evidence = evidence
        self._settle(entry, "failed")
        for child in list(self._open.values()):
            if child.order.stage.parent == entry.order.stage.key and child.state == "waiting":
                self._fail(child, _orphaned(entry))

    def order(self, key: str) -> Order | None:
        return self._entries[key].order if key in self._entries else None

    def evidence(self, key: str) -> dict[str, Any] | None:
        return self._entries[key].evidence if key in self._entries else None

    def states(self, keys: Iterable[str]) -> dict[str, State]:
        """How it stands with stages; those that are unknown are left out."""
        return {key: self._entries[key].state for key in keys if key in self._entries}

    def release(self, slot: str) -> None:
        """The slot is gone: what it held may be taken by another."""
        for entry in self._open.values():
            if entry.state == "running" and entry.slot == slot:
                self._reach(entry)
                entry.state, entry.slot = "waiting", ""

    def close(self, reason: str | Exception, withdraw: bool = False) -> None:
        """No more stages: slots end when they next ask, or with `withdraw` when they next report."""
        self._closed = self._closed or reason
        self._withdrawn = self._withdrawn or withdraw

    def closed(self) -> str | Exception | None:
        return self._closed

    def snapshot(self) -> dict[str, Any]:
        """Counts, what runs where, and tokens trained since the start: what the progress display shows. `seconds` since the
        start, `training_seconds` since a worker first took a stage."""
        now = time.monotonic()
        running = [e for e in self._open.values() if e.state == "running"]
        counts = self._settled + Counter((e.order.stage.kind, e.state) for e in self._open.values())
        kinds = {kind: {state: counts[kind, state] for state in get_args(State)} for kind in get_args(Kind)}
        return {
            "counts": {state: sum(of[state] for of in kinds.values()) for state in get_args(State)},
            "kinds": kinds,
            "running": [(e.slot, e.order.stage.kind, e.order.stage.key, e.tokens, e.order.stage.identity.tokens) for e in running],
            "tokens": self._trained_tokens + sum(e.tokens for e in running),
            "tokens_left": sum(e.order.stage.identity.tokens - e.tokens for e in self._open.values()),
            "seconds": now - self._started,
            "training_seconds": now - self._began if self._began else 0.0,
        }  # fmt: skip
