"""What a command says while it works: to people on the terminal, and to a file that the store keeps."""

import platform
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TextIO, cast

from rich.console import Console

from ee_ray.errors import UserError
from ee_ray.fold import fold
from ee_ray.store import Store


class Log:
    """Says lines to people, and writes each with the time to a file, if it has one. When quiet only alarms are heard."""

    def __init__(self, quiet: bool = False, file: "_Kept | None" = None):
        self.console = Console(stderr=True, quiet=quiet)
        self.quiet, self.file = quiet, file

    def say(self, text: str) -> None:
        """On the way, to stderr."""
        self.console.print(fold(text), markup=False, highlight=False, soft_wrap=True)
        self.keep(text)

    def tell(self, text: str) -> None:
        """A result, to stdout."""
        if not self.quiet:
            print(fold(text), flush=True)
        self.keep(text)

    def alarm(self, text: str) -> None:
        """What went wrong, to stderr, quiet or not."""
        print(fold(text), file=sys.stderr, flush=True)
        self.keep(text)

    def keep(self, text: str) -> None:
        """Write to the file only."""
        if self.file:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            self.file.write("".join(f"{stamp} {line}\n" for line in text.splitlines()))

    @property
    def kept(self) -> Console | None:
        """A console that is the file, for what prints to consoles by itself."""
        return Console(file=cast(TextIO, self.file), width=120, no_color=True) if self.file else None


class _Kept:
    """The file of a log. What a full disk does not take is not kept, and ends nothing: it was said all the same."""

    def __init__(self, path: Path):
        self._file, self.name = path.open("xb", buffering=0), str(path)

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._file.write(text.encode())
        return len(text)

    def flush(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        with suppress(OSError):
            self._file.close()


@contextmanager
def _shared_at_end(store: Store, path: Path) -> Iterator[None]:
    try:
        yield
    finally:
        with suppress(UserError):  # a store that is away: whoever worked says so
            store.kept(path)


@contextmanager
def keeping(store: Store, sweep: str, quiet: bool = False) -> Iterator[Log]:
    """A log that the store keeps of a sweep, under the time at which it begins, with the command, and how it ended.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = store.logs(sweep)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number = sum(1 for _ in folder.glob(f"{stamp}*"))
        file = _Kept(folder / f"{stamp}{f'-{number}' if number else ''}.log")
    except OSError as error:
        raise UserError(f"{folder}: no log can be kept there: {error.strerror}") from error
    with _shared_at_end(store, Path(file.name)), closing(file):
        log = Log(quiet, file)
        log.keep(
            f"{' '.join(sys.argv)}; ee_ray {version('ee-ray')}, Python {platform.python_version()}, {platform.node()}"
        )
        try:
            yield log
        except BaseException as error:
            log.keep(f"ended by {type(error).__name__}: {error}")
            raise
        log.keep("done")
