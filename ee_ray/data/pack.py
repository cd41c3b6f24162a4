"""Documents to windows: split by document hash, encode, end each document, cut; written once under a fingerprint.

A window is `sequence_length` predictions: it is read as sequence_length + 1 tokens, the last of which is also the
first of the next window. So a budget of w windows trains exactly w * sequence_length tokens.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ee_ray.data import sources
from ee_ray.data.order import Indices
from ee_ray.errors import UserError
from ee_ray.spec.data import Source
from ee_ray.spec.sweep import SweepSpec

PACK_VERSION = 1
VOCAB_SIZE = 256  # the bytes tokenizer; byte 0 does not occur in text and ends each document
END = 0


@dataclass(frozen=True)
class Packed:
    """One prepared corpus: two memory-mapped token streams and how many whole windows each holds."""

    folder: Path
    sequence_length: int
    train_windows: int
    heldout_windows: int
    documents: int

    def gather(self, stream: str, indices: Indices) -> NDArray[np.int64]:
        """Windows of `stream` ("train" or "heldout"), shape (len(indices), sequence_length + 1)."""
        tokens = np.memmap(self.folder / f"{stream}.bin", np.uint8, "r")
        offsets = np.arange(self.sequence_length + 1)
        found: NDArray[np.int64] = tokens[indices[:, None] * self.sequence_length + offsets].astype(np.int64)
        return found

    @property
    def vocab_size(self) -> int:
        return VOCAB_SIZE

    def counted(self, stream: str, indices: Indices) -> NDArray[np.int64]:
        """Tokens of each window that carry loss."""
        return np.full(len(indices), self.sequence_length)

    def validation(self, count: int, tested: int) -> NDArray[np.int64]:
        """`count` held-out windows, evenly spaced over those that `heldout(tested)` leaves."""
        tests = np.arange(tested) * self.heldout_windows // tested
        left = np.setdiff1d(np.arange(self.heldout_windows), tests)
        return self.gather("heldout", left[np.arange(count) * len(left) // count])

    def heldout(self, count: int) -> NDArray[np.int64]:
        """`count` held-out windows, evenly spaced over the held-out stream: the fixed set of every evaluation."""
        return self.gather("heldout", np.arange(count) * self.heldout_windows // count)


def identities(spec: SweepSpec, folder: Path) -> dict[str, dict[str, Any]]:
    """For each role, everything that its packed windows depend on.

    Raises:
        UserError: with every source that is missing, empty or of an unknown kind.
    """
    problems = [
        f"data.{role}.source: {problem}"
        for role, source in _roles(spec).items()
        if (problem := sources.check(source, folder))
    ]
    if problems:
        raise UserError(problems)
    return {
        role: {
            "source": sources.identity(source, folder),
            "tokenizer": spec.tokenizer,
            "sequence_length": spec.sequence_length,
            "heldout_fraction": spec.data.heldout_fraction,
            "version": PACK_VERSION,
        }
        for role, source in _roles(spec).items()
    }


def _roles(spec: SweepSpec) -> dict[str, Source]:
    return {"pre": spec.data.pre, "post": spec.data.post, "ft": spec.data.ft}


def open_packed(folder: Path) -> Packed | None:
    """The prepared corpus in `folder`, or None if it is not there."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except FileNotFoundError:
        return None
    counts = {name: manifest[name] for name in ("sequence_length", "train_windows", "heldout_windows", "documents")}
    return Packed(folder, **counts)


def _is_heldout(text: str, fraction: float) -> bool:
    """By the document's own hash, so that copies of one document never stand on both sides."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") < fraction * 2**64


def pack(
    source: Source, base: Path, identity: Mapping[str, Any], folder: Path, progress: Callable[[int], None]
) -> Packed:
    """Read, split, encode and write one corpus; publish it in `folder` by one rename. `progress` gets bytes done."""
    draft = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    draft.mkdir(parents=True)
    tokens, count = {"train": 0, "heldout": 0}, 0
    try:
        with (draft / "train.bin").open("wb") as train, (draft / "heldout.bin").open("wb") as heldout:
            files = {"train": train, "heldout": heldout}
            for text in sources.read(source, base):
                stream = "heldout" if _is_heldout(text, identity["heldout_fraction"]) else "train"
                encoded = text.encode() + bytes([END])
                files[stream].write(encoded)
                tokens[stream] += len(encoded)
                count += 1
                progress(len(encoded))
        length = identity["sequence_length"]
        windows = {stream: max(0, n - 1) // length for stream, n in tokens.items()}
        manifest = {
            "schema": 1,
            "identity": identity,
            "sequence_length": length,
            "documents": count,
            "train_windows": windows["train"],
            "heldout_windows": windows["heldout"],
            "sha256": {stream: file_sha256(draft / f"{stream}.bin") for stream in tokens},
        }
        (draft / "manifest.json").write_text(json.dumps(manifest, indent=1))
        os.rename(draft, folder)
    except OSError:
        if not folder.exists():  # else another process has published the same windows first
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    packed = open_packed(folder)
    assert packed is not None
    return packed


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shortfalls(
    spec: SweepSpec, packed: Mapping[str, Packed], budgets: Mapping[str, int]
) -> tuple[list[str], list[str]]:
    """Errors and warnings about pools that are too small for what the sweep asks of them."""
    errors: list[str] = []
    warnings: list[str] = []
    for role, source in _roles(spec).items():
        pool = packed[role]
        if pool.train_windows == 0:
            errors.append(f"data.{role}: holds less than one window of {spec.sequence_length} tokens for training")
        elif budgets[role] > pool.train_windows:
            epochs = budgets[role] / pool.train_windows
            line = (
                f"data.{role}: the budget of {budgets[role]} windows is beyond the pool of {pool.train_windows}: "
                f"{epochs:.2f} epochs"
            )
            (errors if source.strict else warnings).append(line + (" and strict is set" if source.strict else ""))
        if pool.heldout_windows < spec.data.heldout_windows:
            errors.append(
                f"data.{role}: the held-out split has {pool.heldout_windows} windows, data.heldout_windows asks for "
                f"{spec.data.heldout_windows}: lower it, raise data.heldout_fraction, or bring more text"
            )
    return errors, warnings
