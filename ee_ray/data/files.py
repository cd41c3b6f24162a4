"""Text in files, here or in buckets: which files a pattern names, and the rows of each.

.txt                  a line that is not blank is a row
.jsonl                a line is an object          .gz and .zst of these two are read as they are
.parquet, .arrow      columns (.arrow: an IPC file or an IPC stream)
"""

import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem

from ee_ray.errors import UserError

FORMATS = (".txt", ".jsonl", ".parquet", ".arrow")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
BUCKETS = ("s3", "gs")
ROWS = 256  # at a time out of a table: a long document has about 10 kB

Row = tuple[str, ...]


@dataclass(frozen=True)
class File:
    """One file: where it is, what to call it in messages, its size in bytes and when it was last changed (ns)."""

    system: FileSystem
    path: str
    name: str
    size: int
    mtime_ns: int

    @property
    def format(self) -> str:
        """The suffixes that say how to read it, such as .jsonl.gz."""
        name = PurePosixPath(self.path)
        return "".join(name.suffixes[-2:]) if name.suffix in COMPRESSIONS else name.suffix


def locate(place: str, folder: Path) -> list[File]:
    """The files that `place` names, in the order of their names: a path from `folder`, or s3:// or gs://, where `*`
    stands for any part of a name and `**` for any folders.

    Raises:
        UserError: there is no such place or file, one is empty, or of no known format; one line for each.
    """
    scheme = place.partition("://")[0] if "://" in place else ""
    if scheme and scheme not in BUCKETS:
        raise UserError(
            f"{place}: files are local or in {', '.join(f'{name}://' for name in BUCKETS)}, got {scheme}://"
        )
    try:
        system, path = FileSystem.from_uri(place) if scheme else (LocalFileSystem(), str((folder / place).resolve()))
        found = [File(system, info.path, f"{scheme}://{info.path}" if scheme else info.path, info.size, info.mtime_ns) for info in _matches(system, path)]  # fmt: skip
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{place}: cannot be read: {_line(error)}") from None
    if not found:
        raise UserError(f"{path}: no such file" + ("" if scheme else " (a relative path starts from the sweep file's folder)"))  # fmt: skip
    if problems := [problem for file in found if (problem := _problem(file))]:
        raise UserError(problems)
    return found


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _problem(file: File) -> str | None:
    name = PurePosixPath(file.path)
    if file.format not in (*FORMATS, *(base + packed for base in FORMATS[:2] for packed in COMPRESSIONS)):
        return f"{file.name}: files end in {', '.join(FORMATS)}, or .txt and .jsonl with {', '.join(COMPRESSIONS)}, got '{file.format or name.name}'"  # fmt: skip
    return f"{file.name}: is empty" if file.size == 0 else None


def _matches(system: FileSystem, path: str) -> list[FileInfo]:
    if "*" not in path:
        info = system.get_file_info(path)
        return [info] if info.type == FileType.File else []
    base = path[: path.index("*")].rpartition("/")[0]
    wanted = re.compile("".join({"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}.get(part, re.escape(part)) for part in re.split(r"(\*\*/|\*\*|\*)", path)))  # fmt: skip
    below = "**" in path or "/" in path[len(base) + 1 :]
    infos = system.get_file_info(FileSelector(base or "/", recursive=below, allow_not_found=True))
    return sorted((i for i in infos if i.type == FileType.File and wanted.fullmatch(i.path)), key=lambda info: info.path)  # fmt: skip


def rows(file: File, columns: Sequence[str]) -> Iterator[Row]:
    """The named columns of each row, in order. A .txt file has one column, whatever it is called.

    Raises:
        UserError: the file cannot be read as its format, or a row lacks a column, or holds something but text there.
    """
    readers = {".txt": _texts, ".jsonl": _records, ".parquet": _parquet, ".arrow": _arrow}
    try:
        yield from readers["." + file.format.split(".")[1]](file, columns)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file.name}: cannot be read as {file.format}: {_line(error)}") from None


def _lines(file: File) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers."""
    packed = COMPRESSIONS.get(PurePosixPath(file.path).suffix)
    with file.system.open_input_stream(file.path, compression=packed) as stream:
        text = io.TextIOWrapper(io.BufferedReader(stream, 1 << 20), encoding="utf-8")
        number = 0
        try:
            for number, line in enumerate(text, 1):
                if line.strip():
                    yield number, line.rstrip("\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{file.name}: is not UTF-8 text: {error.reason} after line {number}") from None


def _texts(file: File, _columns: Sequence[str]) -> Iterator[Row]:
    return ((line,) for _, line in _lines(file))


def _records(file: File, columns: Sequence[str]) -> Iterator[Row]:
    for number, line in _lines(file):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{file.name}:{number}: is not JSON: {error.msg}") from None
        if ("\\ud" in line or "\\uD" in line) and not _is_unicode(record):
            raise UserError(f"{file.name}:{number}: holds half a surrogate pair (\\ud800 to \\udfff), which is no text")
        yield texts_of(record, columns, f"{file.name}:{number}")


def _is_unicode(record: Any) -> bool:
    try:
        return bool(json.dumps(record, ensure_ascii=False).encode())
    except UnicodeEncodeError:
        return False


def texts_of(record: Any, columns: Sequence[str], where: str) -> Row:
    """The named columns of one record.

    Raises:
        UserError: one of them is not there, or is not text.
    """
    is_object = isinstance(record, dict)
    values: list[Any] = [record.get(name) if is_object else None for name in columns]
    wrong = [name for name, value in zip(columns, values, strict=True) if not isinstance(value, str)]
    if wrong:
        there = ", ".join(map(str, record)) if is_object else type(record).__name__
        raise UserError(f"{where}: no text field '{wrong[0]}'; the record has: {there}. {_cure(columns)}")
    return tuple(values)


def _cure(columns: Sequence[str]) -> str:
    return "Set `field:`" if len(columns) == 1 else "Set `prompt:` and `completion:`"


def _parquet(file: File, columns: Sequence[str]) -> Iterator[Row]:
    with file.system.open_input_file(file.path) as stream, parquet.ParquetFile(stream) as table:
        need_columns(table.schema_arrow.names, columns, file.name)
        yield from _table_rows(table.iter_batches(ROWS, columns=list(columns)), columns, file.name)


def _arrow(file: File, columns: Sequence[str]) -> Iterator[Row]:
    with file.system.open_input_file(file.path) as stream:
        is_file = stream.read(6) == b"ARROW1"
        stream.seek(0)
        table = pa.ipc.open_file(stream) if is_file else pa.ipc.open_stream(stream)
        need_columns(table.schema.names, columns, file.name)
        batches = (table.get_batch(i) for i in range(table.num_record_batches)) if is_file else table
        parts = (batch.slice(start, ROWS) for batch in batches for start in range(0, batch.num_rows, ROWS))
        yield from _table_rows(parts, columns, file.name)


def need_columns(there: Sequence[str], columns: Sequence[str], where: str) -> None:
    """Raises:
    UserError: a column is not among those that are there.
    """
    for name in columns:
        if name not in there:
            raise UserError(f"{where}: no column '{name}'; there are: {', '.join(there)}. {_cure(columns)}")


def _table_rows(batches: Iterable[pa.RecordBatch], columns: Sequence[str], where: str) -> Iterator[Row]:
    for batch in batches:
        for row in zip(*(batch.column(name).to_pylist() for name in columns), strict=True):
            for name, value in zip(columns, row, strict=True):
                if not isinstance(value, str):
                    raise UserError(f"{where}: column '{name}' holds {type(value).__name__}, not text")
            yield row
