"""Where documents come from, and what makes two sources the same: content, never a path."""

from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import chain
from pathlib import Path
from string import Formatter
from typing import Any

from ee_ray.data import builtin
from ee_ray.data.files import File, Row, locate, rows
from ee_ray.errors import UserError
from ee_ray.spec.data import Source

# A text, and the part of it [start, stop) in characters that is trained on and measured.
Document = tuple[str, int, int]


def _split(source: Source) -> tuple[str, str]:
    kind, _, rest = source.source.partition(":")
    return kind, rest


def text_bytes(source: Source, folder: Path) -> int | None:
    """Bytes of text in this source, at most, to decide what is quick to prepare; None if that takes the hub to tell."""
    kind, place = _split(source)
    if kind == "file":
        # Text packs three or four times smaller; ten is as good as it gets.
        return sum(file.size * (10 if file.format.endswith((".gz", ".zst")) else 1) for file in locate(place, folder))
    return source.size if kind == "builtin" else None


def identity(source: Source, folder: Path, sha256: Callable[[File], str]) -> dict[str, Any]:
    """What the documents of this source depend on: for files their hashes in order, for the hub a pinned revision.

    A bucket's files are hashed like any others, which reads them once: their ETags depend on how they were uploaded.

    Raises:
        UserError: with everything that is wrong with it as far as a look at names, sizes and hashes tells.
    """
    kind, place = _split(source)
    if kind == "builtin":
        if place not in builtin.DOMAINS:
            raise UserError(f"no builtin corpus '{place}': there are {', '.join(builtin.DOMAINS)}")
        return {"builtin": place, "size": source.size, "version": builtin.BUILTIN_VERSION}
    found: dict[str, Any] = {"columns": list(source.columns)}
    if source.template:
        found |= {"template": source.template, "loss": source.loss}
    if kind == "hf":
        named = {"hub": place, "revision": source.revision, "config": source.config, "split": source.split}
        return named | found | {"size": source.size}
    files = locate(place, folder)
    if source.template and (bare := [file.name for file in files if file.format.startswith(".txt")]):
        raise UserError(f"{name}: .txt has no columns for prompt and completion: use .jsonl, .parquet or .arrow" for name in bare)  # fmt: skip
    if all(file.format.startswith(".txt") for file in files):
        del found["columns"]
    return {"sha256": [sha256(file) for file in files], "format": [file.format for file in files]} | found


def documents(source: Source, folder: Path) -> Iterator[Document]:
    """The source's documents in order.

    Raises:
        UserError: content that cannot be read, a missing column, or one that is not text.
    """
    kind, place = _split(source)
    if kind == "builtin":
        assert source.size
        return (_whole(text) for text in builtin.documents(place, source.size))
    if kind == "hf":
        found = map(_document(source), import_module("ee_ray.data.hub").rows(source))
        return _up_to(source.size, found) if source.size else found
    return map(_document(source), chain.from_iterable(rows(file, source.columns) for file in locate(place, folder)))


def _whole(text: str) -> Document:
    return text, 0, len(text)


def _document(source: Source) -> Callable[[Row], Document]:
    """How a row becomes a document. Outside of {completion}, a template's own text is read and not trained on."""
    if not source.template:
        return lambda row: _whole(row[0])
    parts = [(literal, name) for literal, name, _, _ in Formatter().parse(source.template)]

    def fill(row: Row) -> Document:
        values = {"prompt": row[0], "completion": row[1], None: ""}
        text, start = "", 0
        for literal, name in parts:
            text += literal
            start = len(text) if name == "completion" else start
            text += values[name]
        return (text, start, start + len(row[1])) if source.loss == "completion" else _whole(text)

    return fill


def _up_to(size: int, found: Iterator[Document]) -> Iterator[Document]:
    """Documents until their text reaches `size` bytes; the last one is whole, so a little more."""
    taken = 0
    while taken < size and (document := next(found, None)) is not None:
        yield document
        taken += len(document[0].encode())
