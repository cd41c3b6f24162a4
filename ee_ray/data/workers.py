"""One function over many blocks, in this process or one process a core, with a bounded number of blocks in memory."""

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from itertools import chain, islice
from multiprocessing import get_context, parent_process

from ee_ray.data.shards import Block, Recipe, Shard

Work = Callable[[Block], Shard]
# Results come as they are done: a shard knows its number.
Workers = Callable[[Recipe, Iterable[Block]], Iterator[Shard]]


def here(work: Work, blocks: Iterable[Block]) -> Iterator[Shard]:
    return map(work, blocks)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _follow_parent() -> None:
    """End with the parent, also if that is killed: an idle worker would wait for work for ever. Ctrl-C is the parent's."""
    parent = parent_process()
    assert parent

    def follow() -> None:
        parent.join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=follow, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process a core is all the parallelism there is room for


def processes(count: int) -> Workers:
    """Workers in `count` processes; a corpus of one block is not worth starting them."""

    def each(work: Work, blocks: Iterable[Block]) -> Iterator[Shard]:
        blocks = iter(blocks)
        first = list(islice(blocks, 2))
        if count == 1 or len(first) < 2:
            yield from here(work, chain(first, blocks))
            return
        # Spawned, not forked: Arrow and the tokenizers have threads, which a fork would leave behind with their locks.
        pool = ProcessPoolExecutor(count, get_context("spawn"), _follow_parent)
        try:
            pending: set[Future[Shard]] = set()
            for block in chain(first, blocks):
                pending.add(pool.submit(work, block))
                if len(pending) > count:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            yield from (future.result() for future in as_completed(pending))
        finally:
            pool.shutdown(cancel_futures=True)

    return each
