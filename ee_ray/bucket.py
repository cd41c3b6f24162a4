"""Items of a store in an S3-compatible bucket, and the mirror of them that each host has on its own disk.

    <kind>/<name>.json                   an item: a stage (its record), corpus, tokenizer, checkpoint or state, with the hash
                                         of each of its files. Created last, and by one of many: it is there or it is not
    files/<kind>/<name>/<file>.<sha256>  its files, written before, so that no other writer changes them
    leases/ failures/ sweeps/            as on a disk, but that each line of a journal is an object

Whoever reads wants files on a disk (memory maps, safetensors, parquet). So items are fetched into the mirror on first need,
once for all processes of a host, and a file has its name only once its hash is found right. Files of stages go again, the
longest unused first, where the disk gets full; all of the mirror can be removed whenever nothing runs.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ee_ray.disk import RECORD, STATES_KEPT, Entry, is_plain, sha256
from ee_ray.errors import UserError
from ee_ray.objects import THREADS, Objects

CACHE = "EE_RAY_CACHE"  # in the environment: the folder of all mirrors
FETCHED = ".fetched"  # in a folder of the mirror: it came from the bucket, and was not made here
MOVING_SECONDS = 60.0  # so long may a stage be in the mirror before a listing of the bucket must show it
FREE_SHARE = 0.2  # of the mirror's disk, which files of stages give up for others
IN_USE_SECONDS = 600.0
WITH_FILES = ("stages", "data", "models", "tokenizers", "work")
LASTING = ("data", "models", "tokenizers")  # named by their content


class Bucket:
    """What `Disk` is for a directory. `root`: the mirror, laid out as a store on a disk is."""

    is_shared, remedy = False, "fetched again"

    def __init__(self, objects: Objects):
        self._objects, self.place = objects, objects.uri
        base = Path(os.environ.get(CACHE) or "~/.cache/ee_ray").expanduser().resolve()
        self.root = base / hashlib.sha256(objects.identity.encode()).hexdigest()[:16]
        self._indices: dict[tuple[str, str], dict[str, Any]] = {}

    def check(self, marker: str, content: bytes) -> None:
        """Make it a store, if it is none yet.

        Raises:
            UserError: its server ignores conditions, on which everything here rests.
        """
        if not self._objects.obeys_conditions(marker, content):
            raise UserError(f"storage {self.place}: its server ignores conditional writes (If-None-Match), by which runs agree who trains and who publishes a stage: use AWS S3 or another server that has them")  # fmt: skip

    # What there is

    def entries(self, folder: str, start: str = "") -> list[Entry]:
        """What lies directly in a folder under a name that starts with `start`, and how large it is with its files."""
        items: dict[str, list[Entry]] = {}
        for at in (f"{folder}/{start}", *([f"files/{folder}/{start}"] if folder in WITH_FILES else [])):
            for entry in self._objects.listed(at):
                items.setdefault((start + entry.name).split("/")[0].removesuffix(".json"), []).append(entry)
        return [
            Entry(name, max(e.changed for e in parts), min(e.age for e in parts), sum(e.bytes for e in parts))
            for name, parts in sorted(items.items())
        ]

    def names(self, folder: str) -> list[str]:
        """What lies directly in a folder."""
        return [entry.name for entry in self.entries(folder)]

    def total(self) -> int:
        """Bytes of all that the store holds."""
        return sum(entry.bytes for entry in self._objects.listed(""))

    def mark(self, name: str) -> Any:
        """What changes when an object, or what a folder holds, does."""
        return [[entry.name, entry.changed] for entry in self._objects.listed(name)]

    def where(self, kind: str, name: str) -> str:
        """What people look for to find an item."""
        return self._objects.where(f"{kind}/{name}")

    def remove(self, kind: str, name: str) -> None:
        """Delete an item: first what says that it is there, then its files."""
        heads = [entry.name for entry in self._objects.listed(f"{kind}/{name}")]
        self._objects.delete(f"{kind}/{name}{head}" for head in heads if head in ("", ".json") or head.startswith("/"))
        files = f"files/{kind}/{name}/"
        self._objects.delete(f"{files}{entry.name}" for entry in self._objects.listed(files))
        self._indices.pop((kind, name), None)
        shutil.rmtree(self.root / kind / name, ignore_errors=True)

    def published(self) -> list[str]:
        """Keys of the published stages, whose records are all here afterwards; what was removed from the bucket goes."""
        there = {entry.name.removesuffix(".json"): entry for entry in self._objects.listed("stages/")}
        for folder in (self.root / "stages").glob("[!.]*"):
            with contextlib.suppress(FileNotFoundError):
                if folder.name not in there and time.time() - folder.stat().st_mtime > MOVING_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)
        changed = {key: entry.changed for key, entry in there.items() if _changed(self._record(key)) != entry.changed}
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(self._fetch_record, changed.keys(), changed.values()))
        return sorted(there)

    def _record(self, key: str) -> Path:
        return self.root / "stages" / key / RECORD

    def _fetch_record(self, key: str, changed: float | None = None) -> None:
        """Bring a record, with the time at which it was written in the bucket, if that is known."""
        path = self._record(key)
        content = self._objects.read(f"stages/{key}.json")
        if content is None:
            return  # removed meanwhile
        if path.exists() and path.read_bytes() != content:
            shutil.rmtree(path.parent, ignore_errors=True)  # it was removed, and trained again: its files are others
        draft = path.with_name(f".{RECORD}.{uuid.uuid4().hex[:8]}.tmp")
        draft.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(content)
        if changed is not None:
            os.utime(draft, (changed, changed))
        os.replace(draft, path)

    def record(self, key: str) -> bytes | None:
        path = self._record(key)
        if not path.exists():
            self._fetch_record(key)
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None

    def damage(self, kind: str, name: str, digests: Mapping[str, str]) -> list[str]:
        """What is wrong with files of an item in the bucket, whose hashes should be these: missing or changed."""
        with ThreadPoolExecutor(THREADS) as pool:
            objects = [_file(kind, name, file, digest) for file, digest in digests.items()]
            found = zip(digests.items(), pool.map(self._objects.sha256, objects), strict=True)
            return [
                f"{file} {'is missing' if has is None else 'does not match its hash'}"
                for (file, digest), has in found
                if has != digest
            ]

    # Into the mirror

    def _index(self, kind: str, name: str) -> dict[str, Any] | None:
        """What says which files an item has; None if the bucket does not have it."""
        if (kind, name) in self._indices:
            return self._indices[kind, name]
        content = self.record(name) if kind == "stages" else self._objects.read(f"{kind}/{name}.json")
        index: dict[str, Any] | None = json.loads(content) if content is not None else None
        if index and kind in LASTING:
            self._indices[kind, name] = index
        return index

    def fetch(self, kind: str, name: str, files: Collection[str] | None = None) -> None:
        """Bring an item, or some of its files, if the bucket has it; what is here already is not asked for.

        Raises:
            RuntimeError: a file is not what the item says.
        """
        folder, index = self.root / kind / name, self._index(kind, name)
        if index is None:
            if (folder / FETCHED).exists():  # it was removed from the bucket, and may be here in part
                shutil.rmtree(folder, ignore_errors=True)
            return
        wanted = {file: digest for file, digest in index["sha256"].items() if files is None or file in files}
        if all((folder / file).exists() for file in wanted):
            for file in wanted:
                os.utime(folder / file)  # used
            return
        self._make_room()
        with self._alone(f"{kind}-{name.replace('/', '-')}"), ThreadPoolExecutor(THREADS) as pool:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / FETCHED).touch()
            list(pool.map(lambda file: self._fetch(kind, name, file, wanted[file]), wanted))

    def _fetch(self, kind: str, name: str, file: str, digest: str) -> None:
        path, where = self.root / kind / name / file, _file(kind, name, file, digest)
        if not is_plain(file):
            raise RuntimeError(f"{self._objects.where(f'{kind}/{name}.json')}: {file} leads out of the store")
        if path.exists():
            return  # another process was first
        try:
            draft = path.with_name(f".{file}.fetched")  # one process at a time
            self._objects.download(where, draft)
            if sha256(draft) != digest:
                draft.unlink()
                raise FileNotFoundError
            os.replace(draft, path)
        except FileNotFoundError:
            raise RuntimeError(f"{self._objects.where(where)}: is missing or does not match its hash: remove {self._objects.where(f'{kind}/{name}.json')}, and it is made again") from None  # fmt: skip

    def _make_room(self) -> None:
        """Where the disk gets full, remove files of stages from the mirror, the longest unused first."""
        self.root.mkdir(parents=True, exist_ok=True)
        disk, now = shutil.disk_usage(self.root), time.time()
        short = FREE_SHARE * disk.total - disk.free
        if short <= 0:
            return
        found = [(path.stat(), path) for path in (self.root / "stages").glob("[!.]*/[!.]*") if path.name != RECORD]
        for facts, path in sorted(found, key=lambda pair: pair[0].st_mtime):
            if short > 0 and now - facts.st_mtime > IN_USE_SECONDS:
                path.unlink(missing_ok=True)
                short -= facts.st_size

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """No other process of this host does the same meanwhile; one that is killed lets go."""
        path = self.root / "locks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    # Out of the mirror

    def share(self, kind: str, name: str, folder: Path, index: Mapping[str, Any]) -> bool:
        """Upload the files of a folder that the index names, and then the index; False if another was first."""
        with ThreadPoolExecutor(THREADS) as pool:
            objects = {file: _file(kind, name, file, digest) for file, digest in index["sha256"].items()}
            list(pool.map(lambda file: self._objects.upload(folder / file, objects[file]), objects))
        if self._objects.create(f"{kind}/{name}.json", json.dumps(index, indent=1).encode()):
            self._make_room()
            if folder != self.root / kind / name:
                shutil.rmtree(self.root / kind / name, ignore_errors=True)  # of one that was removed since
            return True
        theirs = (self._index(kind, name) or {}).get("sha256", {})
        self._objects.delete(objects[file] for file, digest in index["sha256"].items() if theirs.get(file) != digest)
        return False

    def share_made(self, kind: str, name: str) -> None:
        """Publish what was made in its place in the mirror, unless it is published."""
        folder = self.root / kind / name
        if self._index(kind, name) is None and folder.is_dir():
            files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
            self.share(kind, name, folder, {"schema": 1, "sha256": {path.name: sha256(path) for path in files}})

    def fetch_states(self, key: str) -> None:
        """Make the mirror's states of a stage those of the bucket, as far as these are whole."""
        folder = self.root / "work" / key
        there = [entry.name.removesuffix(".json") for entry in self._objects.listed(f"work/{key}/")]
        for state in folder.glob("[0-9]*"):
            if state.name not in there:
                shutil.rmtree(state, ignore_errors=True)
        for name in there[-STATES_KEPT:]:
            with contextlib.suppress(RuntimeError):  # a damaged one is not used
                self.fetch("work", f"{key}/{name}")

    def share_states(self, key: str) -> None:
        """Make the bucket's states of a stage those of the mirror."""
        here = [state.name for state in sorted((self.root / "work" / key).glob("[0-9]*"))]
        there = [entry.name.removesuffix(".json") for entry in self._objects.listed(f"work/{key}/")]
        for name in here:
            if name not in there:
                self.share_made("work", f"{key}/{name}")
        for name in there:
            if name not in here:
                self.remove("work", f"{key}/{name}")

    def fetch_file(self, name: str) -> None:
        """Bring one file that `share_file` uploaded, if there is one."""
        with contextlib.suppress(FileNotFoundError):
            self._objects.download(name, self.root / name)

    def share_file(self, name: str) -> None:
        """Upload one file as it is now."""
        self._objects.upload(self.root / name, name)


def _file(kind: str, name: str, file: str, digest: str) -> str:
    return f"files/{kind}/{name}/{file}.{digest}"


def _changed(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None
