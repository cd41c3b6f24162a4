"""The two kinds of failure: what a user can mend (one message, exit code 2) and everything else (a traceback)."""

from collections.abc import Iterable


class UserError(Exception):
    """Input that cannot be worked with. Holds every problem found, each a line that says where, what, and what would do."""

    def __init__(self, problems: str | Iterable[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class Unreachable(UserError):
    """The store has not answered for longer than it is waited for. Nothing is wrong with the stage in hand."""


class Diverged(Exception):
    """A loss or gradient that is not finite. Deterministic, so it is recorded and never tried again."""


class Withdrawn(Exception):
    """The stage in hand is no longer wanted: the sweep was interrupted. Nothing is wrong with it."""
