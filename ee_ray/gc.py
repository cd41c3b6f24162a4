"""What of a store nobody needs: how large it is, and its removal once that is asked for.

Needed is whatever a sweep that was ever run here may ask for, by its newest spec: every stage of every point of its
ladder, its corpora, tokenizer and checkpoint. So a finished report can be rebuilt and searched further, and an unfinished
sweep loses nothing. Of a sweep that ran before sweeps were registered, what it trained and what it found is kept.
"""

import itertools
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ee_ray.errors import UserError
from ee_ray.ledger import NOTES
from ee_ray.plan import Point, build_trial, distinct
from ee_ray.spec.sweep import SweepSpec
from ee_ray.store import ABANDONED_SECONDS, GIVEN_UP_SECONDS, Store
from ee_ray.sweep import SPEC


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
    """One file or folder that can go: what it is, in words, and its size in bytes."""

    what: str
    path: Path
    bytes: int


def size(path: Path) -> int:
    """Bytes of the files under a path. Links are not followed."""
    if path.is_symlink() or path.is_file():
        return path.lstat().st_size
    return sum((Path(folder) / name).lstat().st_size for folder, _, names in os.walk(path) for name in names)


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
    for folder in sorted(path for path in (store.root / "sweeps").glob("*") if path.is_dir()):
        registered = store.read_sweep(folder.name, SPEC)
        if registered is None:
            found.unregistered.append(folder.name)
            found.stages |= set((store.read_sweep(folder.name, NOTES) or {}).get("found", []))
            continue
        try:
            spec, data = SweepSpec.model_validate_json(json.dumps(registered["spec"])), dict(registered["data"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder / SPEC}: cannot be read by this version, so nothing can be called garbage: {' '.join(str(error).split())[:200]}") from None  # fmt: skip
        found.sweeps.append(folder.name)
        found.stages |= stages_of(spec, data)
        found.models |= {data.pop("model")} if "model" in data else set()
        found.data |= set(data.values())
        found.tokenizers.add(registered["tokenizer"])
    return found


def garbage(store: Store, keep: Needed, now: float) -> list[Garbage]:
    """Everything that can go at `now`, the store's own time.

    What was touched in the last day may belong to a run that is only beginning, and stays, published stages apart.
    """
    return [Garbage(what, path, size(path)) for what, path in (*_stages(store, keep), *_leftovers(store, keep, now))]


def _stages(store: Store, keep: Needed) -> Iterator[tuple[str, Path]]:
    for key in store.published():
        if key in keep.stages:
            continue
        record = store.record(key)
        assert record is not None
        if record["sweep"] not in keep.unregistered:
            yield f"stages of sweep {record['sweep']} that no sweep asks for", store.stage(key)


def _leftovers(store: Store, keep: Needed, now: float) -> Iterator[tuple[str, Path]]:
    published = set(store.published())

    def rested(folder: str, pattern: str, seconds: float = ABANDONED_SECONDS) -> list[Path]:
        found = sorted((store.root / folder).glob(pattern))
        return [path for path in found if now - path.lstat().st_mtime > seconds]

    for path in sorted((store.root / "work").glob("*")):
        if path.name in published:
            yield "states of stages that are published", path
    for path in rested("work", "*"):
        if path.name not in published | keep.stages:
            yield "states of stages that no sweep asks for", path
    for path in rested("stages", ".*.tmp"):
        yield "abandoned drafts", path
    for path in rested("data", "*.partial", GIVEN_UP_SECONDS):
        yield "corpora half packed and left", path
    for path in rested("leases", "*"):
        yield "claims of the dead", path
    if keep.unregistered:
        return  # nobody knows what these read
    kinds = {"data": keep.data, "models": keep.models, "tokenizers": keep.tokenizers}
    for kind, names in kinds.items():
        for path in rested(kind, "[!.]*"):
            if path.name not in names and path.suffix != ".partial":
                yield f"{kind} that no sweep reads", path


def remove(store: Store, items: list[Garbage]) -> None:
    """Take each away by one rename, so that nothing is ever half there, and then delete it. Links are not followed."""
    for item in items:
        away = store.root / "stages" / f".{item.path.name}.{uuid.uuid4().hex[:8]}.tmp"
        away.parent.mkdir(exist_ok=True)
        try:
            os.rename(item.path, away)
        except FileNotFoundError:
            continue  # another has done it
        if away.is_dir() and not away.is_symlink():
            shutil.rmtree(away)
        else:
            away.unlink()


def clear(store: Store, delete: bool) -> dict[str, Any]:
    """What is there and what can go, as JSON, schema 1; with `delete` it is gone.

    Raises:
        UserError: there is no store.
    """
    if not (store.root / "store.json").exists():
        raise UserError(f"storage {store.root}: is no store yet")
    keep, total = needed(store), size(store.root)
    found = garbage(store, keep, store.clock())
    if delete:
        remove(store, found)
    return {
        "schema": 1,
        "store": str(store.root),
        "bytes": total,
        "garbage_bytes": sum(item.bytes for item in found),
        "garbage": [{"what": item.what, "path": str(item.path), "bytes": item.bytes} for item in found],
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
