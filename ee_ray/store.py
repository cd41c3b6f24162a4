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
"""

import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

from ee_ray.errors import UserError
from ee_ray.identity import encode

SCHEMA = 1
WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
METRICS = "metrics.parquet"
RECORD = "record.json"
JOURNAL = "journal.jsonl"
ABANDONED_SECONDS = 24 * 3600  # a draft is written in seconds
GIVEN_UP_SECONDS = 14 * 24 * 3600  # a corpus half packed may be worth hours, and somebody is coming back to it


def _write_json(path: Path, value: Any) -> None:
    """Write whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with draft.open("w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_plain(name: str) -> bool:
    return PurePath(name).name == name and name not in ("", "..")


class Store:
    """One directory on a disk that every worker sees.

    Raises:
        UserError: the directory belongs to another schema, or cannot be made.
    """

    def __init__(self, root: Path | str):
        text = str(root).removeprefix("file://")
        if "://" in text:
            raise UserError(f"storage: only directories are supported, got the scheme {text.split(':')[0]}")
        self.root = Path(text).resolve()
        marker = self.root / "store.json"
        try:
            found = json.loads(marker.read_text())
        except FileNotFoundError:
            found = None
        except (OSError, ValueError) as error:
            raise UserError(f"storage {self.root}: store.json cannot be read: {error}") from None
        if found is not None and found.get("schema") != SCHEMA:
            raise UserError(f"storage {self.root}: has schema {found.get('schema')!r}, this version reads {SCHEMA}: use another directory or the version that wrote it")  # fmt: skip

    def create(self) -> None:
        """Make the directory a store, if it is not one yet; clear drafts that killed writers left long ago."""
        try:
            if not (self.root / "store.json").exists():
                _write_json(self.root / "store.json", {"schema": SCHEMA})
            now = self.clock()
            for draft in (self.root / "stages").glob(".*.tmp"):
                if now - draft.stat().st_mtime > ABANDONED_SECONDS:
                    shutil.rmtree(draft, ignore_errors=True)
            for draft in (self.root / "data").glob("*.partial"):
                if now - draft.stat().st_mtime > GIVEN_UP_SECONDS:
                    shutil.rmtree(draft, ignore_errors=True)
        except OSError as error:
            raise UserError(f"storage {self.root}: cannot be written: {error.strerror}") from None

    def clock(self) -> float:
        """The time by the clock that stamps the store's files, seconds since the epoch: on a shared disk its server's."""
        with tempfile.NamedTemporaryFile(dir=self.root, prefix=".clock.") as file:
            return os.fstat(file.fileno()).st_mtime

    def _entry(self, kind: str, name: str) -> Path:
        """The place of `name` among its kind: right there, not elsewhere by way of `..`, another root, or a link.

        Raises:
            UserError: it would be elsewhere.
        """
        path = self.root / kind / name
        if not _is_plain(name) or path.is_symlink():
            raise UserError(f"storage {self.root}: {kind}/{name} would lead out of the store: it must be a plain name, and no link")  # fmt: skip
        return path

    def data(self, fingerprint: str) -> Path:
        return self._entry("data", fingerprint)

    def model(self, fingerprint: str) -> Path:
        return self._entry("models", fingerprint)

    def work(self, key: str) -> Path:
        return self._entry("work", key)

    def tokenizer(self, fingerprint: str) -> Path:
        return self._entry("tokenizers", fingerprint)

    @property
    def leases(self) -> Path:
        return self.root / "leases"

    @property
    def digests(self) -> Path:
        return self.root / "digests.json"

    def stage(self, key: str) -> Path:
        return self._entry("stages", key)

    def weights(self, key: str) -> Path:
        return self.stage(key) / WEIGHTS

    def metrics(self, key: str) -> Path:
        return self.stage(key) / METRICS

    def sweep(self, name: str) -> Path:
        return self._entry("sweeps", name)

    def published(self) -> list[str]:
        """Keys of the published stages."""
        return sorted(path.parent.name for path in (self.root / "stages").glob(f"[!.]*/{RECORD}"))

    def record(self, key: str) -> dict[str, Any] | None:
        """The record of a published stage, or None if there is none."""
        try:
            record: dict[str, Any] = json.loads((self.stage(key) / RECORD).read_text())
        except FileNotFoundError:
            return None
        if record.get("schema") != SCHEMA:
            raise UserError(f"stage {key}: its record has schema {record.get('schema')!r}, this version reads {SCHEMA}")
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
        hashes = {path.name: _sha256(path) for path in sorted(draft.iterdir())}
        record = {"schema": SCHEMA, "key": key, **record, "sha256": hashes}
        record["payload"] = encode(record["payload"])
        _write_json(draft / RECORD, record)
        try:
            os.rename(draft, self.stage(key))
        except OSError:
            if not (self.stage(key) / RECORD).exists():
                raise
            return False
        self._entry("failures", f"{key}.json").unlink(missing_ok=True)
        shutil.rmtree(self.work(key), ignore_errors=True)
        return True

    def fail(self, key: str, evidence: dict[str, Any]) -> None:
        """Keep the evidence of a stage that failed. `evidence["diverged"]` says whether trying again is pointless."""
        _write_json(self._entry("failures", f"{key}.json"), {"schema": SCHEMA, "key": key, **evidence})

    def failure(self, key: str) -> dict[str, Any] | None:
        try:
            evidence: dict[str, Any] = json.loads(self._entry("failures", f"{key}.json").read_text())
        except FileNotFoundError:
            return None
        return evidence

    def logs(self, name: str) -> Path:
        """What runs of a sweep said, a file for each."""
        return self.sweep(name) / "logs"

    def journal(self, sweep: str, **event: Any) -> None:
        """Add a line to a sweep's journal: who began or published which stage, where, and when by that host's clock."""
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = json.dumps({"at": at, "host": socket.gethostname(), "pid": os.getpid(), **event}) + "\n"
        self.sweep(sweep).mkdir(parents=True, exist_ok=True)
        with (self.sweep(sweep) / JOURNAL).open("a") as file:
            file.write(line)  # short, and so by one call: lines of several writers do not mix

    def journalled(self, sweep: str) -> list[dict[str, Any]]:
        """The lines of a sweep's journal."""
        path = self.sweep(sweep) / JOURNAL
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def write_sweep(self, name: str, file: str, value: Any) -> None:
        _write_json(self.sweep(name) / file, value)

    def read_sweep(self, name: str, file: str) -> Any:
        """What `write_sweep` wrote, or None."""
        path = self.sweep(name) / file
        return json.loads(path.read_text()) if path.exists() else None

    def weights_checked(self, key: str) -> Path:
        """The weights of a published stage, once they are found to be what was published.

        Raises:
            RuntimeError: they are not.
        """
        record = self.record(key)
        if record is None or _sha256(self.weights(key)) != record["sha256"][WEIGHTS]:
            raise RuntimeError(f"stage {key}: {WEIGHTS} does not match its hash: remove {self.stage(key)}, and it is trained again")  # fmt: skip
        return self.weights(key)

    def damage(self, key: str) -> list[str]:
        """What is wrong with a published stage: files missing or changed, or a key that its payload does not give."""
        record = self.record(key)
        if record is None:
            return [f"stage {key}: is not published"]
        problems = []
        text = json.dumps(record["payload"], sort_keys=True, separators=(",", ":"))
        if hashlib.sha256(text.encode()).hexdigest()[:16] != key:
            problems.append(f"stage {key}: its payload gives another key")
        for name, digest in record["sha256"].items():
            path = self.stage(key) / name
            if not _is_plain(name) or path.is_symlink():
                problems.append(f"stage {key}: {name} leads out of the store")
            elif not path.exists():
                problems.append(f"stage {key}: {name} is missing")
            elif _sha256(path) != digest:
                problems.append(f"stage {key}: {name} does not match its hash")
        return problems
