"""Whether what a run stands on still answers: the head's control store, and the raylet of the driver's own node.

Asked by opening their ports, and not through Ray: its calls wait for a minute where one of them is gone, and then end the
process without a word (rpc_client.h, "Failed to connect to GCS within 60 seconds").
"""

import _thread
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Literal

ASK_SECONDS = 0.5
PATIENCE_SECONDS = 2.0
SILENT_SECONDS = 50.0  # less than Ray's own minute

Answer = Literal["open", "refused", "silent"]


@dataclass(frozen=True)
class Port:
    """Where a process of the cluster listens; `of`: what people call it."""

    of: str
    host: str
    number: int


def ask(port: Port) -> Answer:
    """A port that refuses has lost its process; a silent one is on a host that is busy, or cannot be reached."""
    try:
        socket.create_connection((port.host, port.number), PATIENCE_SECONDS).close()
    except ConnectionRefusedError:
        return "refused"
    except OSError:
        return "silent"
    return "open"


def verdict(port: Port, answer: Answer, silent_for: float) -> str | None:
    """What is to be said of a port that must be given up; None if it need not be.

    silent_for: seconds since it last answered.
    """
    place = f"{port.of} ({port.host}:{port.number})"
    if answer == "refused":
        return f"{place} has ended"
    if answer == "silent" and silent_for >= SILENT_SECONDS:
        return f"{place} has not answered for {silent_for:.0f} s"
    return None


def gone(ports: Sequence[Port]) -> str | None:
    """What has ended, by one look at each port."""
    return next((told for port in ports if (told := verdict(port, ask(port), 0.0))), None)


@contextmanager
def watched(ports: Sequence[Port], lost: Callable[[str], None]) -> Iterator[None]:
    """Look at the ports while the block runs. Once one must be given up, `lost` is called with what is to be said, in
    another thread; if it returns, the block is interrupted as by Ctrl-C."""
    stop = threading.Event()

    def look() -> None:
        heard = dict.fromkeys(ports, monotonic())
        while not stop.wait(ASK_SECONDS):
            for port in ports:
                answer, now = ask(port), monotonic()
                heard[port] = now if answer == "open" else heard[port]
                if (told := verdict(port, answer, now - heard[port])) and not stop.is_set():
                    lost(told)
                    _thread.interrupt_main()
                    return

    threading.Thread(target=look, daemon=True).start()
    try:
        yield
    finally:
        stop.set()
