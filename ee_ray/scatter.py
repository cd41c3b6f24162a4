"""Pack blocks of documents on a Ray cluster: this process reads, tasks encode and write shards into the shared store."""

from collections.abc import Iterable, Iterator
from typing import Any

import ray

from ee_ray.data.shards import Block, Shard
from ee_ray.data.workers import Work


def on_ray(work: Work, blocks: Iterable[Block]) -> Iterator[Shard]:
    """Workers on the cluster that is joined: a task a CPU, and a bounded number of blocks in the object store.

    A task whose node dies is tried again by Ray: it writes the same shard.
    """
    task = ray.remote(num_cpus=1, max_retries=3)(work_on)
    handle = ray.put(work)
    pending: list[Any] = []
    for block in blocks:
        pending.append(task.remote(handle, block))
        if len(pending) > int(ray.cluster_resources().get("CPU", 1)):
            done, pending = ray.wait(pending)
            yield from ray.get(done)
    while pending:
        done, pending = ray.wait(pending)
        yield from ray.get(done)


def work_on(work: Work, block: Block) -> Shard:
    return work(block)
