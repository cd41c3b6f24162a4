"""Live progress in a terminal; a line now and then where output is a file."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

REFRESH_SECONDS = 1.0
LINE_SECONDS = 15.0


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def headline(snapshot: dict[str, Any]) -> str:
    """Counts, speed and time in one line of less than 80 columns. Time left counts the stages asked for so far."""
    counts, seconds = snapshot["counts"], snapshot["seconds"]
    rate = snapshot["tokens"] / seconds if seconds else 0.0
    left = _clock(snapshot["tokens_left"] / rate) if rate else "?"
    failed = f", {counts['failed']} failed" if counts["failed"] else ""
    return (
        f"{counts['done']} stages done, {counts['running']} running, {counts['waiting']} waiting{failed}; "
        f"{rate / 1000:.1f}k tokens/s; {_clock(seconds)} gone, {left} left"
    )


def _picture(snapshot: dict[str, Any]) -> Group:
    table = Table.grid(padding=(0, 2))
    for slot, kind, key, done, total in snapshot["running"]:
        table.add_row(slot, f"{kind} {key}", ProgressBar(total, done, width=24), f"{done / 1000:.0f}k of {total / 1000:.0f}k tokens")  # fmt: skip
    return Group(Text(headline(snapshot)), table)


@contextmanager
def watching(console: Console, snapshot: Callable[[], dict[str, Any]]) -> Iterator[None]:
    """Show `snapshot()` every second while the block runs. A snapshot that fails ends the display, not the work."""
    stop = threading.Event()

    def live() -> None:
        with Live(console=console, auto_refresh=False, transient=True) as display:
            while not stop.wait(REFRESH_SECONDS):
                display.update(_picture(snapshot()), refresh=True)

    def lines() -> None:
        while not stop.wait(LINE_SECONDS):
            console.print(headline(snapshot()))

    def show() -> None:
        try:
            (live if console.is_terminal else lines)()
        except Exception as error:  # the board is gone: the sweep's own thread says why
            if not stop.is_set():
                console.print(f"progress display ended: {error}")

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
        console.print(headline(snapshot()))
    finally:
        stop.set()
        thread.join(timeout=2 * REFRESH_SECONDS)
