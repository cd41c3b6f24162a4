"""A store on a disk that every worker sees: small files that are read and written whole (`Files`), and items (`Disk`): stages,
corpora, tokenizers, checkpoints, states, each a folder that is read where it lies.

`objects.Objects` and `bucket.Bucket` are the same for a bucket. Names start at the store and use slashes.
"""

import contextlib
import hashlib
import math
import os
import shutil
import tempfile
import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

RECORD = "record.json"
STATES_KEPT = 2  # of a stage; the newest may be damaged: then the one before it serves


@dataclass(frozen=True)
class Entry:
    """One thing in a store. `changed`, seconds since the epoch, and `age`, seconds, by the clock that stamped it."""

    name: str
    changed: float
    age: float
    bytes: int


def is_plain(name: str) -> bool:
    return PurePath(name).name == name and name not in ("", "..")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_ended(path: Path) -> bool:
    """Whether the last line of a file is whole, as that of none is."""
    if not path.exists() or not path.stat().st_size:
        return True
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def drop_torn_line(path: Path) -> None:
    """Cut off what a full disk took of a last line."""
    if not is_ended(path):
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def size(path: Path) -> int:
    """Bytes of the files under a path. Links are not followed."""
    if path.is_symlink() or path.is_file():
        return path.lstat().st_size
    return sum((Path(folder) / name).lstat().st_size for folder, _, names in os.walk(path) for name in names)


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Put a file in its place whole or not at all."""
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


class Files:
    def __init__(self, root: Path):
        self.root = root

    def read(self, name: str) -> bytes | None:
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Whole or not at all."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)

    def create(self, name: str, content: bytes) -> bool:
        """Write what is not there yet; False if it is: of many at once one gets True."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        try:
            with os.fdopen(file, "wb") as out:
                out.write(content)
        except OSError:  # a full disk takes the name and not the content
            path.unlink()
            raise
        return True

    def renew(self, name: str) -> None:
        """Set the time of change of what this process has created to now.

        Raises:
            FileNotFoundError: it is no longer there.
        """
        os.utime(self.root / name)  # the disk's own time, not this host's

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            (self.root / name).unlink(missing_ok=True)

    def append(self, name: str, line: str) -> None:
        """Add a line to what several may write at once."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torn = not is_ended(path)  # a full disk took part of a line
        with path.open("a") as file:
            file.write("\n" * torn + line + "\n")  # short, and so by one call: lines of several writers do not mix

    def lines(self, name: str) -> list[str]:
        return (self.read(name) or b"").decode().splitlines()

    def steady(self) -> float:
        """A disk that is away lets nobody look."""
        return math.inf

    def now(self) -> float:
        with tempfile.NamedTemporaryFile(dir=self.root, prefix=".clock.") as file:
            return os.fstat(file.fileno()).st_mtime


class Disk:
    """`place`: how the store is called; `is_shared`: every worker sees `root`; `remedy`: what becomes of a published stage
    whose folder is removed there."""

    is_shared, remedy = True, "trained again"

    def __init__(self, files: Files):
        self._files, self.root, self.place = files, files.root, str(files.root)

    def check(self, marker: str, content: bytes) -> None:
        """Make it a store, if it is none yet."""
        if self._files.read(marker) is None:
            self._files.write(marker, content)

    def entries(self, folder: str, start: str = "") -> list[Entry]:
        """What lies directly in a folder under a name that starts with `start`, and how large it is."""
        found: list[tuple[str, float, int]] = []
        for path in sorted((self.root / folder).glob(f"{start}*")):
            with contextlib.suppress(FileNotFoundError):  # gone meanwhile
                found.append((path.name, path.lstat().st_mtime, size(path)))
        now = self._files.now() if found else 0.0
        return [Entry(name, changed, now - changed, length) for name, changed, length in found]

    def names(self, folder: str) -> list[str]:
        """What lies directly in a folder. Ages take a file of the disk's clock (`now`), which those who only read must not make."""
        return sorted(path.name for path in (self.root / folder).glob("*"))

    def total(self) -> int:
        """Bytes of all that the store holds."""
        return size(self.root)

    def mark(self, name: str) -> Any:
        """What changes when a file, or what a folder holds, does."""
        path = self.root / name
        return path.stat().st_mtime_ns if path.exists() else 0

    def where(self, kind: str, name: str) -> str:
        """What people look for to find an item."""
        return str(self.root / kind / name)

    def remove(self, kind: str, name: str) -> None:
        """Take an item away by one rename, so that it is never half there, and then delete it. Links are not followed."""
        away = self.root / "stages" / f".{name}.{uuid.uuid4().hex[:8]}.tmp"
        away.parent.mkdir(exist_ok=True)
        try:
            os.rename(self.root / kind / name, away)
        except FileNotFoundError:
            return  # another has done it
        if away.is_dir() and not away.is_symlink():
            shutil.rmtree(away)
        else:
            away.unlink()

    def published(self) -> list[str]:
        """Keys of the published stages."""
        return sorted(path.parent.name for path in (self.root / "stages").glob(f"[!.]*/{RECORD}"))

    def record(self, key: str) -> bytes | None:
        return self._files.read(f"stages/{key}/{RECORD}")

    def damage(self, kind: str, name: str, digests: Mapping[str, str]) -> list[str]:
        """What is wrong with files of an item, whose hashes should be these: missing, changed, or elsewhere."""
        problems = []
        for file, digest in digests.items():
            path = self.root / kind / name / file
            if not is_plain(file) or path.is_symlink():
                problems.append(f"{file} leads out of the store")
            elif not path.exists():
                problems.append(f"{file} is missing")
            elif sha256(path) != digest:
                problems.append(f"{file} does not match its hash")
        return problems

    # What lies here is read where it lies, and is published by a rename: nothing has to be moved.

    def fetch(self, kind: str, name: str, files: Collection[str] | None = None) -> None: ...

    def share(self, kind: str, name: str, folder: Path, index: Mapping[str, Any]) -> bool:
        return True

    def share_made(self, kind: str, name: str) -> None: ...

    def fetch_states(self, key: str) -> None: ...

    def share_states(self, key: str) -> None: ...

    def fetch_file(self, name: str) -> None: ...

    def share_file(self, name: str) -> None: ...
