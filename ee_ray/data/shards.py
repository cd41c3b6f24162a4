"""A block of documents to a shard of a corpus: split by document hash, encoded, each document ended, written.

Shard i holds block i's tokens of both streams, whoever writes it, so a corpus is the same bytes for any number of
workers. Its record is written last: a shard with a record is whole.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ee_ray.data.sources import Document
from ee_ray.data.tokens import Encoding, Tokens, dtype_of, encode
from ee_ray.disk import write_whole

STREAMS = ("train", "heldout")
BLOCK_BYTES = 16 << 20  # of text: 5 s of work for one core; a worker holds about 100 MB for it


@dataclass(frozen=True)
class Block:
    number: int
    documents: list[Document]
    size: int


@dataclass(frozen=True)
class Shard:
    """What a shard holds: documents, bytes of their text, and for each stream tokens and the hash of the file."""

    number: int
    documents: int
    size: int
    tokens: dict[str, int]
    sha256: dict[str, str]


@dataclass(frozen=True)
class Recipe:
    """All that a worker needs to write shards: where to, and how text becomes tokens. Can be pickled, and called with a block."""

    folder: Path
    encoding: Encoding
    partial: bool
    heldout_fraction: float

    def __call__(self, block: Block) -> Shard:
        return keep_shard(self, *encode_shard(self, block))


def shard_file(stream: str, number: int) -> str:
    return f"{stream}-{number:05}.bin"


def _record(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05}.json"


def blocks(documents: Iterable[Document], size: int) -> Iterator[Block]:
    """Runs of whole documents of `size` bytes of text or a little more, numbered from 0."""
    number, held, held_size = 0, [], 0
    for document in documents:
        held.append(document)
        text = document[0]
        held_size += len(text) if text.isascii() else len(text.encode())
        if held_size >= size:
            yield Block(number, held, held_size)
            number, held, held_size = number + 1, [], 0
    if held:
        yield Block(number, held, held_size)


def is_heldout(text: str, fraction: float) -> bool:
    """By the document's own hash, so that copies of one document never stand on both sides."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") < fraction * 2**64


def encode_shard(recipe: Recipe, block: Block) -> tuple[Shard, dict[str, Tokens]]:
    """A block's shard, and its tokens by stream."""
    dtype = np.dtype(dtype_of(recipe.encoding.vocab_size, recipe.partial))
    parts: dict[str, list[Tokens]] = {stream: [np.empty(0, dtype)] for stream in STREAMS}
    for (text, _, _), tokens in zip(
        block.documents, encode(recipe.encoding, block.documents, recipe.partial), strict=True
    ):
        parts["heldout" if is_heldout(text, recipe.heldout_fraction) else "train"].append(tokens)
    content = {stream: np.concatenate(parts.pop(stream)) for stream in STREAMS}
    counts = {stream: len(tokens) for stream, tokens in content.items()}
    hashes = {stream: hashlib.sha256(tokens.data).hexdigest() for stream, tokens in content.items()}
    return Shard(block.number, len(block.documents), block.size, counts, hashes), content


def keep_shard(recipe: Recipe, shard: Shard, content: Mapping[str, Tokens]) -> Shard:
    """Write a shard, the record last."""
    for stream, tokens in content.items():
        write_whole(recipe.folder / shard_file(stream, shard.number), tokens.data)
    write_whole(_record(recipe.folder, shard.number), json.dumps(asdict(shard)).encode())
    return shard


def kept(folder: Path, block: Block) -> Shard | None:
    """The shard of this block that an earlier, interrupted run wrote, or None."""
    try:
        shard = Shard(**json.loads(_record(folder, block.number).read_text()))
    except FileNotFoundError:
        return None
    # The folder's name pins content and recipe; a release that cuts blocks differently is all that could differ.
    return shard if (shard.documents, shard.size) == (len(block.documents), block.size) else None


def clear_records(folder: Path) -> None:
    """Remove what only a run under way needs: records of shards, and drafts of writers that were killed."""
    for pattern in ("shard-*.json", "*.tmp"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
