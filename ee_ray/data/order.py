"""Which window comes when: exact counts, evenly mixed, a pure function of the seed.

A *part* is a run of cursors [start, stop) through one pool of packed windows. The pool's order is a fixed permutation
for each (seed, epoch), and cursors run on through epochs; so the first k windows of D_post that pretraining sees are
a prefix of the same order whose rest post-training sees, and a larger lambda only adds windows to pretraining.

Nothing here knows about workers: a global batch is a slice of the stage's schedule, and workers share the slice out.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Run:
    """Cursors [start, stop) through a pool of `pool` windows, `passes` times; the pool's permutations are drawn with `seed`.

    A later pass has the same windows in an order of its own.
    """

    pool: int
    start: int
    stop: int
    seed: int
    passes: int = 1


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The splitmix64 finaliser (Steele, Lea and Flood 2014), by element: an own stream, since numpy's may change."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permutation(pool: int, seed: int, epoch: int) -> Indices:
    """A permutation of range(pool), the same on every machine and numpy version; one for each (seed, epoch).

    Epochs below zero are streams of their own, used for later passes."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        stream = _mix(np.array([seed], np.uint64) * golden + np.array([epoch + 1], np.int64).astype(np.uint64))
        draws = _mix(stream + np.arange(1, pool + 1, dtype=np.uint64) * golden)
    return np.argsort(draws, kind="stable")


def windows(run: Run) -> Indices:
    """Window index at each cursor of the run, pass after pass, shape ((stop - start) * passes,)."""
    first = _once(run)
    later = [first[permutation(len(first), run.seed, -number)] for number in range(1, run.passes)]
    return np.concatenate([first, *later])


def _once(run: Run) -> Indices:
    """Epochs are whole permutations of the pool, one after another."""
    parts = []
    for epoch in range(run.start // run.pool, -(-run.stop // run.pool)):
        base = epoch * run.pool
        order = permutation(run.pool, run.seed, epoch)
        parts.append(order[max(run.start - base, 0) : max(min(run.stop - base, run.pool), 0)])
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def interleave(counts: list[int]) -> Indices:
    """Part number at each position of the mixed sequence, shape (sum(counts),): exact counts, evenly spread.

    Item j of a part with n items stands at (j + 1/2) / n of the way; ties go to the earlier part.
    """
    places = np.concatenate([(np.arange(n) + 0.5) / n for n in counts if n] or [np.empty(0)])
    parts = np.repeat(np.arange(len(counts)), counts)
    return parts[np.argsort(places, kind="stable")]


def schedule(runs: list[Run]) -> Indices:
    """The whole order of a stage, shape (n, 2): part number and window index within that part's pool."""
    parts = interleave([(run.stop - run.start) * run.passes for run in runs])
    order = np.empty((len(parts), 2), np.int64)
    order[:, 0] = parts
    for number, run in enumerate(runs):
        order[parts == number, 1] = windows(run)
    return order
