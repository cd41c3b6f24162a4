"""ee_ray from Python: what a notebook needs. The functions do what the commands of the same names do.

>>> from ee_ray.api import frontier, ledger, load_sweep, optimum, plan, report, run
>>> sweep = load_sweep("tiny.yaml")
>>> sweep.spec.name
'tiny'
"""

import warnings
from itertools import starmap
from pathlib import Path
from typing import Any

import pandas as pd

from ee_ray.frontier import frontiers
from ee_ray.launch import train
from ee_ray.ledger import LOSSES, Ledger, read_ledger
from ee_ray.log import keeping
from ee_ray.optimum import Optimum
from ee_ray.propose import estimate
from ee_ray.quote import quote
from ee_ray.registered import ANOTHER, changed_sources, open_as_it_ran
from ee_ray.report.page import write_report
from ee_ray.report.summary import seed_means
from ee_ray.sweep import Sweep, open_sweep, prepare_if_quick
from ee_ray.told import failure_text

__all__ = ["Sweep", "frontier", "ledger", "load_sweep", "optimum", "plan", "report", "run"]


def load_sweep(path: Path | str, storage: Path | str = "store") -> Sweep:
    """The sweep of a file, on its store: as it last ran there, if it did. Trains nothing.

    Warns of sources that are gone or have changed since; `plan` and `run` need them.

    >>> load_sweep("tiny.yaml").spec.search.anchors
    [0.0, 0.5, 1.0]

    Raises:
        UserError: with every problem of the file, or else of the store, or of the sources of a sweep that did not run yet.
    """
    sweep = open_as_it_ran(path, storage)
    for problem in (*sweep.gone, *sweep.changed):
        warnings.warn(problem, stacklevel=2)
    return sweep


def plan(sweep: Sweep) -> dict[str, Any]:
    """What the sweep will train and cost, as `ee-ray plan --json` prints it. Small sources are prepared, nothing is trained.

    >>> quotation = plan(load_sweep("tiny.yaml"))
    >>> quotation["tokens"]["to_train"]  # all of it was trained before
    0
    >>> quotation["tokens"]["saved_factor"] > 1
    True
    """
    sweep = open_sweep(sweep.path, sweep.store.place)
    return quote(sweep, prepare_if_quick(sweep) + [f"{change}: {ANOTHER}" for change in changed_sources(sweep)])


def run(sweep: Sweep, address: str | None = None, local: bool = False, quiet: bool = False) -> pd.DataFrame:
    """Run or resume the sweep; its ledger. What it says is also kept in the store, as of any run.

    address: a Ray cluster to join; without one, Ray is started here for this run, or with `local` not at all.

    >>> len(run(load_sweep("tiny.yaml"), local=True, quiet=True))  # finished before: nothing is trained again
    16

    Warns of each stage that failed, and of what ended the sweep before it had its answer.

    Raises:
        UserError: something that can be mended: data, model, resources.
    """
    sweep = open_sweep(sweep.path, sweep.store.place)
    sweep.store.create()
    with keeping(sweep.store, sweep.spec.name, quiet) as log:
        ended, stopped = train(sweep, address, local, log)
    for problem in [*starmap(failure_text, ended.failures.items()), *filter(None, [_unfinished(ended, stopped)])]:
        warnings.warn(problem, stacklevel=2)
    return ended.rows


def _unfinished(ended: Ledger, stopped: str | None) -> str | None:
    """Why the search has not ended by itself, if it has not."""
    if not (left := len(ended.decision.outstanding)):
        return None
    return f"{left} trials of the search's current round are not finished: {stopped or 'stages of theirs failed'}; running it again goes on"


def ledger(sweep: Sweep) -> pd.DataFrame:
    """A row for each finished (lambda, seed, fine-tuning rate), from the store alone; losses in nats per token.

    >>> table = ledger(load_sweep("tiny.yaml"))
    >>> list(table)[:8]
    ['lambda', 'seed', 'choice', 'finetune_lr', 'L_im', 'L_ret', 'L_ft', 'L_pre']
    >>> sorted(set(table["finetune_lr"]))
    [0.0001, 0.001]
    """
    return read_ledger(sweep.spec, sweep.data, sweep.store).rows


def optimum(sweep: Sweep) -> Optimum | None:
    """lambda* with its interval, verdict and gains, from the store alone; None while fewer than three levels are finished,
    and where a frontier is asked for (objective.loss: pareto).

    >>> found = optimum(load_sweep("tiny.yaml"))
    >>> low, high = found.ci95
    >>> 0 <= low <= found.lambda_star <= high <= 1
    True
    >>> found.verdict
    'undetermined'
    """
    return estimate(sweep.spec, read_ledger(sweep.spec, sweep.data, sweep.store).results)


def frontier(sweep: Sweep, x: str = "L_ft", y: str = "L_ret") -> pd.DataFrame:
    """Every recipe's mean losses over seeds, and whether it lies on the Pareto set and on the lower-left hull of x and y.

    x, y: two of L_im, L_ret, L_ft, L_pre; each seed's offset is taken out of the means.

    >>> points = frontier(load_sweep("tiny.yaml"))
    >>> bool(points["on_pareto"].any()), bool((points["on_pareto"] >= points["on_hull"]).all())
    (True, True)

    Raises:
        ValueError: x or y is no loss.
    """
    if {x, y} - set(LOSSES):
        raise ValueError(f"x and y must be two of {', '.join(LOSSES)}, got {x} and {y}")
    return frontiers(seed_means(ledger(sweep)), x, y)


def report(sweep: Sweep, folder: Path | str | None = None) -> Path:
    """Write the report from the store alone, by default into reports/<name>; the page.

    >>> report(load_sweep("tiny.yaml")).as_posix()
    'reports/tiny/index.html'
    """
    place = Path(folder) if folder is not None else Path("reports") / sweep.spec.name
    write_report(sweep, read_ledger(sweep.spec, sweep.data, sweep.store), place)
    return place / "index.html"
