"""Batches made ahead of time by a thread, in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Part = TypeVar("Part")
Made = TypeVar("Made")


def made_ahead(parts: Iterable[Part], make: Callable[[Part], Made], ahead: int) -> Iterator[Made]:
    """`make` of each part, in order. A thread works on up to `ahead` of them before they are asked for; with 0 none does.

    What `make` raises is raised where its result is asked for. Closing the iterator ends the thread.
    """
    if not ahead:
        yield from map(make, parts)
        return
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(1) as thread:
        for part in parts:
            waiting.append(thread.submit(make, part))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
