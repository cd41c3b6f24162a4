"""A sweep opened on its store: the spec, the data's fingerprints, and the prepared data. No torch, no Ray."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ee_ray import pretrained
from ee_ray.data import sources, tokenizer
from ee_ray.data.build import pack
from ee_ray.data.digests import Digests
from ee_ray.data.pack import Packed, identity_of, open_packed, shortfalls, source_identities
from ee_ray.data.workers import Workers, cores, here, processes
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
    checkpoint that the sweep starts from, if any. `gone` and `changed` say in words which of its sources cannot be read
    now, and which are no longer what it ran on (registered.py)."""

    path: Path
    spec: SweepSpec
    store: Store
    identities: dict[str, dict[str, Any]]
    data: dict[str, str]
    gone: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return self.path.resolve().parent

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's place in the store."""
        return self.store.tokenizer(key_of({"tokenizer": self.identities[ROLES[0]]["tokenizer"]}))

    def source(self, role: str) -> Source:
        source: Source = getattr(self.spec.data, role)
        return source

    def packed(self, role: str) -> Packed | None:
        return open_packed(self.store.data(self.data[role]))

    def vocab_size(self) -> int | None:
        """Tokens of the tokenizer; None while it is the hub's and was not fetched."""
        return tokenizer.vocab_size(self.spec, self.folder, self.tokenizer)


def open_sweep(path: Path | str, storage: Path | str) -> Sweep:
    """Read a sweep and fingerprint its sources. Writes nothing but the hashes of large files, which it keeps in the store.

    Raises:
        UserError: with every problem of the spec, or else of the sources, or of the store.
    """
    path = Path(path)
    spec = load_sweep(path)
    store = Store(storage)
    digests = Digests(store.digests)
    try:
        found = _identities(spec, path.resolve().parent, digests)
    except UserError as error:
        raise UserError(f"{path}: {problem}" for problem in error.problems) from None
    data = {role: key_of(found[role]) for role in ROLES}
    if folder := _checkpoint(spec, path):
        data["model"] = pretrained.fingerprint(folder, digests.sha256)
    if digests.found:
        with contextlib.suppress(OSError, UserError):  # a store that cannot be written costs time, here
            store.create()
            digests.save()
    return Sweep(path, spec, store, found, data)


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


def _identities(spec: SweepSpec, folder: Path, digests: Digests) -> dict[str, dict[str, Any]]:
    documents = source_identities(spec, folder, digests.sha256)
    tokens = tokenizer.identity(spec, folder, documents)
    return {role: identity_of(spec, documents[role], tokens) for role in ROLES}


def prepare(sweep: Sweep, progress: Callable[[str, int], None], workers: Workers | None = None) -> list[str]:
    """Pack what is not packed yet; `progress` gets a role and bytes done. Returns warnings about small pools.

    `workers`: who packs; by default a process for each core of this machine.

    Raises:
        UserError: with every source that cannot be read, is too small, or is strict and too small for its budget.
    """
    sweep.store.create()
    if folder := _checkpoint(sweep.spec, sweep.path):
        place = sweep.store.model(sweep.data["model"])
        pretrained.adopt(folder, place)
        sweep.store.publish_made(place)
    try:
        encoding = tokenizer.bring(sweep.spec, sweep.folder, sweep.tokenizer)
        sweep.store.publish_made(sweep.tokenizer)
    except UserError as error:
        raise UserError(f"{sweep.path}: {problem}" for problem in error.problems) from None
    packed, problems = {}, []
    for role in ROLES:
        try:
            place = sweep.store.data(sweep.data[role])
            packed[role] = sweep.packed(role) or pack(
                sweep.source(role),
                sweep.folder,
                sweep.identities[role],
                place,
                encoding,
                partial(progress, role),
                workers or processes(cores()),
            )
            sweep.store.publish_made(place)
        except UserError as error:
            problems += [f"{sweep.path}: data.{role}: {problem}" for problem in error.problems]
    if problems:
        raise UserError(problems)
    errors, warnings = shortfalls(sweep.spec, packed, budgets(sweep.spec), _validation_windows(sweep.spec))
    if errors:
        raise UserError(f"{sweep.path}: {error}" for error in errors)
    return warnings


def _validation_windows(spec: SweepSpec) -> int:
    """Held-out windows of D_post that early stopping wants beside those that losses are reported on."""
    stopping = [spec.chosen(number).stages.posttrain.early_stopping for number in range(len(spec.choices))]
    return max((each.windows for each in stopping if each), default=0)


def prepare_if_quick(sweep: Sweep) -> list[str]:
    """`prepare`, where every source that is missing is small; otherwise a warning that says what to do."""
    missing = [role for role in ROLES if sweep.packed(role) is None]
    sizes = [sources.text_bytes(sweep.source(role), sweep.folder) for role in missing]
    ready = sweep.spec.tokenizer.folder or tokenizer.known(sweep.spec, sweep.tokenizer)
    if (missing and not ready) or any(size is None or size > QUICK_BYTES for size in sizes):
        return [f"epochs are known after `ee-ray prepare {sweep.path}`: {', '.join(missing)} not prepared yet"]
    return prepare(sweep, lambda role, done: None, here)
