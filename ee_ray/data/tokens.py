"""Documents to tokens. A corpus that is trained on in part marks the tokens that are only read.

Tokens stand on disk in the smallest of uint8, uint16 and uint32 that holds the vocabulary; where some are only read,
each is stored as 2 * token + 1 if it carries no loss and 2 * token if it does.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ee_ray.data.sources import Document

END_BYTE = 0  # of the bytes tokenizer: byte 0 does not occur in text
BATCH_CHARACTERS = 1 << 15  # encoded at once: what stays in a core's cache is encoded a fifth faster than a megabyte

Tokens = NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class Encoding:
    """A tokenizer: the path of its tokenizer.json (None: bytes), the token that ends a document, and how many there are."""

    path: str | None
    end: int
    vocab_size: int


BYTES = Encoding(None, END_BYTE, 256)


def dtype_of(vocab_size: int, partial: bool) -> str:
    """The stored type of a corpus; `partial`: some tokens are only read."""
    largest = vocab_size * (2 if partial else 1) - 1
    return next(name for name in ("uint8", "uint16", "uint32") if largest <= np.iinfo(name).max)


def load(path: str) -> Tokenizer:
    """A tokenizer that only cuts text: nothing added, shortened or filled up, and no text of a document read as a mark."""
    tokenizer = Tokenizer.from_file(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


_loaded = lru_cache(1)(load)


def encode(encoding: Encoding, documents: list[Document], partial: bool) -> Iterator[Tokens]:
    """Each document's stored tokens with its end. A token carries loss if any character of it stands in the part that
    is trained on; the end of the document always does."""
    dtype = np.dtype(dtype_of(encoding.vocab_size, partial))
    if encoding.path is None:
        return (_bytes(document, dtype, partial) for document in documents)
    return _pieces(_loaded(encoding.path), encoding.end, documents, dtype, partial)


def _bytes(document: Document, dtype: np.dtype[Any], partial: bool) -> Tokens:
    text, start, stop = document
    tokens = np.frombuffer(text.encode() + bytes([END_BYTE]), np.uint8).astype(dtype)
    if partial:
        tokens = tokens * 2 + 1
        tokens[len(text[:start].encode()) : len(text[:stop].encode())] -= 1
        tokens[-1] -= 1
    return tokens


def _pieces(tokenizer: Tokenizer, end: int, documents: list[Document], dtype: np.dtype[Any], partial: bool) -> Iterator[Tokens]:  # fmt: skip
    for batch in _batches(documents):
        texts = [text for text, _, _ in batch]
        if not partial:
            for found in tokenizer.encode_batch_fast(texts, add_special_tokens=False):  # leaves out offsets
                yield np.array([*found.ids, end], dtype)
            continue
        for found, (_, start, stop) in zip(tokenizer.encode_batch(texts, add_special_tokens=False), batch, strict=True):
            read = [not (first < stop and last > start) for first, last in found.offsets]
            yield (np.array([*found.ids, end], np.int64) * 2 + [*read, False]).astype(dtype)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document[0])
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
