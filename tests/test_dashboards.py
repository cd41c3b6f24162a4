"""Dashboards of others on a sweep of ours: each is started as a person starts it, and asked what it shows."""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

PROGRAMS = Path(sys.executable).parent
SECONDS = 60


def started(command: list[str], log: Path) -> tuple[subprocess.Popen[bytes], str]:
    """A server on a port that is free, once it answers; its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    with log.open("w") as file:
        server = subprocess.Popen([*command, "--port", port], stdout=file, stderr=file)
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + SECONDS
    while True:
        try:
            ask(address, "/")
            return server, address
        except (urllib.error.URLError, ConnectionError):
            assert server.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.2)


def ask(address: str, path: str) -> bytes:
    with urllib.request.urlopen(address + path, timeout=20) as answer:
        return answer.read()


def test_optuna_dashboard_shows_every_run_with_its_lambda_and_losses(finished, tmp_path):
    program = shutil.which("optuna-dashboard", path=str(PROGRAMS))
    if program is None:
        pytest.skip("optuna-dashboard is not installed")
    server, address = started([program, str(finished.store.sweep("tiny") / "optuna.journal")], tmp_path / "log")
    try:
        (study,) = json.loads(ask(address, "/api/studies"))["study_summaries"]
        assert study["study_name"].startswith("tiny-") and study["directions"] == ["minimize"]
        trials = json.loads(ask(address, f"/api/studies/{study['study_id']}"))["trials"]
    finally:
        server.terminate()
        server.wait(timeout=20)
    rows = {(row["lambda"], row["seed"]): row for row in finished.summary()["trials"] if row["finetune_lr"] == 0.0001}
    assert len(trials) == len(rows) and {trial["state"] for trial in trials} == {"Complete"}
    for trial in trials:
        said = {each["name"]: each["param_external_value"] for each in trial["params"]}
        noted = {each["key"]: float(each["value"]) for each in trial["user_attrs"]}
        row = rows[noted["lambda"], int(said["seed"])]
        assert noted["lambda"] == int(said["level"]) / 4 and trial["values"] == [pytest.approx(row["L_ret"])]
        assert {name: noted[name] for name in ("L_im", "L_ret", "L_ft", "L_pre")} == pytest.approx(
            {name: row[name] for name in ("L_im", "L_ret", "L_ft", "L_pre")}, abs=1e-6
        )


def test_tensorboard_itself_follows_the_links_of_a_sweep(finished, tmp_path):
    folder = finished.store.sweep("tiny") / "tensorboard"
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--host", "127.0.0.1"]
    server, address = started(command, tmp_path / "log")
    try:
        links, end = {str(path.relative_to(folder)) for path in folder.glob("*/*")}, time.monotonic() + SECONDS
        while not set(found := json.loads(ask(address, "/data/plugin/scalars/tags"))) >= links:
            assert time.monotonic() < end, (len(found), len(links))
            time.sleep(0.5)
        run = next(name for name in links if "/3-finetune" in name)
        where = urllib.parse.urlencode({"run": run, "tag": "heldout/post"})
        points = json.loads(ask(address, f"/data/plugin/scalars/scalars?{where}"))
    finally:
        server.terminate()
        server.wait(timeout=20)
    key = next(key for key in finished.store.published() if key.startswith(run.rsplit("-", 1)[1]))
    assert points[-1][2] == pytest.approx(finished.store.record(key)["losses"]["post"], rel=1e-6)
