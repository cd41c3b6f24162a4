"""A live page: a sweep's report, made anew as stages publish, and what runs now. Reads the store alone.

A page asks for `state.json` every two seconds, and for the report again where its version has changed.
"""

import json
import threading
import time
from collections.abc import Callable
from functools import partial
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ee_ray.errors import UserError
from ee_ray.identity import key_of
from ee_ray.ledger import NOTES, read_ledger
from ee_ray.progress import STATES, answer_so_far, pace, running
from ee_ray.report.page import make_report
from ee_ray.report.words import sentence
from ee_ray.sweep import Sweep

LOOK_SECONDS = 1.0
SHARE = 0.25  # of the time may go into making reports: the same machine may be training


def version_of(sweep: Sweep) -> str:
    """Changes when a stage is published or fails, or the search chooses; costs three looks at the disk."""
    return key_of({"seen": json.dumps(sweep.store.version(sweep.spec.name, NOTES))})


class Page:
    """The newest report of a sweep, kept so by `follow`; `say` hears why it could not be made, once for each reason."""

    def __init__(self, sweep: Sweep, say: Callable[[str], None] = lambda trouble: None):
        self.sweep, self.version, self.html, self.say, self.trouble = sweep, "", "", say, ""

    def refresh(self) -> bool:
        """Make the report anew if the ledger has changed; whether it had."""
        if (version := version_of(self.sweep)) == self.version:
            return False
        ledger = read_ledger(self.sweep.spec, self.sweep.data, self.sweep.store)
        self.html = make_report(self.sweep, ledger, live=version).page
        self.version = version
        return True

    def follow(self, stop: threading.Event) -> None:
        """Refresh until told to stop, resting long enough after each report while a run goes on."""
        due = 0.0
        while not stop.wait(LOOK_SECONDS):
            due = self.look(due)

    def look(self, due: float) -> float:
        """Refresh, unless a run goes on and it is not `due` yet; when it is due next. What goes wrong is said, and the next
        look may do better: a bucket comes back, a folder is readable again."""
        started = time.monotonic()
        try:
            if started < due and self.running():
                return due
            made, self.trouble = self.refresh(), ""
            if not made:
                return due
        except Exception as error:
            trouble = f"the report could not be made, the page stays as it was: {type(error).__name__}: {error}"
            if trouble != self.trouble:
                self.say(trouble)
            self.trouble = trouble
        return time.monotonic() + (time.monotonic() - started) * (1 / SHARE - 1)

    def running(self) -> dict[str, Any] | None:
        return running(self.sweep.store, self.sweep.spec.name)

    def state(self) -> dict[str, Any]:
        trouble = f"<p><strong>{escape(sentence(self.trouble))}</strong></p>" if self.trouble else ""
        return {"version": self.version, "html": trouble + strip(self.running())}


def strip(live: dict[str, Any] | None) -> str:
    """What runs now, as HTML. live: what the run last noted of itself."""
    if live is None:
        return "<p>No run is going on. This page changes when one publishes stages.</p>"
    counts = live["counts"]
    said = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state] or state != "failed")
    parts = [f"<p><strong>Running.</strong> Stages: {said}.</p>", f"<p>{escape(sentence(pace(live)))}.</p>"]
    parts += [f"<p>{escape(sentence(line))}</p>" for line in answer_so_far(live)]
    for slot, kind, key, done, total in live["running"]:
        name = f"{kind} {live['names'].get(key, '')} ({key}) on {slot}"
        parts.append(f'<label>{escape(name)} <progress value="{done}" max="{max(1, total)}"></progress></label>')
    if url := live["ray_dashboard"]:
        token = "where it asks for a token, <code>ray get-auth-token</code> says it, if <code>ray get-auth-token --generate</code> made one before the run"
        parts.append(f'<p><a href="{escape(url)}">Ray\'s own dashboard</a>: nodes, actors and their logs; {token}.</p>')  # fmt: skip
    return "".join(parts)


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, page: Page, *rest: Any):
        self.page = page
        super().__init__(*rest)

    def do_GET(self) -> None:
        routes: dict[str, tuple[str, Callable[[], str]]] = {
            "/": ("text/html; charset=utf-8", lambda: self.page.html),
            "/state.json": ("application/json", lambda: json.dumps(self.page.state())),
        }
        found = routes.get(self.path.partition("?")[0])
        body = found[1]().encode() if found else b"not here\n"
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", found[0] if found else "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a page asks every two seconds."""


def serve(sweep: Sweep, host: str, port: int, ready: Callable[[str], None], say: Callable[[str], None]) -> None:
    """Serve the page of a sweep until interrupted; `ready` is called with its address once it can be opened, `say` with
    why a newer report could not be made.

    Raises:
        UserError: the address cannot be listened on.
    """
    page, stop = Page(sweep, say), threading.Event()
    try:
        server = ThreadingHTTPServer((host, port), partial(_Handler, page))
    except (OSError, OverflowError) as error:
        raise UserError(f"--host {host} --port {port}: cannot listen there: {error}: choose another with --port") from error  # fmt: skip
    with server:
        page.refresh()
        threading.Thread(target=page.follow, args=(stop,), daemon=True).start()
        ready(f"http://{host}:{server.server_address[1]}/")
        try:
            server.serve_forever()
        finally:
            stop.set()
