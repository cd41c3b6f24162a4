"""Where documents come from, and what makes two sources the same: content, never a path."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
from pyarrow import ArrowInvalid

from ee_ray.data.builtin import BUILTIN_VERSION, DOMAINS, documents
from ee_ray.errors import UserError
from ee_ray.spec.data import Source

SUFFIXES = (".txt", ".jsonl", ".parquet")


def _path(source: Source, folder: Path) -> Path:
    """Where a `file:` source lies; relative paths start from the folder of the sweep file."""
    return (folder / source.source.removeprefix("file:")).resolve()


def raw_bytes(source: Source, folder: Path) -> int:
    """Bytes to read for this source, roughly, to decide what is quick to prepare."""
    return source.size if source.size else _path(source, folder).stat().st_size


def check(source: Source, folder: Path) -> str | None:
    """What is wrong with this source as far as a look at its name and its size tells, or None."""
    kind, _, rest = source.source.partition(":")
    if kind == "builtin":
        return None if rest in DOMAINS else f"no builtin corpus '{rest}': there are {', '.join(DOMAINS)}"
    path = _path(source, folder)
    if path.suffix not in SUFFIXES:
        return f"{path}: files end in {', '.join(SUFFIXES)}, got '{path.suffix or path.name}'"
    if not path.is_file():
        return f"{path}: no such file (a relative path starts from the sweep file's folder)"
    return f"{path}: is empty" if path.stat().st_size == 0 else None


def identity(source: Source, folder: Path) -> dict[str, Any]:
    """What the documents of this source depend on."""
    if source.size:
        return {"builtin": source.source.partition(":")[2], "size": source.size, "version": BUILTIN_VERSION}
    path = _path(source, folder)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    field = None if path.suffix == ".txt" else source.field
    return {"sha256": digest, "format": path.suffix, "field": field}


def read(source: Source, folder: Path) -> Iterator[str]:
    """The source's documents in order. In a .txt file each line that is not blank is one document.

    Raises:
        UserError: a line that is not JSON, a record without the named field, or a field that is not text.
    """
    if source.size:
        return documents(source.source.partition(":")[2], source.size)
    path = _path(source, folder)
    reader = {".txt": _lines, ".jsonl": _records, ".parquet": _column}[path.suffix]
    return reader(path, source.field)


def _lines(path: Path, _field: str) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        try:
            yield from (line.rstrip("\n") for line in file if line.strip())
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: is not UTF-8 text: {error.reason} at byte {error.start}") from None


def _records(path: Path, field: str) -> Iterator[str]:
    for number, line in enumerate(_lines(path, field), 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: is not JSON: {error.msg}") from None
        text = record.get(field) if isinstance(record, dict) else None
        if not isinstance(text, str):
            names = ", ".join(record) if isinstance(record, dict) else type(record).__name__
            raise UserError(f"{path}:{number}: no text field '{field}'; the record has: {names}. Set `field:`")
        yield text


def _column(path: Path, field: str) -> Iterator[str]:
    try:
        table = parquet.ParquetFile(path)
    except ArrowInvalid as error:
        raise UserError(f"{path}: is not parquet: {error}") from None
    if field not in table.schema_arrow.names:
        raise UserError(f"{path}: no column '{field}'; there are: {', '.join(table.schema_arrow.names)}. Set `field:`")
    for batch in table.iter_batches(columns=[field]):
        for text in batch.column(0).to_pylist():
            if not isinstance(text, str):
                raise UserError(f"{path}: column '{field}' holds {type(text).__name__}, not text")
            yield text
