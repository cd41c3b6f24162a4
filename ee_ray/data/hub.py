"""The hub's data sets and tokenizers, by the hub's own libraries. Imported only where one is read: it takes a second."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import datasets
import pyarrow as pa
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from ee_ray.data.files import ROWS, Row, need_columns, texts_of
from ee_ray.errors import UserError
from ee_ray.spec.data import Source

datasets.disable_progress_bars()  # `prepare` shows its own

T = TypeVar("T")

# The libraries say well what is wrong and what there is, but not in which field of ours: part of their words, field.
_FIELDS = {"Revision": "revision", "BuilderConfig": "config", "Config name": "config", "split": "split"}


def rows(source: Source) -> Iterator[Row]:
    """The named columns of each row of a data set, in the data set's order, which is the same streamed or not.

    Raises:
        UserError: no such data set, revision, configuration, split or column, or the hub cannot be reached.
    """
    where = source.source
    found = _told(where, lambda: _load(source))
    names = found.column_names
    if names is None:  # a streamed data set that does not state its columns: the first row does
        names = list(_told(where, lambda: next(iter(found), {})))
    need_columns(names, source.columns, where)
    batches = iter(found.select_columns(list(source.columns)).iter(ROWS))
    number = 0
    while (batch := _told(where, lambda: next(batches, None))) is not None:
        for values in zip(*(batch[name] for name in source.columns), strict=True):
            number += 1
            yield texts_of(dict(zip(source.columns, values, strict=True)), source.columns, f"{where}: row {number}")


def _load(source: Source) -> datasets.Dataset | datasets.IterableDataset:
    name = source.source.removeprefix("hf:")
    return datasets.load_dataset(
        name, source.config, split=source.split, revision=source.revision, streaming=source.streaming
    )


def download(hub: str, revision: str, names: list[str]) -> dict[str, Path]:
    """Files of a repository, by name, in the hub's own cache; those that it does not have are left out.

    Raises:
        UserError: no such repository or revision, or the hub cannot be reached.
    """

    def one(name: str) -> Path | None:
        try:
            return Path(hf_hub_download(hub, name, revision=revision))
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):  # not in the cache, and no hub to ask: it may well exist
                raise
            return None

    found = {name: _told(f"tokenizer.hub: {hub} at {revision}", lambda name=name: one(name)) for name in names}  # type: ignore[misc]
    return {name: path for name, path in found.items() if path is not None}


def _told(where: str, act: Callable[[], T]) -> T:
    """What `act` gives, with the libraries' own account of what is missing as the user's to read."""
    try:
        return act()
    except (OSError, ValueError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, (ConnectionError, LocalEntryNotFoundError)):
            raise UserError(f"{where}: the hub cannot be reached: {cause}") from error
        field = next((field for words, field in _FIELDS.items() if words in cause), None)
        raise UserError(f"{where}: {cause}" + (f" Set `{field}:`" if field else "")) from error
