"""Documents to a prepared corpus: in shards, by any number of workers, kept after a kill, published by one rename."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ee_ray.data import sources
from ee_ray.data.pack import SCHEMA, Packed, open_packed
from ee_ray.data.shards import BLOCK_BYTES, STREAMS, Block, Recipe, Shard, blocks, clear_records, kept
from ee_ray.data.tokens import Encoding, dtype_of
from ee_ray.data.workers import Workers, here
from ee_ray.spec.data import Source


def pack(
    source: Source,
    base: Path,
    identity: Mapping[str, Any],
    folder: Path,
    encoding: Encoding,
    progress: Callable[[int], None],
    workers: Workers = here,
    block_bytes: int = BLOCK_BYTES,
) -> Packed:
    """Read, split, encode and write one corpus into `folder`. `progress` gets bytes of text done.

    Shards gather in a folder beside it, whose name is the corpus's fingerprint: after a kill, whoever packs the same
    corpus goes on from them. Two who pack it at once write the same shards, and the first to end publishes.

    Raises:
        UserError: the source cannot be read.
    """
    draft = folder.with_name(f"{folder.name}.partial")
    recipe = Recipe(draft, encoding, source.loss == "completion", identity["heldout_fraction"])
    shards: list[Shard] = []

    def done(shard: Shard) -> None:
        shards.append(shard)
        progress(shard.size)

    def to_do(found: Iterator[Block]) -> Iterator[Block]:
        for block in found:
            if (shard := kept(draft, block)) is None:
                yield block
            else:
                done(shard)

    try:
        draft.mkdir(parents=True, exist_ok=True)
        for shard in workers(recipe, to_do(blocks(sources.documents(source, base), block_bytes))):
            done(shard)
        _publish(draft, folder, _manifest(identity, recipe, sorted(shards, key=lambda shard: shard.number)))
    except OSError:
        if not folder.exists():  # else another process has published the same windows first
            raise
        shutil.rmtree(draft, ignore_errors=True)
    packed = open_packed(folder)
    assert packed is not None
    return packed


def _manifest(identity: Mapping[str, Any], recipe: Recipe, shards: list[Shard]) -> dict[str, Any]:
    length = identity["sequence_length"]
    windows = {stream: max(0, sum(shard.tokens[stream] for shard in shards) - 1) // length for stream in STREAMS}
    return {
        "schema": SCHEMA,
        "identity": identity,
        "sequence_length": length,
        "documents": sum(shard.documents for shard in shards),
        "train_windows": windows["train"],
        "heldout_windows": windows["heldout"],
        "vocab_size": recipe.encoding.vocab_size,
        "dtype": dtype_of(recipe.encoding.vocab_size, recipe.partial),
        "partial": recipe.partial,
        "shards": [{"number": shard.number, "documents": shard.documents, "bytes": shard.size, "tokens": shard.tokens, "sha256": shard.sha256} for shard in shards],
    }  # fmt: skip


def _publish(draft: Path, folder: Path, manifest: dict[str, Any]) -> None:
    (draft / "manifest.json").write_text(json.dumps(manifest, indent=1))
    os.rename(draft, folder)
    clear_records(folder)
