"""Kinds of failure: what a user can mend (one message, exit code 2), what was lost under a run (one message, exit code 3),
and everything else (a traceback)."""

import errno
from collections.abc import Iterable, Iterator


class UserError(Exception):
    """Input that cannot be worked with. Holds every problem found, each a line that says where, what, and what would do."""

    def __init__(self, problems: str | Iterable[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class Lost(Exception):
    """The cluster ended under a run. What was published is kept, and the same command goes on."""

    def __init__(self, what: str):
        super().__init__(f"lost: {what}; everything published is kept, the same command goes on")


NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


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


def is_disk_full(error: BaseException) -> bool:
    """Whether an error came from a disk without room, or a quota that is used up."""
    return any(isinstance(one, OSError) and one.errno in NO_ROOM for one in _chain(error)) or any(
        "No space left on device" in str(one) for one in _chain(error)
    )


class Unreachable(UserError):
    """The store has not answered for longer than it is waited for. Nothing is wrong with the stage in hand."""


class Diverged(Exception):
    """A loss or gradient that is not finite. Deterministic, so it is recorded and never tried again."""


class Withdrawn(Exception):
    """The stage in hand is no longer wanted: the sweep was interrupted. Nothing is wrong with it."""


def unreachable(error: BaseException) -> Unreachable | None:
    """The store's silence, if an error comes from it, wherever in the chain of causes."""
    return next((one for one in _chain(error) if isinstance(one, Unreachable)), None)
