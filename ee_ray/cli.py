"""The command line. One boundary: the user's mistakes print clean and exit 2, bugs keep their traceback.

Exit codes: 0 done; 1 `verify` found what does not match; 2 the input is wrong; 3 some stages failed, or the cluster or the
room on the store's disk was lost: the rest is kept; 130 interrupted.
"""

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem, get_completion_class

from ee_ray.ending import ending, stuck
from ee_ray.errors import ClusterLost, UserError, no_room
from ee_ray.fold import fold

FAILED, INTERRUPTED = 3, 130
REPORTS = Path("reports")


class _Commands(click.Group):
    """The one place where exceptions become messages and exit codes."""

    def main(self, *arguments: Any, **named: Any) -> Any:
        try:
            return super().main(*arguments, **named)
        except SystemExit as end:
            if stuck or end.code == INTERRUPTED:
                # Threads that still wait for Ray would end an ordinary exit with another status, and in silence.
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(int(end.code or 0))
            raise

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            for problem in error.problems:
                click.echo(fold(f"error: {problem}"), err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            click.echo(fold("interrupted; everything published is kept, the same command continues"), err=True)
            ctx.exit(INTERRUPTED)
        except Exception as error:
            if not (full := no_room(error)):
                raise
            click.echo(fold(str(full)), err=True)
            ctx.exit(FAILED)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ee-ray")
def main() -> None:
    """Find the split of scarce target data between pretraining and post-training that survives fine-tuning."""


_storage = click.option(
    "--storage", default="store", show_default=True, help="The store: a directory, or s3://BUCKET/PREFIX."
)


def _specs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """What a shell offers for SPEC: folders, and files that end in .yaml."""
    start = Path(incomplete).parent if not incomplete.endswith("/") else Path(incomplete)
    found = sorted(path for path in start.glob("[!.]*") if str(path).startswith(incomplete.removeprefix("./")))
    files = [CompletionItem(str(path)) for path in found if path.suffix in (".yaml", ".yml")]
    return files + [CompletionItem(f"{path}/", type="dir") for path in found if path.is_dir()]


def _sweep_command(function: Callable[..., None]) -> click.Command:
    return main.command()(click.argument("spec", shell_complete=_specs)(_storage(function)))


_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")


def _warn(warnings: list[str]) -> None:
    for warning in warnings:
        click.echo(fold(f"warning: {warning}"), err=True)


@main.command()
@click.argument("specs", nargs=-1, required=True, metavar="SPEC...", shell_complete=_specs)
@click.option("--price-per-gpu-hour", "price", type=click.FloatRange(min=0, min_open=True), help="Say what it costs, in any currency.")  # fmt: skip
@click.option("--measure", is_flag=True, help="Train the model of each SPEC for ten seconds, to know the time.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Draw the tree of stages into this file.")
@_storage
@_json
def plan(specs: tuple[str, ...], price: float | None, measure: bool, html: Path | None, storage: str, as_json: bool) -> None:  # fmt: skip
    """Say what SPEC will train and cost, or several that share a store; train nothing."""
    from ee_ray.quote import quote, together
    from ee_ray.registered import ANOTHER, changed_sources
    from ee_ray.sweep import open_sweep, prepare_if_quick
    from ee_ray.told import plan_text, together_text

    sweeps = [open_sweep(spec, storage) for spec in specs]
    warnings = [
        prepare_if_quick(sweep) + [f"{change}: {ANOTHER}" for change in changed_sources(sweep)] for sweep in sweeps
    ]
    rates = [_measured(sweep) if measure else None for sweep in sweeps]
    quotations = [quote(*given, price) for given in zip(sweeps, warnings, rates, strict=True)]
    found = together(sweeps, quotations) if len(sweeps) > 1 else None
    if html:
        from ee_ray.report.plan_page import write_plan

        write_plan(quotations, html)
    if as_json:
        several = {"schema": 1, "sweeps": quotations, "together": found}
        click.echo(json.dumps(several if found else quotations[0], indent=1))
        return
    for quotation in quotations:
        _warn(quotation["warnings"])
        click.echo(fold(plan_text(quotation), 18) + "\n" * bool(found))
    if found:
        click.echo(fold(together_text(found), 18))
    if html:
        click.echo(f"picture           {html}")


MEASURED_SECONDS = 10.0


def _measured(sweep: Any) -> float:
    from ee_ray.ledger import read_ledger

    tokens_per_second = import_module("ee_ray.measure").tokens_per_second  # torch takes seconds to import
    rate: float = tokens_per_second(sweep, read_ledger(sweep.spec, sweep.data, sweep.store), MEASURED_SECONDS)
    return rate


def _read(spec: str, storage: str) -> Any:
    """The sweep as it last ran, for commands that only read; what has become of its sources since is said."""
    from ee_ray.registered import open_as_it_ran

    sweep = open_as_it_ran(spec, storage)
    _warn([f"{problem} (read from the store alone)" for problem in sweep.gone])
    _warn([f"{change}: this tells of the sweep that ran; `ee-ray run` would train another" for change in sweep.changed])
    return sweep


_quiet = click.option("--quiet", "-q", is_flag=True, help="Say nothing but what goes wrong.")


@_sweep_command
@click.option("--address", help="Ray cluster that packs. Without it, all cores here.")
@_quiet
def prepare(spec: str, storage: str, address: str | None, quiet: bool) -> None:
    """Split, tokenize and pack the data of SPEC, or go on with it."""
    from ee_ray.launch import prepare as prepare_data
    from ee_ray.log import keeping
    from ee_ray.spec.data import ROLES
    from ee_ray.sweep import open_sweep

    _catch()
    sweep = open_sweep(spec, storage)
    sweep.store.create()
    with keeping(sweep.store, sweep.spec.name, quiet) as log:
        if address:
            _prepare_on_ray(sweep, address, log)
        else:
            prepare_data(sweep, log)
        for role in ROLES:
            packed = sweep.packed(role)
            assert packed is not None
            log.tell(f"{role}: {packed.documents:,} documents, {packed.train_windows:,} windows to train on, {packed.heldout_windows:,} held out ({sweep.data[role]})")  # fmt: skip


def _prepare_on_ray(sweep: Any, address: str, log: Any) -> None:
    from ee_ray.environment import prepare_ray

    prepare_ray(address)
    from ee_ray.cluster import connected
    from ee_ray.launch import prepare
    from ee_ray.scatter import on_ray, through_here

    with connected(address):
        _catch()
        through = partial(through_here, sweep.store, sweep.tokenizer.name)
        prepare(sweep, log, on_ray if sweep.store.items.is_shared else through)


@_sweep_command
@click.option("--address", help="Ray cluster to join; without it one is started here, for this run.")
@click.option("--local", is_flag=True, help="Train in this process, without Ray.")
@click.option("--track", "trackers", type=click.Choice(["mlflow", "wandb"]), multiple=True, help="Tell a tracker of each trial, too.")  # fmt: skip
@_quiet
def run(spec: str, storage: str, address: str | None, local: bool, trackers: tuple[str, ...], quiet: bool) -> None:
    """Run or resume SPEC; print the verdict and write the report."""
    from ee_ray.log import keeping
    from ee_ray.sweep import open_sweep

    started = time.monotonic()
    sweep = open_sweep(spec, storage)
    sweep.store.create()
    with keeping(sweep.store, sweep.spec.name, quiet) as log:
        ledger, stopped = _train(sweep, address, local, log, trackers)
        _sample(sweep, ledger, log)
        _finish(sweep, ledger, log, time.monotonic() - started, stopped)


def _train(sweep: Any, address: str | None, local: bool, log: Any, trackers: tuple[str, ...] = ()) -> tuple[Any, str | None]:  # fmt: skip
    from ee_ray.launch import train

    _catch()
    once = threading.Lock()

    def lose(what: str) -> None:
        once.acquire()  # never released: who comes second waits for the end of the process
        log.console.show_cursor()
        log.alarm(str(ClusterLost(what)))
        # Calls to Ray would wait for a minute. What it started here ends with this process (kernel_fate_share).
        os._exit(FAILED)

    return train(sweep, address, local, log, _catch, trackers, lose)  # Ray puts handlers of its own in place


QUICK_PARAMETERS = 30_000_000  # whose samples two cores take in seconds


def _sample(sweep: Any, ledger: Any, log: Any) -> None:
    """Samples for the report, of a small model; what may go wrong with them is no failure of the run."""
    try:
        import_module("ee_ray.samples").take_samples(sweep, ledger, QUICK_PARAMETERS)
    except Exception as error:
        log.say(f"no samples of text: {type(error).__name__}: {error}")
        log.keep(traceback.format_exc())


def _catch() -> None:
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGINT, _terminate)


def _terminate(signum: int, frame: Any) -> NoReturn:
    ending.set()
    raise KeyboardInterrupt


def _finish(
    sweep: Any, ledger: Any, log: Any, seconds: float | None = None, stopped: str | None = None, as_json: bool = False,
    browser: str | None = None,
) -> None:  # fmt: skip
    """Write the report, tell the verdict, and exit 3 if stages failed, or if a run (`seconds` long) left some to train that
    no budget forbade. `as_json` prints the summary, for scripts; `browser` draws images."""
    from ee_ray.report import words
    from ee_ray.report.page import write_report
    from ee_ray.report.summary import verdict_sentence

    folder = REPORTS / sweep.spec.name
    written = write_report(sweep, ledger, folder)
    summary, page = written.summary, str(folder / "index.html")
    drawn = import_module("ee_ray.report.images").write_images(written.figures, folder / "images", browser) if browser else []  # fmt: skip
    if as_json:
        told = {"verdict": verdict_sentence(summary), "page": page, "images": [str(path) for path in drawn]}
        click.echo(json.dumps(summary | told, indent=1))
    log.tell(verdict_sentence(summary))
    if summary["optimum"] and summary["tradeoffs"]:
        log.tell(words.on_frontier(summary["tradeoffs"][0]))
    log.tell(f"search: {stopped or summary['stop_reason']}")
    if seconds is not None:
        log.tell(f"took {seconds:.0f} s")
    log.tell(f"report: {page}")
    if drawn:
        log.tell(f"images: {folder / 'images'}, {len(drawn)} files")
    _tell_failures(sweep, ledger, log)
    # Whoever only reads may come in the middle of a sweep.
    left = ledger.decision.outstanding and not stopped and seconds is not None
    if ledger.failures or left:
        sys.exit(FAILED)


def _tell_failures(sweep: Any, ledger: Any, log: Any) -> None:
    from ee_ray.told import failure_text

    for key, evidence in ledger.failures.items():
        log.alarm(failure_text(key, evidence))
        for line in evidence.get("log", [])[-5:]:
            log.alarm(f"    {line}")
        log.alarm(f"  rerun: ee-ray run {sweep.path} --storage {sweep.store.place} --local")


@_sweep_command
@click.option("--address", help="Ray cluster to join; without it one is started here, for this run.")
@click.option("--local", is_flag=True, help="Train in this process, without Ray.")
@_json
def noise(spec: str, storage: str, address: str | None, local: bool, as_json: bool) -> None:
    """Train the anchors of SPEC only; say how noisy runs are and how many the asked-for precision takes."""
    from dataclasses import replace

    from ee_ray.ledger import read_ledger
    from ee_ray.log import keeping
    from ee_ray.propose import anchors, estimate
    from ee_ray.report.precision import precision, precision_text
    from ee_ray.sweep import open_sweep

    sweep = open_sweep(spec, storage)
    search = sweep.spec.search.model_copy(update={"max_trials": len(anchors(sweep.spec))})
    sweep.store.create()
    with keeping(sweep.store, sweep.spec.name) as log:
        trained, stopped = _train(replace(sweep, spec=sweep.spec.model_copy(update={"search": search})), address, local, log)  # fmt: skip
        ledger = read_ledger(sweep.spec, sweep.data, sweep.store)
        _tell_failures(sweep, ledger, log)
        if missing := len(trained.decision.outstanding):
            log.alarm(f"{missing} of {search.max_trials} anchors are not trained{f': {stopped}' if stopped else ''}; the same command goes on")  # fmt: skip
    if missing and estimate(sweep.spec, ledger.results) is None:
        sys.exit(FAILED)
    found = precision(sweep, ledger)
    click.echo(json.dumps(found, indent=1) if as_json else fold(precision_text(found)))
    if ledger.failures or missing:
        sys.exit(FAILED)


@main.command()
@click.argument("specs", nargs=-1, required=True, metavar="SPEC SPEC...", shell_complete=_specs)
@click.option("--tokens", type=click.IntRange(min=1), help="Tokens of D_post to predict for.")
@click.option("--parameters", type=click.IntRange(min=1), help="Parameters of the model to predict for.")
@_storage
@_json
def transfer(specs: tuple[str, ...], tokens: int | None, parameters: int | None, storage: str, as_json: bool) -> None:
    """Predict the best lambda at another size of D_post, or of the model, from finished sweeps at two sizes or more."""
    from dataclasses import asdict

    from ee_ray.ledger import read_ledger
    from ee_ray.propose import estimate
    from ee_ray.transfer import OF, Size, predict, unlike

    if (tokens is None) == (parameters is None):
        raise UserError("transfer takes --tokens (of D_post) or --parameters (of the model), one of them")
    size: Size = "tokens" if tokens else "parameters"
    asked = tokens or parameters or 0
    sweeps = [_read(spec, storage) for spec in specs]
    if differing := [f"{s.path}: {line}" for s in sweeps for line in unlike(sweeps[0].spec, s.spec, size)]:
        raise UserError(differing)
    if frontiers := [sweep.path for sweep in sweeps if sweep.spec.objective.losses]:
        raise UserError(f"{path}: objective.loss is pareto: a frontier has no lambda* to predict" for path in frontiers)
    ledgers = [read_ledger(sweep.spec, sweep.data, sweep.store) for sweep in sweeps]
    optima = [estimate(sweep.spec, ledger.results) for sweep, ledger in zip(sweeps, ledgers, strict=True)]
    if missing := [s.path for s, optimum in zip(sweeps, optima, strict=True) if optimum is None]:
        raise UserError(f"{path}: no result at three levels of lambda yet: ee-ray run {path}" for path in missing)
    sizes = [s.spec.stages.posttrain.tokens if tokens else ledger.parameters for s, ledger in zip(sweeps, ledgers, strict=True)]  # fmt: skip
    if len(set(sizes)) < 2:
        raise UserError(f"all of these sweeps have {sizes[0]:,} {size} of {OF[size]}: two sizes or more are needed")
    found = predict(sizes, [optimum.p_argmin for optimum in optima if optimum], asked)
    if as_json:
        seen = [{"sweep": s.spec.name, size: n, "lambda": o.lambda_star, "ci95": o.ci95, "verdict": o.verdict} for s, n, o in zip(sweeps, sizes, optima, strict=True) if o]  # fmt: skip
        click.echo(json.dumps({"schema": 1, "sweeps": seen, "prediction": asdict(found)}, indent=1))
        return
    for sweep, n, optimum in zip(sweeps, sizes, optima, strict=True):
        assert optimum
        low, high = optimum.ci95
        click.echo(fold(f"{sweep.spec.name:<20}{n:>14,} {size}  lambda* {optimum.lambda_star:.2f} [{low:.2f}, {high:.2f}]  {optimum.verdict}"))  # fmt: skip
    click.echo(f"{'predicted':<20}{asked:>14,} {size}  lambda* {found.value:.2f} [{found.ci95[0]:.2f}, {found.ci95[1]:.2f}]")  # fmt: skip
    click.echo(f"lambda* moves by {found.shift:+.2f} [{found.shift_ci95[0]:+.2f}, {found.shift_ci95[1]:+.2f}] for each doubling of {OF[size]}")  # fmt: skip


@main.command()
@click.argument("specs", nargs=-1, required=True, metavar="SPEC SPEC...", shell_complete=_specs)
@click.option("--apart", is_flag=True, help="Side by side only: compare no losses.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=REPORTS / "compare", show_default=True, help="Where the page goes.")  # fmt: skip
@_storage
@_json
def compare(specs: tuple[str, ...], apart: bool, out: Path, storage: str, as_json: bool) -> None:
    """Put sweeps side by side: lambda*, and frontiers against that of the first.

    Losses are compared at the same fine-tuning loss, on the same held-out data only.
    """
    from ee_ray.ledger import read_ledger
    from ee_ray.report import compared
    from ee_ray.report.compared_page import write_page

    if len(specs) < 2:
        raise UserError(f"compare takes two sweeps or more, got {len(specs)}")
    sweeps = [_read(spec, storage) for spec in specs]
    sides = compared.sides(sweeps, [read_ledger(sweep.spec, sweep.data, sweep.store) for sweep in sweeps])
    gaps = [] if apart else compared.against_first(sides)
    told = compared.as_json(sides, gaps)
    page = write_page(sides, gaps, told, out)
    click.echo(
        json.dumps(told | {"page": str(page)}, indent=1) if as_json else f"{compared.text(told)}\n\npage: {page}"
    )


@_sweep_command
@click.option("--watch", is_flag=True, help="Look again every two seconds until the sweep ends, or nobody runs it.")
@_json
def status(spec: str, storage: str, watch: bool, as_json: bool) -> None:
    """Say how far SPEC is, from the store alone."""
    from ee_ray import progress
    from ee_ray.ledger import read_ledger
    from ee_ray.told import state, status_text

    sweep, heard = _read(spec, storage), time.monotonic()
    while True:
        ledger = read_ledger(sweep.spec, sweep.data, sweep.store)
        found = state(ledger)
        click.echo(json.dumps(found) if as_json else fold(status_text(sweep.spec.name, sweep.store.place, found)))
        if not watch or ledger.decision.stop:
            return
        if progress.running(sweep.store, sweep.spec.name):
            heard = time.monotonic()
        elif time.monotonic() - heard >= progress.RUNNING_SECONDS:  # a run that begins has nothing to say for a while
            click.echo(fold(f"nobody runs it: ee-ray run {spec} begins it, or goes on with it"), err=True)
            return
        time.sleep(2)


@_sweep_command
@click.option("--images", is_flag=True, help="Also each figure as PNG and SVG; a browser must be installed.")
@click.option("--samples", is_flag=True, help="Also how stages go on with held-out text; loads their weights.")
@_json
def report(spec: str, storage: str, images: bool, samples: bool, as_json: bool) -> None:
    """Rebuild the report of SPEC from the store alone."""
    from ee_ray.ledger import read_ledger
    from ee_ray.log import Log

    browser = import_module("ee_ray.report.images").browser() if images else None
    sweep = _read(spec, storage)
    ledger = read_ledger(sweep.spec, sweep.data, sweep.store)
    if samples:
        import_module("ee_ray.samples").take_samples(sweep, ledger)
    _finish(sweep, ledger, Log(quiet=as_json), as_json=as_json, browser=browser)


@main.command()
@click.argument("spec", shell_complete=_specs)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--best", is_flag=True, help="The post-trained model nearest to lambda* (the default).")
@click.option("--key", help="Any published stage, by its key or the start of it.")
@click.option("--times", type=click.IntRange(min=1), default=10, show_default=True, help="Budgets of recipe.yaml, over those of SPEC.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace an earlier export in DIR.")
@_storage
@_json
def export(spec: str, folder: Path, best: bool, key: str | None, times: int, overwrite: bool, storage: str, as_json: bool) -> None:  # fmt: skip
    """Write a trained model of SPEC into DIR for transformers to load.

    With it go its tokenizer, a model card, and recipe.yaml: the winning recipe for a larger budget.
    """
    from ee_ray.export.choice import best as best_of
    from ee_ray.export.choice import named
    from ee_ray.ledger import read_ledger

    if best and key is not None:
        raise UserError("--best and --key exclude each other")
    sweep = _read(spec, storage)
    ledger = read_ledger(sweep.spec, sweep.data, sweep.store)
    chosen = named(sweep, ledger, key) if key is not None else best_of(sweep, ledger)
    write = import_module("ee_ray.export.folder").export  # torch and transformers take seconds to import
    names = write(sweep, ledger, chosen, folder, times, overwrite)
    if as_json:
        told = {"schema": 1, "key": chosen.key, "folder": str(folder), "files": names, "how": chosen.how}
        click.echo(json.dumps(told, indent=1))
        return
    click.echo(fold(f"{chosen.key} is in {folder}: {', '.join(names)}"))
    click.echo(fold(chosen.how, 0))


@_sweep_command
@click.option("--host", default="127.0.0.1", show_default=True, help="Who may connect: this machine, or 0.0.0.0 for all that reach it.")  # fmt: skip
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: any that is free.")
def dashboard(spec: str, storage: str, host: str, port: int) -> None:
    """Serve the report of SPEC, made anew as stages publish."""
    from ee_ray.dashboard import serve

    _catch()
    ready, say = (lambda address: click.echo(f"{address} (Ctrl-C ends it)")), partial(click.echo, err=True)
    serve(_read(spec, storage), host, port, ready, say)


@_sweep_command
@_json
def verify(spec: str, storage: str, as_json: bool) -> None:
    """Re-hash what SPEC stands on and re-derive its summary; list every mismatch."""
    from ee_ray.verify import problems_of

    sweep = _read(spec, storage)
    problems, checked = problems_of(sweep, REPORTS / sweep.spec.name)
    if as_json:
        click.echo(json.dumps({"schema": 1, "checked": checked, "problems": problems}, indent=1))
    else:
        click.echo(fold("\n".join([*problems, f"{checked} items checked, {len(problems)} problems"])))
    if problems:
        sys.exit(1)


@main.command()
@_storage
@click.option("--delete", is_flag=True, help="Delete it; without this nothing is touched.")
@_json
def gc(storage: str, delete: bool, as_json: bool) -> None:
    """Say what of the store no sweep needs, and how large it is."""
    from ee_ray.gc import clear, gc_text
    from ee_ray.store import Store

    found = clear(Store(storage), delete)
    click.echo(json.dumps(found, indent=1) if as_json else fold(gc_text(found)))


@main.command()
@click.argument("keys", nargs=-1, required=True)
@_storage
@_json
def explain(keys: tuple[str, ...], storage: str, as_json: bool) -> None:
    """Say what stage KEY is, or what differs between two."""
    from ee_ray.identity import differences
    from ee_ray.store import Store

    if len(keys) > 2:
        raise UserError(f"explain takes one key or two, got {len(keys)}")
    store = Store(storage)
    records = [store.named(key) for key in keys]
    if len(records) == 1:
        click.echo(json.dumps(records[0], indent=1))
        return
    rows = differences(records[0]["payload"], records[1]["payload"])
    if as_json:
        click.echo(json.dumps([{"field": field, "a": a, "b": b} for field, a, b in rows], indent=1))
        return
    for field, a, b in rows:
        click.echo(fold(f"{field}: {a!r} -> {b!r}"))
    if not rows:
        click.echo("the same stage")


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes TAB complete commands, options and sweep files.

    For bash: eval "$(ee-ray completion bash)" in ~/.bashrc.
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(main, {}, "ee-ray", "_EE_RAY_COMPLETE").source())


@main.command()
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the random instances.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=REPORTS / "theory", show_default=True, help="Where the page and the numbers go.")  # fmt: skip
@_json
def theory(seed: int, out: Path, as_json: bool) -> None:
    """Check the theorems of the paper's linear network, and where its optimum lies."""
    from ee_ray.report.theory import theory_text, write_theory
    from ee_ray.theory.findings import findings

    found = findings(seed)
    try:
        page = write_theory(found, out)
    except OSError as error:
        raise UserError(f"{out}: cannot write the page there: {error.strerror}") from error
    click.echo(json.dumps(found, indent=1) if as_json else f"{theory_text(found)}\n\npage: {page}")


if __name__ == "__main__":
    main()
