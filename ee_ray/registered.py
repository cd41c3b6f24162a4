"""What a store knows of a sweep that ran on it: for those who read, when its sources have moved since, and for `ee-ray gc`."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ee_ray.errors import UserError
from ee_ray.spec.data import ROLES
from ee_ray.spec.load import load_sweep
from ee_ray.spec.model import Checkpoint
from ee_ray.spec.sweep import SweepSpec
from ee_ray.store import Store
from ee_ray.sweep import Sweep, open_sweep

FILE = "spec.json"
ANOTHER = "this is another sweep of the same name, and what was trained before is no part of it"


@dataclass(frozen=True)
class Registered:
    """A sweep as `register` last wrote it down. `identities`: what each corpus is made of; empty where an older version wrote."""

    spec: SweepSpec
    data: dict[str, str]
    tokenizer: str
    identities: dict[str, dict[str, Any]]


def register(sweep: Sweep) -> None:
    """Write into the store what the sweep is, so that its report and `ee-ray gc` need neither its file nor its sources."""
    spec = sweep.spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
    registered = {"schema": 1, "spec": spec, "data": sweep.data, "tokenizer": sweep.tokenizer.name, "identities": sweep.identities}  # fmt: skip
    if sweep.store.read_sweep(sweep.spec.name, FILE) != registered:
        sweep.store.write_sweep(sweep.spec.name, FILE, registered)


def registered(store: Store, name: str) -> Registered | None:
    """What `register` wrote of the sweep of that name, or None.

    Raises:
        UserError: this version cannot read it.
    """
    if (found := store.read_sweep(name, FILE)) is None:
        return None
    try:
        spec = SweepSpec.model_validate_json(json.dumps(found["spec"]))
        return Registered(spec, dict(found["data"]), found["tokenizer"], dict(found.get("identities", {})))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{store.items.where('sweeps', name)}/{FILE}: cannot be read by this version: {' '.join(str(error).split())[:200]}") from None  # fmt: skip


def _reads(spec: SweepSpec) -> Any:
    """The fields of a spec that say what is read; equal fields, and so the same corpora unless their files have changed."""
    model = spec.model if isinstance(spec.model, Checkpoint) else None
    sources = [getattr(spec.data, role).model_dump() for role in ROLES]
    return sources, spec.data.heldout_fraction, spec.tokenizer, spec.sequence_length, model


def _of_same_sources(spec: SweepSpec, store: Store) -> Registered | None:
    """The sweep of this name as it ran, if it is known here and reads what this spec names."""
    try:
        found = registered(store, spec.name)
    except UserError:  # a later version wrote it
        return None
    return found if found and found.identities and _reads(found.spec) == _reads(spec) else None


def changed_sources(sweep: Sweep) -> list[str]:
    """In words, which sources of the sweep are named as when it last ran and are no longer what they were."""
    if (ran := _of_same_sources(sweep.spec, sweep.store)) is None:
        return []
    names = [name for name in {**ran.data, **sweep.data} if ran.data.get(name) != sweep.data.get(name)]
    return [_changed(sweep, ran, name) for name in names]


def _changed(sweep: Sweep, ran: Registered, name: str) -> str:
    if name not in ROLES:
        return "model.checkpoint: is another than when this sweep last ran"
    parts = [part for part, value in sweep.identities[name].items() if ran.identities[name].get(part) != value]
    what = f"{sweep.source(name).source} has other content" if "source" in parts else f"another {' and '.join(parts)}"
    return f"data.{name}: {what} than when this sweep last ran"


def open_as_it_ran(path: Path | str, storage: Path | str) -> Sweep:
    """The sweep as it last ran on the store, for those who only read: what it was trained on need not be there any more.
    `gone` and `changed` say what has become of it. A sweep that did not run here yet is opened as it will run.

    Raises:
        UserError: with every problem of the spec, or of the store, or of the sources of a sweep that did not run here.
    """
    spec, store = load_sweep(Path(path)), Store(storage)
    ran = _of_same_sources(spec, store)
    try:
        now = open_sweep(path, storage)
    except UserError as error:
        if ran is None:
            raise
        return Sweep(Path(path), spec, store, ran.identities, ran.data, gone=tuple(error.problems))
    changed = changed_sources(now)
    return replace(now, identities=ran.identities, data=ran.data, changed=tuple(changed)) if ran and changed else now
