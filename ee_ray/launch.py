"""Prepare a sweep's data and train what its search asks for, here or on Ray: what `ee-ray run` and notebooks have in common."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from rich.progress import BarColumn, FileSizeColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

from ee_ray.data.workers import Workers
from ee_ray.environment import prepare_ray
from ee_ray.errors import ClusterLost, UserError, no_room
from ee_ray.ledger import Ledger, note, read_ledger
from ee_ray.liveness import gone, watched
from ee_ray.log import Log
from ee_ray.progress import noting, watching
from ee_ray.propose import beyond_budget
from ee_ray.registered import ANOTHER, changed_sources, register
from ee_ray.sweep import Sweep
from ee_ray.sweep import prepare as prepare_data

TRACKERS = {"mlflow": "mlflow-skinny", "wandb": "wandb"}  # and the package that brings each


def prepare(sweep: Sweep, log: Log, workers: Workers | None = None) -> None:
    """Pack what is not packed yet, with a bar on a terminal; warnings are said."""
    # How much text there is in all is known after reading it: the bar shows motion, the columns amounts.
    columns = (TextColumn("{task.description}"), BarColumn(), FileSizeColumn(), TransferSpeedColumn(), TimeElapsedColumn())  # fmt: skip
    with Progress(*columns, console=log.console, transient=True, disable=not log.console.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def progress(role: str, done: int) -> None:
            if role not in tasks:
                tasks[role] = bar.add_task(f"packing {role}", total=None)
            bar.advance(tasks[role], done)

        warnings = prepare_data(sweep, progress, workers)
    for warning in warnings:
        log.say(f"warning: {warning}")


def train(
    sweep: Sweep,
    address: str | None,
    local: bool,
    log: Log,
    on_connect: Callable[[], None] = lambda: None,
    trackers: Sequence[str] = (),
    on_loss: Callable[[str], None] = lambda what: None,
) -> tuple[Ledger, str | None]:
    """Prepare the data and train what the search asks for; the ledger after it, and which budget of time ended it, if one did.

    on_connect: called when Ray has started, which puts its own signal handlers in place.
    trackers: "mlflow", "wandb": who is told of trials besides.
    on_loss: called with what has ended as soon as the cluster is lost, in any thread: a call to Ray may then not come back.

    Raises:
        UserError: as preparing and running do.
        NoRoom: a disk is full.
        ClusterLost: the cluster has ended, and `on_loss` has come back.
    """
    if address and local:
        raise UserError("--address and --local exclude each other")
    _check_trackers(trackers, local)
    prepare(sweep, log)
    ledger = read_ledger(sweep.spec, sweep.data, sweep.store)
    if ledger.decision.outstanding and (problem := beyond_budget(sweep.spec, ledger.prices)):
        raise UserError(f"{sweep.path}: {problem}")
    for change in changed_sources(sweep):
        log.say(f"warning: {change}: {ANOTHER}")
    note(sweep.spec, sweep.data, sweep.store, ledger.prices.found, ledger.decision.rounds)
    register(sweep)
    if not ledger.decision.outstanding:
        log.say(f"{sweep.spec.name}: everything is published, nothing to train")
        return ledger, None
    log.say(f"{sweep.spec.name}: {len(ledger.decision.outstanding)} trials to train; starting {'in this process' if local else 'Ray'}")  # fmt: skip

    @contextmanager
    def watch(snapshot: Callable[[], dict[str, Any]], ray_dashboard: str | None = None) -> Iterator[None]:
        with ExitStack() as displays:
            displays.enter_context(noting(sweep.store, sweep.spec.name, snapshot, ray_dashboard))
            for console in filter(None, (log.kept, log.console)):
                displays.enter_context(watching(console, snapshot))
            yield

    try:
        if local:
            stopped = import_module("ee_ray.run").run_in_process(sweep, ledger, watch)
        else:
            stopped = _on_ray(sweep, ledger, address, watch, on_connect, trackers, log, on_loss)
    except Exception as error:
        if full := no_room(error, sweep.store.root):
            raise full from error
        raise
    return read_ledger(sweep.spec, sweep.data, sweep.store), stopped


def _check_trackers(names: Sequence[str], local: bool) -> None:
    """Raises UserError: a tracker's package is not installed, or there will be no Tune to tell it."""
    problems = [f"--track {name}: the package {name} is not installed: pip install {package}" for name, package in TRACKERS.items() if name in names and find_spec(name) is None]  # fmt: skip
    if names and local:
        problems.append("--track goes through Ray Tune, which --local does without: leave one of them out")
    if problems:
        raise UserError(problems)


def _on_ray(
    sweep: Sweep,
    ledger: Ledger,
    address: str | None,
    watch: Any,
    on_connect: Callable[[], None],
    trackers: Sequence[str],
    log: Log,
    on_loss: Callable[[str], None],
) -> str | None:
    prepare_ray(address)
    cluster = import_module("ee_ray.cluster")
    # Ray takes 8 s to start, torch and transformers 7 s to import: at once. Ray must have the main thread (signals).
    with ThreadPoolExecutor(1) as background:
        heavy = background.submit(import_module, "ee_ray.run")
        with cluster.connected(address) as dashboard:
            on_connect()
            needed, shown = cluster.ports(), partial(watch, ray_dashboard=dashboard)
            try:
                with watched(needed, on_loss):
                    stopped: str | None = heavy.result().run_on_ray(sweep, ledger, shown, trackers, log.alarm)
                    return stopped
            except (Exception, KeyboardInterrupt) as error:
                if what := gone(needed):
                    on_loss(what)
                    raise ClusterLost(what) from error
                raise
