"""An S3 server in a process of its own (moto's), behind a relay that can be closed, as a network or a server that is down is."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import boto3

# moto looks whether an object is there and writes it in two steps, and serves requests in threads: S3 does both in one.
SERVE = """
import sys, threading
from werkzeug.serving import make_server
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
application, one = DomainDispatcherApplication(create_backend_app), threading.Lock()
def alone(environ, start_response):
    with one:
        return application(environ, start_response)
server = make_server("127.0.0.1", 0, alone, threaded=True)
print(server.server_port, flush=True)
server.serve_forever()
"""


class Relay:
    """Hands on what comes to `port`, answers `late` seconds after they come. While closed, connections are refused, and those
    that were open are cut."""

    def __init__(self, target: int):
        self.target, self.late, self._open, self._pairs = target, 0.0, None, set()
        self._listen(0)
        self.port = self._open.getsockname()[1]

    def _listen(self, port: int) -> None:
        self._open = socket.create_server(("127.0.0.1", port), backlog=128)
        threading.Thread(target=self._accept, args=(self._open,), daemon=True).start()

    def _accept(self, listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = listening.accept()
                try:
                    there = socket.create_connection(("127.0.0.1", self.target))
                except OSError:
                    here.close()
                    continue
                self._pairs |= {here, there}
                for a, b in ((here, there), (there, here)):
                    threading.Thread(target=self._hand_on, args=(a, b, a is there), daemon=True).start()

    def _hand_on(self, a: socket.socket, b: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := a.recv(1 << 16):
                time.sleep(self.late if answers else 0.0)
                b.sendall(data)
        for end in (a, b):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            self._pairs.discard(end)

    def close(self) -> None:
        self._open.shutdown(socket.SHUT_RDWR)
        self._open.close()
        for end in list(self._pairs):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def open(self) -> None:
        self._listen(self.port)


class Server:
    """`stop` and `go_on` are those of its process: it answers nothing meanwhile, and keeps connections open."""

    def __init__(self, process: subprocess.Popen, port: int):
        self.process, self.relay = process, Relay(port)
        self.environment = {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.relay.port}",
        }

    def client(self):
        named = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
        return boto3.client("s3", endpoint_url=self.environment["AWS_ENDPOINT_URL"], **named)

    def stop(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    @contextlib.contextmanager
    def away(self, seconds: float, how: str = "refuses") -> Iterator[None]:
        """Let the server be away while the block begins, and come back after so many seconds."""
        away, back = (self.relay.close, self.relay.open) if how == "refuses" else (self.stop, self.go_on)
        away()
        timer = threading.Timer(seconds, back)
        timer.start()
        try:
            yield
        finally:
            timer.join()


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Server]:
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-c", SERVE], stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout
            server = Server(process, int(process.stdout.readline()))
            yield server
        finally:
            os.kill(process.pid, signal.SIGCONT)
            process.kill()
            process.wait()


def wait_for(condition, *running: subprocess.Popen, seconds: float = 120) -> None:
    """Wait until the condition holds, while all of these run."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end and [process.poll() for process in running] == [None] * len(running)
        time.sleep(0.05)
