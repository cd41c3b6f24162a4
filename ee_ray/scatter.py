"""Pack blocks of documents on a Ray cluster: this process reads, tasks encode. Where the store is a disk that all hosts see
they write shards into it; where it is a bucket this process does, into its mirror, which is uploaded whole."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray

from ee_ray.data.shards import Block, Recipe, Shard, encode_shard, keep_shard
from ee_ray.data.tokens import Tokens
from ee_ray.store import Store


def on_ray(recipe: Recipe, blocks: Iterable[Block]) -> Iterator[Shard]:
    """Workers on the cluster that is joined, all of which see the recipe's folder."""
    return _scattered(_write, recipe, blocks)


def through_here(store: Store, tokenizer: str, recipe: Recipe, blocks: Iterable[Block]) -> Iterator[Shard]:
    """Workers on the cluster that is joined, none of which sees the recipe's folder.

    tokenizer: its fingerprint in the store, from where workers have it.
    """
    for shard, content in _scattered(partial(_encode, store, tokenizer), recipe, blocks):
        yield keep_shard(recipe, shard, content)


def _scattered(work: Callable[[Recipe, Block], Any], recipe: Recipe, blocks: Iterable[Block]) -> Iterator[Any]:
    """A task a CPU, and a bounded number of blocks in the object store.

    A task whose node dies is tried again by Ray: it makes the same shard.
    """
    task, handle = ray.remote(num_cpus=1, max_retries=3)(_call), ray.put((work, recipe))
    pending: list[Any] = []
    for block in blocks:
        pending.append(task.remote(handle, block))
        if len(pending) > int(ray.cluster_resources().get("CPU", 1)):
            done, pending = ray.wait(pending)
            yield from ray.get(done)
    while pending:
        done, pending = ray.wait(pending)
        yield from ray.get(done)


def _call(how: tuple[Callable[[Recipe, Block], Any], Recipe], block: Block) -> Any:
    work, recipe = how
    return work(recipe, block)


def _write(recipe: Recipe, block: Block) -> Shard:
    return recipe(block)


def _encode(store: Store, tokenizer: str, recipe: Recipe, block: Block) -> tuple[Shard, dict[str, Tokens]]:
    encoding = recipe.encoding
    if encoding.path:
        encoding = replace(encoding, path=str(store.tokenizer(tokenizer) / Path(encoding.path).name))
    return encode_shard(replace(recipe, encoding=encoding), block)
