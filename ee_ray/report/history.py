"""What the search did, round by round: what it chose, what that cost, and what it knew afterwards."""

from dataclasses import dataclass

from ee_ray.identity import ListKey
from ee_ray.ledger import Ledger
from ee_ray.optimum import Optimum
from ee_ray.plan import Point
from ee_ray.propose import anchors, estimate, estimate_frontier
from ee_ray.spec.sweep import SweepSpec
from ee_ray.tradeoff import Tradeoff

MOST_FITS = 12  # a fit of a thousand runs takes 0.2 s


@dataclass(frozen=True, eq=False)
class Round:
    """`runs` chosen at once, the `tokens` that they had to train, and the optimum or the frontier that is asked for, after
    all of the rounds so far: None where there was none yet or, of very many rounds, where it was not fitted again."""

    runs: list[Point]
    tokens: int
    optimum: Optimum | None
    frontier: Tradeoff | None


def history(spec: SweepSpec, ledger: Ledger) -> list[Round]:
    """The finished rounds of the search, in order."""
    batches = _batches(spec, ledger)
    every = -(-len(batches) // MOST_FITS) or 1
    found, before, had = [], list[Point](), ledger.prices.had([])
    for number, batch in enumerate(batches):
        tokens = ledger.prices.together(batch, had)
        before += batch
        had.update(*map(ledger.prices.stages, batch))
        fits = (len(batches) - 1 - number) % every == 0
        known = {point: ledger.results[point] for point in before} if fits else {}
        found.append(Round(batch, tokens, estimate(spec, known), estimate_frontier(spec, known)))
    return found


def _batches(spec: SweepSpec, ledger: Ledger) -> list[list[Point]]:
    """Rounds whose results are all there. A round may have been cut by a budget: only what was visited counts."""
    visited, rounds = ledger.decision.visited, ledger.decision.rounds
    batches, batch, done, known = [], anchors(spec), 0, ListKey("known")
    while batch and all(point in ledger.results for point in batch):
        batches.append(batch)
        done += len(batch)
        for point in batch:
            known.add([point.level, point.seed, point.choice, ledger.results[point]])
        chosen = rounds.get(known.key(), ())
        batch = [point for point in visited[done : done + len(chosen)] if point in chosen]
    return batches
