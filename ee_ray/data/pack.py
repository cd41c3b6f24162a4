"""A prepared corpus: two streams of tokens in shards, read as windows.

A window is `sequence_length` predictions: it is read as sequence_length + 1 tokens, the last of which is also the
first of the next window. So a budget of w windows trains exactly w * sequence_length tokens. Shards are cuts of one
stream: windows run across them.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ee_ray.data import sources
from ee_ray.data.digests import sha256
from ee_ray.data.files import File
from ee_ray.data.order import Indices
from ee_ray.data.shards import STREAMS, shard_file
from ee_ray.data.tokens import Tokens
from ee_ray.errors import UserError
from ee_ray.spec.data import ROLES, Source
from ee_ray.spec.sweep import SweepSpec

PACK_VERSION = 2
SCHEMA = 2
OPEN_SHARDS = 8192  # memory-mapped at once by one process; Linux allows 65,530 maps


@lru_cache(OPEN_SHARDS)
def _shard(path: str, dtype: str) -> Tokens:
    # A plain view: slicing a memmap itself costs ten times as much.
    return np.memmap(path, dtype, "r").view(np.ndarray)


@dataclass(frozen=True)
class Packed:
    """One prepared corpus. `partial`: some of its tokens are only read, and carry no loss. `train_shards` and `heldout_shards` hold
    the number of tokens in each shard; a stored token is as data/tokens.py says."""

    folder: Path
    sequence_length: int
    train_windows: int
    heldout_windows: int
    documents: int
    vocab_size: int
    dtype: str
    partial: bool
    train_shards: tuple[int, ...]
    heldout_shards: tuple[int, ...]

    @cached_property
    def _starts(self) -> dict[str, Indices]:
        """Where each shard starts in its stream, and where the stream ends."""
        counts = {"train": self.train_shards, "heldout": self.heldout_shards}
        return {stream: np.concatenate([[0], np.cumsum(counts[stream], dtype=np.int64)]) for stream in STREAMS}

    def _piece(self, stream: str, start: int, stop: int) -> Tokens:
        """Stored tokens [start, stop) of a stream."""
        starts = self._starts[stream]
        shard = int(np.searchsorted(starts, start, "right")) - 1
        parts = []
        while start < stop:
            end = min(stop, int(starts[shard + 1]))
            if end > start:
                tokens = _shard(str(self.folder / shard_file(stream, shard)), self.dtype)
                parts.append(tokens[start - starts[shard] : end - starts[shard]])
            start, shard = end, shard + 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _stored(self, stream: str, indices: Indices) -> Tokens:
        width = self.sequence_length + 1
        out = np.empty((len(indices), width), self.dtype)
        for row, start in enumerate((np.asarray(indices, np.int64) * self.sequence_length).tolist()):
            out[row] = self._piece(stream, start, start + width)
        return out

    def gather(self, stream: str, indices: Indices) -> NDArray[np.int64]:
        """Windows of `stream` ("train" or "heldout"), shape (len(indices), sequence_length + 1).

        A token t that is read but carries no loss is given as its complement ~t, which is negative.
        """
        stored = self._stored(stream, indices).astype(np.int64)
        return (stored >> 1) ^ -(stored & 1) if self.partial else stored

    def counted(self, stream: str, indices: Indices) -> NDArray[np.int64]:
        """How many of each window's predictions carry loss, shape (len(indices),): 0 to sequence_length."""
        if not self.partial:
            return np.full(len(indices), self.sequence_length, np.int64)
        counts: NDArray[np.int64] = (self._stored(stream, indices)[:, 1:] % 2 == 0).sum(axis=1, dtype=np.int64)
        return counts

    def _tested(self, count: int) -> Indices:
        return np.arange(count) * self.heldout_windows // count

    def heldout(self, count: int) -> NDArray[np.int64]:
        """`count` held-out windows, evenly spaced over the held-out stream: the fixed set of every evaluation."""
        return self.gather("heldout", self._tested(count))

    def validation(self, count: int, tested: int) -> NDArray[np.int64]:
        """`count` held-out windows, evenly spaced among those that `heldout(tested)` does not hold.

        Raises:
            UserError: fewer than that are left.
        """
        left = np.setdiff1d(np.arange(self.heldout_windows), self._tested(tested))
        if len(left) < count:
            raise UserError(f"{self.folder}: {count} windows to validate on and {tested} to test on are more than the {self.heldout_windows} held out")  # fmt: skip
        return self.gather("heldout", left[np.arange(count) * len(left) // count])


def open_packed(folder: Path) -> Packed | None:
    """The prepared corpus in `folder`, or None if it is not there."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except FileNotFoundError:
        return None
    if manifest["schema"] != SCHEMA:
        raise UserError(f"{folder}: has schema {manifest['schema']}, this version reads {SCHEMA}: remove the folder")
    names = ("sequence_length", "train_windows", "heldout_windows", "documents", "vocab_size", "dtype", "partial")
    counts = [tuple(shard["tokens"][stream] for shard in manifest["shards"]) for stream in STREAMS]
    return Packed(folder, *(manifest[name] for name in names), *counts)


def digests(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The hash of each shard of a prepared corpus, by the name of its file."""
    shards = [(shard["number"], shard["sha256"]) for shard in manifest["shards"]]
    return {shard_file(stream, number): found[stream] for number, found in shards for stream in found}


def roles_of(spec: SweepSpec) -> dict[str, Source]:
    return {role: getattr(spec.data, role) for role in ROLES}


def source_identities(
    spec: SweepSpec, folder: Path, digest: Callable[[File], str] = sha256
) -> dict[str, dict[str, Any]]:
    """For each role, everything that its documents depend on.

    Raises:
        UserError: with every source that is missing, empty or of an unknown kind.
    """
    found, problems = {}, []
    for role, source in roles_of(spec).items():
        try:
            found[role] = sources.identity(source, folder, digest)
        except UserError as error:
            problems += [f"data.{role}.source: {problem}" for problem in error.problems]
    if problems:
        raise UserError(problems)
    return found


def identity_of(spec: SweepSpec, source: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Everything that a role's packed windows depend on, from the identities of its documents and its tokenizer."""
    return {
        "source": dict(source),
        "tokenizer": tokenizer,
        "sequence_length": spec.sequence_length,
        "heldout_fraction": spec.data.heldout_fraction,
        "version": PACK_VERSION,
    }


def shortfalls(
    spec: SweepSpec, packed: Mapping[str, Packed], budgets: Mapping[str, int], validation: int = 0
) -> tuple[list[str], list[str]]:
    """Errors and warnings about pools that are too small for what the sweep asks of them.

    `validation`: held-out windows that are wanted beside data.heldout_windows, as `Packed.validation` gives them.
    """
    errors: list[str] = []
    warnings: list[str] = []
    for role, source in roles_of(spec).items():
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
        if pool.heldout_windows < spec.data.heldout_windows + validation:
            more = f" and {validation} more are to validate on" if validation else ""
            errors.append(
                f"data.{role}: the held-out split has {pool.heldout_windows} windows, data.heldout_windows asks for "
                f"{spec.data.heldout_windows}{more}: lower it, raise data.heldout_fraction, or bring more text"
            )
    return errors, warnings
