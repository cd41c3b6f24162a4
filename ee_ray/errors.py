"""Kinds of failure: what a user can mend (one message, exit code 2), what was lost under a run (one message, exit code 3),
and everything else (a traceback)."""

import errno
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path


class UserError(Exception):
    """Input that cannot be worked with. Holds every problem found, each a line that says where, what, and what would do."""

    def __init__(self, problems: str | Iterable[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class Lost(Exception):
    """What a run stands on was lost under it. What was published is kept, and the same command goes on."""


class ClusterLost(Lost):
    def __init__(self, what: str):
        super().__init__(f"lost: {what}; everything published is kept, the same command goes on")


class NoRoom(Lost):
    """A disk is full, or a quota is used up."""


NO_ROOM, NO_ROOM_TEXT = (errno.ENOSPC, errno.EDQUOT), "No space left on device"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it came from, also over Ray's borders (`cause`)."""
    seen: set[int] = set()
    left = [error]
    while left:
        if (one := left.pop()) is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        left += [one.__cause__, one.__context__]
        left += [cause] if isinstance(cause := getattr(one, "cause", None), BaseException) else []


def no_room(error: BaseException, near: Path | None = None) -> NoRoom | None:
    """What to say of a disk without room, if an error comes from one, wherever in the chain of causes. To be asked on the host
    where it happened.

    near: what was probably being written, for errors that do not say.
    """
    chain = list(_chain(error))
    if said := next((one for one in chain if isinstance(one, NoRoom)), None):
        return said
    full = [one for one in chain if getattr(one, "errno", None) in NO_ROOM or NO_ROOM_TEXT in str(one)]
    if not full:
        return None
    named = [Path(name) for one in full if isinstance(name := getattr(one, "filename", None), str)]
    path = named[0] if named else near
    where = _disk(path) if path else f"a disk of {socket.gethostname()}"
    return NoRoom(f"no room is left on {where}: everything published is kept; make room there (`ee-ray gc` lists what of a store nobody needs), and the same command goes on")  # fmt: skip


def _disk(path: Path) -> str:
    """Which disk a path is on, or would be, and how much of it is free."""
    disk = next(place for place in [path.absolute(), *path.absolute().parents] if place.exists())
    usage = shutil.disk_usage(disk)
    while not os.path.ismount(disk):
        disk = disk.parent
    return f"the disk at {disk} of {socket.gethostname()} ({usage.free / 1e6:,.0f} of {usage.total / 1e6:,.0f} MB free), where {path} is"


class Unreachable(UserError):
    """The store has not answered for longer than it is waited for. Nothing is wrong with the stage in hand."""


class Diverged(Exception):
    """A loss or gradient that is not finite. Deterministic, so it is recorded and never tried again."""


class Withdrawn(Exception):
    """The stage in hand is no longer wanted: the sweep was interrupted. Nothing is wrong with it."""


class Superseded(Exception):
    """The stage in hand was taken over by another, to whom this process was dead for a while. Nothing is wrong with it."""


def unreachable(error: BaseException) -> Unreachable | None:
    """The store's silence, if an error comes from it, wherever in the chain of causes."""
    return next((one for one in _chain(error) if isinstance(one, Unreachable)), None)


def common_cause(error: BaseException, near: Path | None = None) -> Unreachable | NoRoom | None:
    """What every slot and trial would meet as well, each after its own attempts, if an error comes from that."""
    return unreachable(error) or no_room(error, near)
