"""What of a store nobody needs: how large it is, and its removal once that is asked for.

Needed is whatever a sweep that was ever run here may ask for, by its newest spec: every stage of every point of its
ladder, its corpora, tokenizer and checkpoint. So a finished report can be rebuilt and searched further, and an unfinished
sweep loses nothing. Of a sweep that ran before sweeps were registered, what it trained and what it found is kept.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ee_ray.disk import Entry
from ee_ray.errors import UserError
from ee_ray.ledger import NOTES
from ee_ray.plan import Point, build_trial, distinct
from ee_ray.registered import registered
from ee_ray.spec.sweep import SweepSpec
from ee_ray.store import ABANDONED_SECONDS, GIVEN_UP_SECONDS, Store


@dataclass
class Needed:
    """Names of what must stay, and the sweeps that were asked: those that are registered, and others by name alone."""

    stages: set[str] = field(default_factory=set)
    data: set[str] = field(default_factory=set)
    models: set[str] = field(default_factory=set)
    tokenizers: set[str] = field(default_factory=set)
    sweeps: list[str] = field(default_factory=list)
    unregistered: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Garbage:
    """One item that can go: what it is, in words, and its size in bytes."""

    what: str
    kind: str
    name: str
    bytes: int


def stages_of(spec: SweepSpec, data: dict[str, str]) -> set[str]:
    """Keys of every stage that a sweep may ever ask for."""
    levels, seeds = range(spec.search.ladder + 1), spec.search.seeds
    points = itertools.product(levels, seeds, range(len(spec.choices)))
    return {key for point in points for key in distinct([build_trial(spec, data, Point(*point))])}


def needed(store: Store) -> Needed:
    """What the sweeps of a store need.

    Raises:
        UserError: a registered sweep cannot be read, so that nobody knows what it needs.
    """
    found = Needed()
    for name in store.sweeps():
        try:
            ran = registered(store, name)
        except UserError as error:
            raise UserError(f"{problem}; so nothing can be called garbage" for problem in error.problems) from None
        if ran is None:
            found.unregistered.append(name)
            found.stages |= set((store.read_sweep(name, NOTES) or {}).get("found", []))
            continue
        data = dict(ran.data)
        found.sweeps.append(name)
        found.stages |= stages_of(ran.spec, data)
        found.models |= {data.pop("model")} if "model" in data else set()
        found.data |= set(data.values())
        found.tokenizers.add(ran.tokenizer)
    return found


def garbage(store: Store, keep: Needed) -> Iterator[Garbage]:
    """Everything that can go now.

    What was touched in the last day may belong to a run that is only beginning, and stays, published stages apart.
    """
    published = set(store.published())

    def rested(kind: str, seconds: float = ABANDONED_SECONDS) -> list[Entry]:
        return [entry for entry in store.items.entries(kind) if entry.age > seconds]

    for entry in store.items.entries("stages"):
        if entry.name in published - keep.stages:
            record = store.record(entry.name)
            assert record is not None
            if record["sweep"] not in keep.unregistered:
                what = f"stages of sweep {record['sweep']} that no sweep asks for"
                yield Garbage(what, "stages", entry.name, entry.bytes)
        elif entry.name not in published and entry.age > ABANDONED_SECONDS:
            yield Garbage("abandoned drafts", "stages", entry.name, entry.bytes)
    for entry in store.items.entries("work"):
        if entry.name in published:
            yield Garbage("states of stages that are published", "work", entry.name, entry.bytes)
        elif entry.name not in keep.stages and entry.age > ABANDONED_SECONDS:
            yield Garbage("states of stages that no sweep asks for", "work", entry.name, entry.bytes)
    for entry in rested("data", GIVEN_UP_SECONDS):
        if entry.name.endswith(".partial"):
            yield Garbage("corpora half packed and left", "data", entry.name, entry.bytes)
    for entry in rested("leases"):
        yield Garbage("claims of the dead", "leases", entry.name, entry.bytes)
    if keep.unregistered:
        return  # nobody knows what these read
    for kind, names in {"data": keep.data, "models": keep.models, "tokenizers": keep.tokenizers}.items():
        for entry in rested(kind):
            if entry.name not in names and not entry.name.startswith(".") and not entry.name.endswith(".partial"):
                yield Garbage(f"{kind} that no sweep reads", kind, entry.name, entry.bytes)


def clear(store: Store, delete: bool) -> dict[str, Any]:
    """What is there and what can go, as JSON, schema 1; with `delete` it is gone.

    Raises:
        UserError: there is no store.
    """
    if not store.exists:
        raise UserError(f"storage {store.place}: is no store yet")
    keep, total = needed(store), store.items.total()
    found = list(garbage(store, keep))
    if delete:
        for item in found:
            store.items.remove(item.kind, item.name)
    return {
        "schema": 1,
        "store": store.place,
        "bytes": total,
        "garbage_bytes": sum(item.bytes for item in found),
        "garbage": [
            {"what": item.what, "path": store.items.where(item.kind, item.name), "bytes": item.bytes} for item in found
        ],
        "sweeps": keep.sweeps,
        "unregistered": keep.unregistered,
        "deleted": delete,
    }


def gc_text(found: dict[str, Any]) -> str:
    """Sizes first, by kind, the largest first; then what was done or what to say to have it done."""
    kinds: dict[str, list[int]] = {}
    for item in found["garbage"]:
        kinds.setdefault(item["what"], []).append(item["bytes"])
    lines = [
        f"{found['store']}: {found['bytes'] / 1e6:,.1f} MB, of which {found['garbage_bytes'] / 1e6:,.1f} MB nobody needs"
    ]
    lines += [
        f"{sum(sizes) / 1e6:>10,.1f} MB  {len(sizes):>6} {what}"
        for what, sizes in sorted(kinds.items(), key=lambda kind: -sum(kind[1]))
    ]
    kept = ", ".join(
        [*found["sweeps"], *(f"{name} (not registered: all that it trained)" for name in found["unregistered"])]
    )
    lines.append(f"kept for {kept or 'no sweep'}")
    if found["garbage"]:
        lines.append("deleted" if found["deleted"] else "nothing deleted: add --delete")
    return "\n".join(lines)
