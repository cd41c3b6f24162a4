"""The store: published stages, prepared data, failures, sweeps. The only truth, and the owner of every path.

    store.json                    {"schema": 1}
    data/<fingerprint>/           prepared corpora
    models/<fingerprint>/         checkpoints that sweeps start from
    stages/<key>/                 weights.safetensors, metrics.parquet, record.json; optimizer.safetensors where another
                                  stage goes on from it
    work/<key>/                   states of a stage that is being trained; gone once it is published
    tokenizers/<fingerprint>/     tokenizer.json, encoding.json
    digests.json                  hashes of files that were read
    leases/                       who trains which stage at the moment (lease.py)
    failures/<key>.json           evidence of a stage that failed
    sweeps/<name>/                the sweep itself, what its search notes, a journal of stages, the Optuna study

A stage is drafted beside its place and published by one rename of the whole folder, with record.json written last: a
folder under stages/ is whole or not there. Of two writers of one key the first wins and the other's draft goes.

A store in a bucket (s3://BUCKET/PREFIX) holds the same (bucket.py says how), and `root` is its mirror on this host: a path
that the store gives is one in the mirror, after what it should hold has been fetched.
"""

import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ee_ray.disk import RECORD, Disk, Entry, Files, is_plain, sha256
from ee_ray.errors import UserError
from ee_ray.identity import encode

if TYPE_CHECKING:
    from ee_ray.bucket import Bucket
    from ee_ray.objects import Objects

SCHEMA = 1
WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
METRICS = "metrics.parquet"
MARKER = "store.json"
JOURNAL = "journal.jsonl"
ABANDONED_SECONDS = 24 * 3600  # a draft is written in seconds
GIVEN_UP_SECONDS = 14 * 24 * 3600  # a corpus half packed may be worth hours, and somebody is coming back to it


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


def _open(place: str) -> "tuple[Files | Objects, Disk | Bucket]":
    """Small files and items of a store.

    Raises:
        UserError: a place that no store can be in.
    """
    place = place.removeprefix("file://")
    scheme, separator, _ = place.partition("://")
    if not separator:
        files = Files(Path(place).resolve())
        return files, Disk(files)
    if scheme != "s3":
        raise UserError(f"storage: a store is a directory or in a bucket, s3://BUCKET/PREFIX, got the scheme {scheme}")  # fmt: skip
    try:
        objects = import_module("ee_ray.objects").Objects(place)  # boto3 takes a quarter of a second to import
    except ModuleNotFoundError as error:
        raise UserError(f"storage {place}: buckets need {error.name}, which is not installed: pip install 'ee-ray[s3]'") from None  # fmt: skip
    return objects, import_module("ee_ray.bucket").Bucket(objects)


class Store:
    """A store at `place`: a directory on a disk that every worker sees, or s3://BUCKET/PREFIX.

    Raises:
        UserError: the place belongs to another schema, or cannot be read.
    """

    def __init__(self, place: Path | str):
        self._files, self.items = _open(str(place))
        self.root: Path = self.items.root
        self.place: str = self.items.place
        try:
            content = self._files.read(MARKER)
            found = json.loads(content) if content is not None else None
        except (OSError, ValueError) as error:
            raise UserError(f"storage {self.place}: {MARKER} cannot be read: {error}") from None
        if found is not None and found.get("schema") != SCHEMA:
            raise UserError(f"storage {self.place}: has schema {found.get('schema')!r}, this version reads {SCHEMA}: use another place or the version that wrote it")  # fmt: skip
        self.exists = found is not None

    def __reduce__(self) -> tuple[type["Store"], tuple[str]]:
        return Store, (self.place,)  # connections stay here

    def create(self) -> None:
        """Make the place a store, if it is not one yet; clear drafts that killed writers left long ago."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self.items.check(MARKER, _json({"schema": SCHEMA}))
            now = Files(self.root).now()
            for draft in (self.root / "stages").glob(".*.tmp"):
                if now - draft.stat().st_mtime > ABANDONED_SECONDS:
                    shutil.rmtree(draft, ignore_errors=True)
            for draft in (self.root / "data").glob("*.partial"):
                if now - draft.stat().st_mtime > GIVEN_UP_SECONDS:
                    shutil.rmtree(draft, ignore_errors=True)
        except OSError as error:
            raise UserError(f"storage {self.root}: cannot be written: {error.strerror}") from None

    def clock(self) -> float:
        """The time by the clock that stamps what the store holds, seconds since the epoch: its server's, if it has one."""
        return self._files.now()

    def _entry(self, kind: str, name: str) -> Path:
        """The place of `name` among its kind: right there, not elsewhere by way of `..`, another root, or a link.

        Raises:
            UserError: it would be elsewhere.
        """
        path = self.root / kind / name
        if not is_plain(name) or path.is_symlink():
            raise UserError(f"storage {self.place}: {kind}/{name} would lead out of the store: it must be a plain name, and no link")  # fmt: skip
        return path

    def _fetched(self, kind: str, name: str, *files: str) -> Path:
        """The place of an item, after it was brought there: all of it, or these files."""
        path = self._entry(kind, name)
        self.items.fetch(kind, name, files or None)
        return path

    def data(self, fingerprint: str) -> Path:
        """A prepared corpus, as far as its manifest tells of it."""
        return self._fetched("data", fingerprint, "manifest.json")

    def corpus(self, fingerprint: str) -> Path:
        """A prepared corpus, all of it."""
        return self._fetched("data", fingerprint)

    def model(self, fingerprint: str) -> Path:
        return self._fetched("models", fingerprint)

    def tokenizer(self, fingerprint: str) -> Path:
        return self._fetched("tokenizers", fingerprint)

    def publish_made(self, place: Path) -> None:
        """Share what was made in the place that `data`, `model` or `tokenizer` gave."""
        self.items.share_made(place.parent.name, place.name)

    def work(self, key: str) -> Path:
        return self._entry("work", key)

    def states(self, key: str) -> Path:
        """The folder of a stage's states, after those were brought there that the store has."""
        path = self.work(key)
        self.items.fetch_states(key)
        return path

    def share_states(self, key: str) -> None:
        """Let other hosts have the states that are in the stage's folder now."""
        self.items.share_states(key)

    @property
    def digests(self) -> Path:
        return self.root / "digests.json"

    def stage(self, key: str) -> Path:
        return self._entry("stages", key)

    def file(self, key: str, name: str) -> Path:
        """A file of a published stage."""
        return self._fetched("stages", key, name) / name

    def weights(self, key: str) -> Path:
        return self.file(key, WEIGHTS)

    def metrics(self, key: str) -> Path:
        return self.file(key, METRICS)

    def sweep(self, name: str) -> Path:
        return self._entry("sweeps", name)

    def published(self) -> list[str]:
        """Keys of the published stages."""
        return self.items.published()

    def record(self, key: str) -> dict[str, Any] | None:
        """The record of a published stage, or None if there is none."""
        self._entry("stages", key)
        content = self.items.record(key)
        if content is None:
            return None
        record: dict[str, Any] = json.loads(content)
        if record.get("schema") != SCHEMA:
            raise UserError(f"stage {key}: its record has schema {record.get('schema')!r}, this version reads {SCHEMA}")
        return record

    def named(self, start: str) -> dict[str, Any]:
        """The record of the one published stage whose key begins with `start`.

        Raises:
            UserError: none does, or several.
        """
        found = [key for key in self.published() if key.startswith(start)]
        record = self.record(found[0]) if len(found) == 1 else None
        if record is None:
            several = f": {', '.join(found[:4])}{', ...' if len(found) > 4 else ''}" if found else ""
            raise UserError(f"{start}: {len(found) or 'no'} published stages of {self.place} have a key that starts so{several}")  # fmt: skip
        return record

    def find(self, key: str, payload: Mapping[str, Any]) -> dict[str, Any] | None:
        """The record of a published stage, after comparing its whole payload with the one that is wanted.

        Raises:
            RuntimeError: the same key with another payload: a hash collision or a tampered store.
        """
        record = self.record(key)
        if record is not None and record["payload"] != encode(payload):
            raise RuntimeError(f"stage {key} was published with another payload: run `ee-ray verify`")
        return record

    @contextmanager
    def draft(self, key: str) -> Iterator[Path]:
        """A private folder for a stage's files; removed unless `publish` moved it."""
        folder = self._entry("stages", f".{key}.{uuid.uuid4().hex[:8]}.tmp")
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, key: str, draft: Path, record: dict[str, Any]) -> bool:
        """Hash the draft's files, write its record last, and move it into place; False if another was first."""
        files = sorted(draft.iterdir())
        about = {
            "bytes": sum(path.stat().st_size for path in files),
            "sha256": {path.name: sha256(path) for path in files},
        }
        record = {"schema": SCHEMA, "key": key, **record, **about}
        record["payload"] = encode(record["payload"])
        Files(draft).write(RECORD, _json(record))
        if not self.items.share("stages", key, draft, record):
            return False
        try:
            os.rename(draft, self.stage(key))
        except OSError:
            if not (self.stage(key) / RECORD).exists():
                raise
            return False
        self._files.delete([self._name("failures", f"{key}.json")])
        self.items.remove("work", key)
        return True

    def _name(self, kind: str, name: str) -> str:
        self._entry(kind, name)
        return f"{kind}/{name}"

    def fail(self, key: str, evidence: dict[str, Any]) -> None:
        """Keep the evidence of a stage that failed. `evidence["diverged"]` says whether trying again is pointless."""
        self._files.write(self._name("failures", f"{key}.json"), _json({"schema": SCHEMA, "key": key, **evidence}))

    def failure(self, key: str) -> dict[str, Any] | None:
        content = self._files.read(self._name("failures", f"{key}.json"))
        evidence: dict[str, Any] | None = json.loads(content) if content is not None else None
        return evidence

    def failed(self) -> set[str]:
        """Keys of the stages that there is evidence of."""
        return {name.removesuffix(".json") for name in self.items.names("failures")}

    def logs(self, name: str) -> Path:
        """What runs of a sweep said, a file for each."""
        return self.sweep(name) / "logs"

    def journal(self, sweep: str, **event: Any) -> None:
        """Add a line to a sweep's journal: who began or published which stage, where, and when by that host's clock."""
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = json.dumps({"at": at, "host": socket.gethostname(), "pid": os.getpid(), **event})
        self._files.append(f"{self._name('sweeps', sweep)}/{JOURNAL}", line)

    def journalled(self, sweep: str) -> list[dict[str, Any]]:
        """The lines of a sweep's journal, without those that a full disk cut off."""
        found = []
        for line in self._files.lines(f"{self._name('sweeps', sweep)}/{JOURNAL}"):
            with suppress(ValueError):
                found.append(json.loads(line))
        return found

    def sweeps(self) -> list[str]:
        """Names of the sweeps that have left something here."""
        return self.items.names("sweeps")

    def write_sweep(self, name: str, file: str, value: Any) -> None:
        self._files.write(f"{self._name('sweeps', name)}/{file}", _json(value))

    def read_sweep(self, name: str, file: str) -> Any:
        """What `write_sweep` wrote, or None."""
        content = self._files.read(f"{self._name('sweeps', name)}/{file}")
        return json.loads(content) if content is not None else None

    def clear_sweep(self, name: str, file: str) -> None:
        self._files.delete([f"{self._name('sweeps', name)}/{file}"])

    def kept(self, path: Path) -> None:
        """Let other hosts have a file in a sweep's folder as it is now."""
        self.items.share_file(path.relative_to(self.root).as_posix())

    def brought(self, path: Path) -> Path:
        """The place of a file in a sweep's folder, after what the store has of it was brought there."""
        self.items.fetch_file(path.relative_to(self.root).as_posix())
        return path

    def version(self, sweep: str, file: str) -> list[Any]:
        """Changes when a stage is published or fails, or a sweep's `file` does."""
        return [self.items.mark(name) for name in ("stages", "failures", f"{self._name('sweeps', sweep)}/{file}")]

    def claims(self, key: str = "") -> list[Entry]:
        """Claims to a stage, or to all; `age` since their last sign of life, or since the store could take one again."""
        found, steady = self.items.entries("leases", f"{key}." if key else ""), self._files.steady()
        return [replace(entry, age=min(entry.age, steady)) for entry in found]

    def read_claim(self, name: str) -> bytes | None:
        return self._files.read(f"leases/{name}")

    def create_claim(self, name: str, content: bytes) -> bool:
        """Of many who create the same claim one gets True."""
        return self._files.create(f"leases/{name}", content)

    def renew_claim(self, name: str) -> None:
        """Raises FileNotFoundError or FileExistsError: it is no longer there, or another's."""
        self._files.renew(f"leases/{name}")

    def delete_claims(self, names: Iterable[str]) -> None:
        self._files.delete(f"leases/{name}" for name in names)

    def weights_checked(self, key: str) -> Path:
        """The weights of a published stage, once they are found to be what was published.

        Raises:
            RuntimeError: they are not.
        """
        record = self.record(key)
        weights = self.weights(key)
        if record is None or sha256(weights) != record["sha256"][WEIGHTS]:
            raise RuntimeError(f"stage {key}: {WEIGHTS} does not match its hash: remove {self.stage(key)}, and it is {self.items.remedy}")  # fmt: skip
        return weights

    def damage(self, key: str) -> list[str]:
        """What is wrong with a published stage: files missing or changed, or a key that its payload does not give."""
        record = self.record(key)
        if record is None:
            return [f"stage {key}: is not published"]
        problems = []
        text = json.dumps(record["payload"], sort_keys=True, separators=(",", ":"))
        if hashlib.sha256(text.encode()).hexdigest()[:16] != key:
            problems.append(f"stage {key}: its payload gives another key")
        return problems + [f"stage {key}: {problem}" for problem in self.items.damage("stages", key, record["sha256"])]

    def data_damage(self, fingerprint: str, digests: Mapping[str, str]) -> list[str]:
        """Files of a prepared corpus that are missing, or do not have these hashes."""
        return self.items.damage("data", fingerprint, digests)
