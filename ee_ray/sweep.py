"""A sweep opened on its store: the spec, the data's fingerprints, and the prepared data. No torch, no Ray."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ee_ray import pretrained
from ee_ray.data import sources
from ee_ray.data.pack import Packed, identities, open_packed, pack, shortfalls
from ee_ray.errors import UserError
from ee_ray.identity import key_of
from ee_ray.plan import budgets
from ee_ray.spec.data import ROLES, Source
from ee_ray.spec.load import load_sweep
from ee_ray.spec.model import Checkpoint
from ee_ray.spec.sweep import SweepSpec
from ee_ray.store import Store

# What is quicker to prepare than to talk about: `plan` prepares sources up to this size itself.
QUICK_BYTES = 8_000_000


@dataclass(frozen=True)
class Sweep:
    """`folder` is where relative `file:` paths start; `data` has each role's fingerprint, and under "model" that of the
    checkpoint that the sweep starts from, if any."""

    path: Path
    spec: SweepSpec
    store: Store
    identities: dict[str, dict[str, Any]]
    data: dict[str, str]

    @property
    def folder(self) -> Path:
        return self.path.resolve().parent

    def source(self, role: str) -> Source:
        source: Source = getattr(self.spec.data, role)
        return source

    def packed(self, role: str) -> Packed | None:
        return open_packed(self.store.data(self.data[role]))


def open_sweep(path: Path | str, storage: Path | str) -> Sweep:
    """Read a sweep and fingerprint its sources; writes nothing.

    Raises:
        UserError: with every problem of the spec, or else of the sources, or of the store.
    """
    path = Path(path)
    spec = load_sweep(path)
    try:
        found = identities(spec, path.resolve().parent)
    except UserError as error:
        raise UserError(f"{path}: {problem}" for problem in error.problems) from None
    data = {role: key_of(found[role]) for role in ROLES}
    if folder := _checkpoint(spec, path):
        data["model"] = pretrained.fingerprint(folder)
    return Sweep(path, spec, Store(storage), found, data)


def _checkpoint(spec: SweepSpec, path: Path) -> Path | None:
    """The folder of the checkpoint that the sweep starts from, if it names one.

    Raises:
        UserError: it is no checkpoint that can be read.
    """
    if not isinstance(spec.model, Checkpoint):
        return None
    folder = path.resolve().parent / spec.model.checkpoint
    if problem := pretrained.check(folder):
        raise UserError(f"{path}: model.checkpoint: {problem}")
    return folder


def prepare(sweep: Sweep, progress: Callable[[str, int], None]) -> list[str]:
    """Pack what is not packed yet; `progress` gets a role and bytes done. Returns warnings about small pools.

    Raises:
        UserError: with every source that cannot be read, is too small, or is strict and too small for its budget.
    """
    sweep.store.create()
    if folder := _checkpoint(sweep.spec, sweep.path):
        pretrained.adopt(folder, sweep.store.model(sweep.data["model"]))
    packed, problems = {}, []
    for role in ROLES:
        try:
            packed[role] = sweep.packed(role) or pack(
                sweep.source(role),
                sweep.folder,
                sweep.identities[role],
                sweep.store.data(sweep.data[role]),
                partial(progress, role),
            )
        except UserError as error:
            problems += [f"{sweep.path}: data.{role}: {problem}" for problem in error.problems]
    if problems:
        raise UserError(problems)
    errors, warnings = shortfalls(sweep.spec, packed, budgets(sweep.spec))
    if errors:
        raise UserError(f"{sweep.path}: {error}" for error in errors)
    return warnings


def prepare_if_quick(sweep: Sweep) -> list[str]:
    """`prepare`, where every source that is missing is small; otherwise a warning that says what to do."""
    missing = [role for role in ROLES if sweep.packed(role) is None]
    if any(sources.raw_bytes(sweep.source(role), sweep.folder) > QUICK_BYTES for role in missing):
        return [f"epochs are known after `ee-ray prepare {sweep.path}`: {', '.join(missing)} not prepared yet"]
    return prepare(sweep, lambda role, done: None)
