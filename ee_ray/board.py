"""The queue of stages: which may run, who runs which, what became of them. Pure bookkeeping, no Ray in it.

A stage is ready when its parent is published. A slot that asks gets a child of what it just trained if there is one
(its weights are warm), else the stage that was submitted first. A slot that comes back while it holds a stage has
died in the middle of it, or was given more or fewer workers, and gets the same stage again: a bounded number of times
without getting further than before. A stage that another run trains is put off, and asked about again a moment later.
"""

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ee_ray.identity import Kind, Stage

ATTEMPTS = 3
PUT_OFF_SECONDS = 1.0
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


class Board:
    """Every stage that was asked for, by key. One lives in the driver, or in an actor that all slots can reach."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._last: dict[str, str] = {}
        self._closed: str | None = None
        self._withdrawn = False
        self._trained_tokens = 0
        self._started = time.monotonic()

    def submit(self, orders: Iterable[Order], published: Iterable[str]) -> None:
        """Ask for stages, parents first. Those that are known already, or published, are not trained again."""
        there = set(published)
        for order in orders:
            key = order.stage.key
            if key in there:
                self._entries.setdefault(key, _Entry(order, "done"))
            elif key not in self._entries or self._entries[key].state == "failed":
                self._entries[key] = _Entry(order, "waiting")

    def take(self, slot: str) -> Order | None:
        """The stage that `slot` shall train now, or None if none is ready."""
        if self._closed:
            return None
        for entry in self._entries.values():
            if entry.state == "running" and entry.slot == slot:
                if entry.tokens > entry.reached:  # it went on from its saved state, and further than before
                    entry.reached, entry.attempts = entry.tokens, 0
                if entry.attempts < ATTEMPTS:
                    entry.attempts += 1
                    return entry.order
                self._fail(
                    entry,
                    entry.evidence
                    or {"error": f"its worker died {ATTEMPTS} times in the middle of it", "diverged": False},
                )
        ready = [e for e in self._entries.values() if e.state == "waiting" and self._is_ready(e)]
        if not ready:
            return None
        warm = [e for e in ready if e.order.stage.parent == self._last.get(slot)]
        entry = (warm or ready)[0]
        entry.state, entry.slot, entry.attempts = "running", slot, entry.attempts + 1
        return entry.order

    def _is_ready(self, entry: _Entry) -> bool:
        parent = entry.order.stage.parent
        return (parent is None or self._entries[parent].state == "done") and entry.put_off <= time.monotonic()

    def ready(self) -> list[str]:
        """Keys of the stages that nobody here trains and that need nothing but a slot, or another run to end with them."""
        parents = ((entry, entry.order.stage.parent) for entry in self._entries.values() if entry.state == "waiting")
        return [e.order.stage.key for e, parent in parents if parent is None or self._entries[parent].state == "done"]

    def is_asked(self) -> bool:
        """Whether any stage was ever asked for."""
        return bool(self._entries)

    def is_settled(self) -> bool:
        """Whether every stage that was asked for is done or has failed."""
        return all(entry.state in ("done", "failed") for entry in self._entries.values())

    def put_off(self, key: str) -> None:
        """Another run trains this stage: its slot is free for others."""
        entry = self._entries[key]
        entry.state, entry.slot, entry.attempts = "waiting", "", entry.attempts - 1
        entry.put_off = time.monotonic() + PUT_OFF_SECONDS

    def found(self, key: str) -> None:
        """Another run has published this stage."""
        entry = self._entries[key]
        entry.state, entry.tokens = "done", entry.order.stage.identity.tokens

    def progress(self, key: str, tokens: int) -> bool:
        """Note how far a running stage is; False tells its slot to drop it."""
        self._entries[key].tokens = tokens
        return not self._withdrawn

    def done(self, slot: str, key: str) -> None:
        entry = self._entries[key]
        entry.state, entry.tokens = "done", entry.order.stage.identity.tokens
        self._trained_tokens += entry.tokens
        self._last[slot] = key

    def note(self, key: str, evidence: dict[str, Any]) -> None:
        """What an attempt raised. The stage stays with its slot, whose next attempt may succeed."""
        self._entries[key].evidence = evidence

    def fail(self, key: str, evidence: dict[str, Any]) -> None:
        """A stage that is not to be tried again in this run; what descends from it fails with it."""
        self._fail(self._entries[key], evidence)

    def _fail(self, entry: _Entry, evidence: dict[str, Any]) -> None:
        entry.state, entry.evidence = "failed", evidence
        for child in self._entries.values():
            if child.order.stage.parent == entry.order.stage.key and child.state == "waiting":
                self._fail(child, {"error": f"its parent {entry.order.stage.key} failed", "diverged": False})

    def order(self, key: str) -> Order:
        return self._entries[key].order

    def evidence(self, key: str) -> dict[str, Any] | None:
        return self._entries[key].evidence

    def states(self, keys: Iterable[str]) -> dict[str, State]:
        return {key: self._entries[key].state for key in keys}

    def release(self, slot: str) -> None:
        """The slot is gone: what it held may be taken by another."""
        for entry in self._entries.values():
            if entry.state == "running" and entry.slot == slot:
                entry.state, entry.slot = "waiting", ""

    def close(self, reason: str, withdraw: bool = False) -> None:
        """No more stages: slots end when they next ask, or with `withdraw` when they next report."""
        self._closed = self._closed or reason
        self._withdrawn = self._withdrawn or withdraw

    def closed(self) -> str | None:
        return self._closed

    def snapshot(self) -> dict[str, Any]:
        """Counts, what runs where, and tokens trained since the start: what the progress display shows."""
        running = [e for e in self._entries.values() if e.state == "running"]
        counts = Counter((e.order.stage.kind, e.state) for e in self._entries.values())
        kinds = {kind: {state: counts[kind, state] for state in get_args(State)} for kind in get_args(Kind)}
        return {
            "counts": {state: sum(of[state] for of in kinds.values()) for state in get_args(State)},
            "kinds": kinds,
            "running": [(e.slot, e.order.stage.kind, e.order.stage.key, e.tokens, e.order.stage.identity.tokens) for e in running],
            "tokens": self._trained_tokens + sum(e.tokens for e in running),
            "tokens_left": sum(e.order.stage.identity.tokens - e.tokens for e in self._entries.values() if e.state in ("waiting", "running")),
            "seconds": time.monotonic() - self._started,
        }  # fmt: skip
