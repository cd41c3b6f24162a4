"""Live progress: a table on a terminal, a line now and then where output is a file, and a file for the live page."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ee_ray.errors import UserError
from ee_ray.store import Store

REFRESH_SECONDS = 1.0
LINE_SECONDS = 15.0
LIVE_SECONDS = 2.0
LIVE = "live.json"
RUNNING_SECONDS = 30.0  # a run that has said nothing for so long is not running, or cannot write
STATES = ("waiting", "running", "done", "failed")

Snapshot = Callable[[], dict[str, Any]]


def clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def speed(snapshot: dict[str, Any]) -> tuple[float, str]:
    """Tokens per second since training began, and the time left for the stages asked for so far, as text."""
    rate = snapshot["tokens"] / snapshot["training_seconds"] if snapshot["training_seconds"] else 0.0
    return rate, clock(snapshot["tokens_left"] / rate) if rate else "?"


def pace(snapshot: dict[str, Any]) -> str:
    """Speed, time, and what is left, in less than 80 columns."""
    (rate, left), gone = speed(snapshot), clock(snapshot["seconds"])
    if not snapshot["training_seconds"]:
        return f"{gone} gone; workers are starting"
    return f"{rate / 1000:.1f}k tokens/s; {gone} gone; left of what is asked for so far: {left}, {snapshot['tokens_left'] / 1e6:.2f}M tokens"  # fmt: skip


def headline(snapshot: dict[str, Any]) -> str:
    """Counts, speed and time in one line of less than 80 columns. Time left counts the stages asked for so far."""
    counts, (rate, left) = snapshot["counts"], speed(snapshot)
    failed = f", {counts['failed']} failed" if counts["failed"] else ""
    stages = f"{counts['done']} stages done, {counts['running']} running, {counts['waiting']} waiting{failed}"
    if not snapshot["training_seconds"]:
        return f"{stages}; {pace(snapshot)}"
    return f"{stages}; {rate / 1000:.1f}k tokens/s; {clock(snapshot['seconds'])} gone, {left} left"


def answer_so_far(snapshot: dict[str, Any]) -> list[str]:
    """How many runs there are, the best one, and the interval of lambda* or the frontier, as far as they are known."""
    best, optimum, frontier, runs = (snapshot.get(name) for name in ("best", "optimum", "frontier", "runs"))
    lines = [f"{runs['done']} runs finished, of at most {runs['most']}"] if runs else []
    lines += [f"best so far {best['loss']:.4f} at lambda {best['lambda']:g}, seed {best['seed']}"] if best else []
    if optimum:
        low, high = optimum["ci95"]
        lines.append(f"lambda* so far {optimum['lambda']:.2f} [{low:.2f}, {high:.2f}], {optimum['verdict'].replace('_', ' at ')}")  # fmt: skip
    if frontier:
        lines.append(f"frontier so far: {frontier['kept']} of {frontier['of']} levels, known to {frontier['known']:.3f} nats")  # fmt: skip
    return lines


def picture(snapshot: dict[str, Any]) -> Group:
    """The table that a terminal shows."""
    counts = snapshot["counts"]
    states = Table(box=None, padding=(0, 2), title=None)
    states.add_column("stages")
    for state in STATES:
        states.add_column(state, justify="right", style="red" if state == "failed" and counts["failed"] else "")
    for kind, of in snapshot.get("kinds", {}).items():
        states.add_row(kind, *(str(of[state]) for state in STATES))
    states.add_row("all", *(str(counts[state]) for state in STATES), style="bold")
    running = Table.grid(padding=(0, 2))
    for slot, kind, key, done, total in snapshot["running"]:
        name = snapshot.get("names", {}).get(key, key)
        running.add_row(
            slot, f"{kind} {name}", ProgressBar(total, done, width=18), f"{done / 1000:.0f}k/{total / 1000:.0f}k"
        )
    return Group(states, Text(pace(snapshot)), *map(Text, answer_so_far(snapshot)), running)


@contextmanager
def repeatedly(work: Callable[[threading.Event], None], failed: Callable[[Exception], None]) -> Iterator[None]:
    """Run `work` in a thread while the block runs; it is to end when the event is set. What it raises ends it alone."""
    stop = threading.Event()

    def keep() -> None:
        try:
            work(stop)
        except Exception as error:  # the board is gone: the sweep's own thread says why
            if not stop.is_set():
                failed(error)

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=2 * REFRESH_SECONDS)


@contextmanager
def watching(console: Console, snapshot: Snapshot) -> Iterator[None]:
    """Show `snapshot()` every second while the block runs. A snapshot that fails ends the display, not the work."""

    def live(stop: threading.Event) -> None:
        with Live(console=console, auto_refresh=False, transient=True) as display:
            while not stop.wait(REFRESH_SECONDS):
                display.update(picture(snapshot()), refresh=True)

    def lines(stop: threading.Event) -> None:
        while not stop.wait(LINE_SECONDS):
            now = snapshot()
            console.print("\n".join([headline(now), *(f"  {line}" for line in answer_so_far(now))]), highlight=False)

    show = live if console.is_terminal else lines
    with repeatedly(show, lambda error: console.print(f"progress display ended: {error}")):
        yield
        console.print(headline(snapshot()))


def running(store: Store, sweep: str) -> dict[str, Any] | None:
    """What a run of the sweep that goes on last noted of itself (`noting`); None if nobody runs it."""
    live: dict[str, Any] | None = store.read_sweep(sweep, LIVE)
    return live if live and time.time() - live["time"] <= RUNNING_SECONDS else None


@contextmanager
def noting(store: Store, sweep: str, snapshot: Snapshot, ray_dashboard: str | None) -> Iterator[None]:
    """Keep what `ee-ray dashboard` shows of a running sweep in the store while the block runs."""

    def keep(stop: threading.Event) -> None:
        while not stop.wait(LIVE_SECONDS):
            store.write_sweep(
                sweep, LIVE, {"schema": 1, "time": time.time(), "ray_dashboard": ray_dashboard, **snapshot()}
            )

    try:
        with repeatedly(keep, lambda error: None):
            yield
    finally:
        with suppress(UserError):  # a store that is away: whoever worked says so
            store.clear_sweep(sweep, LIVE)
