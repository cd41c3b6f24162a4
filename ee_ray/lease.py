"""Who trains a stage, among all runs that share a store: a claim beside the store's stages, kept alive while it is trained.

    leases/<key>.<generation>     who holds it; its time of change is its last sign of life

The newest generation counts. Claims are only ever added, by a creation that one of many can make, so that two never hold
the same one; to take over from a dead holder is to add the next. Ages are taken by the store's clock alone, that of the
disk or of the bucket's server, so that hosts may disagree about the time. Whoever trains holds a claim and waits for nothing; whoever waits holds
none: no mix of runs can lock up.

Who takes over deletes the claim of the dead. A holder that was only thought dead (its host hung, or was cut off) learns so at
its next sign of life, at the latest when it is to write a state or to publish: it does neither, and leaves the stage. Should it
come between, it does no harm: what it writes is the same, and the first to publish wins.
"""

import json
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ee_ray.board import Order
from ee_ray.errors import Superseded, Unreachable
from ee_ray.identity import Stage
from ee_ray.store import Store

BEAT_SECONDS = 5.0
DEAD_SECONDS = 30.0  # six beats
LOOKS = 3  # at claims that vanish between listing and reading


@dataclass(frozen=True)
class Claim:
    """The newest claim to a stage. `age`: seconds since its last sign of life; `ended`: its process is known to be gone."""

    generation: int
    holder: str
    age: float
    ended: bool


def is_free(claim: Claim | None, holder: str) -> bool:
    """Whether `holder` may train the stage. A slot that comes back has lost its processes, and goes on at once."""
    return claim is None or claim.ended or claim.age > DEAD_SECONDS or claim.holder == holder


@cache
def _machine() -> str:
    """This machine since it was started, and the numbering of processes that this one sees."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _has_ended(machine: str, pid: int) -> bool:
    if not machine or machine != _machine():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def newest(store: Store, key: str) -> Claim | None:
    """The claim to a stage, if there is one."""
    for _ in range(LOOKS):
        entries = {int(entry.name.rpartition(".")[2]): entry for entry in store.claims(key)}
        if not entries:
            return None
        entry = entries[max(entries)]
        content = store.read_claim(entry.name)
        if content is not None:
            break  # else released, or taken over meanwhile
    try:
        said = json.loads(content or "")
        holder, ended = said["holder"], _has_ended(said["machine"], said["pid"])
    except (ValueError, KeyError, TypeError):
        holder, ended = "", False  # being written, or a listing that is behind: somebody's, who may be alive
    return Claim(max(entries), holder, entry.age, ended)


def any_free(store: Store, keys: Iterable[str], holder: str) -> bool:
    """Whether `holder` could train one of these stages now."""
    keys = list(keys)
    claimed = {entry.name.rpartition(".")[0] for entry in store.claims()} if keys else set()
    return any(key not in claimed or is_free(newest(store, key), holder) for key in keys)


class Lease:
    """A claim that this process holds, until `release` or its death. Not at hand if the stage was `published` before."""

    def __init__(self, store: Store, stage: Stage, generation: int):
        self._store, self._key, self._generation = store, stage.key, generation
        self._done, self._renewing, self._is_lost = threading.Event(), threading.Lock(), False
        threading.Thread(target=self._beat, daemon=True).start()
        self.published = store.find(stage.key, stage.identity.payload()) is not None

    def _beat(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            try:
                self.confirm()
            except Superseded:
                return
            except (OSError, Unreachable):
                continue  # a store that is away: the claim ages, and may be lost

    def confirm(self) -> None:
        """Give a sign of life.

        Raises:
            Superseded: another has taken the stage over.
        """
        try:
            with self._renewing:
                self._store.renew_claim(_name(self._key, self._generation))
        except (FileNotFoundError, FileExistsError):
            self._is_lost = True
        self.check()

    def check(self) -> None:
        """What the last sign of life has shown, at no cost.

        Raises:
            Superseded: another has taken the stage over.
        """
        if self._is_lost:
            raise Superseded(self._key)

    def release(self) -> None:
        """Free the stage, and clear the claims of those who died with it. A store that is away keeps them until they age."""
        self._done.set()
        with suppress(Unreachable):
            found = _claims(self._store, self._key)
            self._store.delete_claims(name for name, generation in found if generation <= self._generation)


def _claims(store: Store, key: str) -> list[tuple[str, int]]:
    """Names of the claims to a stage, with their generations."""
    return [(entry.name, int(entry.name.rpartition(".")[2])) for entry in store.claims(key)]


def _name(key: str, generation: int) -> str:
    return f"{key}.{generation}"


def claim(store: Store, stage: Stage, holder: str) -> Lease | None:
    """A lease on a stage for `holder` (a run and its slot), or None: another trains it now."""
    found = newest(store, stage.key)
    if not is_free(found, holder):
        return None
    generation = found.generation + 1 if found else 1
    said = {"holder": holder, "machine": _machine(), "pid": os.getpid()}
    if not store.create_claim(_name(stage.key, generation), json.dumps(said).encode()):
        return None  # another was first
    if found:
        store.delete_claims(name for name, number in _claims(store, stage.key) if number < generation)
    return Lease(store, stage, generation)


def claim_next(
    store: Store, order: Order | None, holder: str, put_off: Callable[[str], Any], found: Callable[[str], Any]
) -> tuple[Order, Lease] | None:
    """The order that the board gave with a lease on its stage; None, once the board was told why, if there is none to train:
    another run trains it (`put_off`), or has published it (`found`)."""
    if order is None:
        return None
    lease = claim(store, order.stage, holder)
    if lease is None:
        put_off(order.stage.key)
        return None
    if lease.published:
        lease.release()
        found(order.stage.key)
        return None
    return order, lease
