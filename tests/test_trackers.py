"""MLflow and Weights & Biases are told of each trial, and of no secret."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import Place, ray_environment
from ray.tune.logger import LoggerCallback

from ee_ray.plan import Point
from ee_ray.search import Job
from ee_ray.sweep import open_sweep
from ee_ray.trackers import END_SECONDS, HTTP, Tracked, recipe, results

INSTALLED = [name for name in ("mlflow", "wandb") if importlib.util.find_spec(name)]


@pytest.fixture
def job(finished) -> Job:
    sweep = open_sweep(finished.folder / "tiny.yaml", finished.store.root)
    return Job(sweep.spec, sweep.data, sweep.store.place)


def test_a_tracker_that_is_not_installed_is_named_with_what_brings_it(copy, monkeypatch):
    monkeypatch.setattr("ee_ray.launch.find_spec", lambda name: None)
    said = " ".join(copy.ee_ray("run", "tiny.yaml", "--track", "mlflow", "--track", "wandb", status=2).stderr.split())
    assert "pip install mlflow-skinny" in said and "pip install wandb" in said


def test_without_tune_there_is_nobody_to_tell_a_tracker(copy, monkeypatch):
    monkeypatch.setattr("ee_ray.launch.find_spec", lambda name: object())
    assert "--local does without" in copy.ee_ray("run", "tiny.yaml", "--local", "--track", "mlflow", status=2).stderr


def test_what_is_told_is_the_recipe_and_the_losses_of_the_ledger(job, finished):
    trial = job.trial({"level": 2, "seed": 1})
    assert trial.point == Point(2, 1)
    said = recipe(job, trial)
    assert (said["lambda"], said["seed"], said["sweep"]) == (0.5, 1, "tiny")
    assert (said["posttrain.learning_rate"], said["finetune.learning_rates"]) == (0.002, [0.0001, 0.001])
    told = results(job, trial)
    for row in finished.summary()["trials"]:
        if (row["lambda"], row["seed"]) == (0.5, 1):
            for name in ("L_im", "L_ret", "L_ft", "L_pre"):
                assert told[f"{name}.lr{row['finetune_lr']:g}"] == row[name]
    assert told["L_ret"] == told["L_ret.lr0.0001"] and told["pretrain.tokens"] == 8192 + 1024
    assert told["finetune.lr0.001.loss"] > 0 and told["posttrain.grad_norm"] > 0


def tell_of_a_trial(tracked: Tracked) -> None:
    """What Tune would say of one."""
    result = {"training_iteration": 1, "failed_stages": 0}
    trial = SimpleNamespace(trial_id="a", config={"level": 2, "seed": 1}, local_path="/nowhere", last_result=result)
    tracked.setup()
    tracked.on_trial_start(1, [], trial)
    tracked.on_trial_result(1, [], trial, result)
    tracked.on_trial_complete(1, [], trial)
    tracked.on_experiment_end([trial])


class Asking(LoggerCallback):
    """A tracker that asks its server at each step, without any patience of its own."""

    def __init__(self, address: str):
        self.address = address

    def setup(self, *of, **info):
        urllib.request.urlopen(self.address)


@pytest.fixture
def silent_server():
    """It takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_server_that_never_answers_holds_the_sweep_for_no_longer_than_it_waits_at_its_end(
    job, silent_server, monkeypatch
):
    monkeypatch.setattr("ee_ray.trackers._open", lambda name, sweep: Asking(silent_server))
    monkeypatch.setitem(END_SECONDS, "mlflow", 0.5)
    heard: list[str] = []
    began = time.monotonic()
    tell_of_a_trial(Tracked("mlflow", job, heard.append))
    assert 0.5 <= time.monotonic() - began < 60
    assert len(heard) == 1 and heard[0].startswith("--track mlflow: has not answered within 0.5 s of the sweep's end")


@pytest.mark.skipif("mlflow" not in INSTALLED, reason="pip install mlflow-skinny")
def test_mlflow_itself_is_left_when_its_server_never_answers(job, silent_server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", silent_server)
    monkeypatch.setitem(HTTP, "MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    heard: list[str] = []
    began = time.monotonic()
    tell_of_a_trial(Tracked("mlflow", job, heard.append))
    assert time.monotonic() - began < END_SECONDS["mlflow"] + 60
    assert len(heard) == 1 and "is left" in heard[0]


def test_a_tracker_that_fails_is_said_once_and_left(job, monkeypatch):
    """And the password that its address may hold is not repeated."""
    heard: list[str] = []
    monkeypatch.setattr(
        "ee_ray.trackers._open",
        lambda name, sweep: (_ for _ in ()).throw(ConnectionError("http://me:secret@host/api refused")),
    )
    tell_of_a_trial(Tracked("mlflow", job, heard.append))
    assert heard == ["--track mlflow: is left, the sweep goes on: ConnectionError: http://host/api refused"]


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.skipif(not INSTALLED, reason="no tracker is installed: pip install mlflow-skinny wandb")
def test_real_trackers_hold_every_trial_and_no_key_is_written_anywhere(tmp_path):
    place, secret = Place(tmp_path), f"{os.getpid():040x}"
    environment = {**ray_environment(), "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "MLFLOW_TRACKING_PASSWORD": secret,
                   "WANDB_MODE": "offline", "WANDB_API_KEY": secret}  # fmt: skip
    asked = [word for name in INSTALLED for word in ("--track", name)]
    command = [sys.executable, "-m", "ee_ray.cli", "run", place.write(search__max_trials=6), *asked]
    before = set(Path("/tmp/ray").glob("session_2*"))
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert "is left" not in done.stderr
    recipes = {(row["lambda"], row["seed"]) for row in place.summary()["trials"]}
    if "mlflow" in INSTALLED:
        assert _in_mlflow(environment["MLFLOW_TRACKING_URI"]) == {
            (row["lambda"], row["seed"]): pytest.approx(row["L_ret"])
            for row in place.summary()["trials"]
            if row["finetune_lr"] == 0.0001
        }
    if "wandb" in INSTALLED:
        assert len(list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))) == len(recipes)
    places = [tmp_path, *set(Path("/tmp/ray").glob("session_2*")) - before]
    found = subprocess.run(["grep", "-rl", secret, *map(str, places)], capture_output=True, text=True)
    assert found.stdout == "" and secret not in done.stdout + done.stderr


def _in_mlflow(uri: str) -> dict[tuple[float, int], float]:
    """L_ret by (lambda, seed), as tags name them."""
    client = importlib.import_module("mlflow").MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("tiny")
    runs = client.search_runs([experiment.experiment_id])
    assert all(run.info.status == "FINISHED" and run.data.tags["sweep"] == "tiny" for run in runs)
    assert all(run.data.params["pretrain.tokens"] == "8192" for run in runs)
    return {(float(run.data.tags["lambda"]), int(run.data.tags["seed"])): run.data.metrics["L_ret"] for run in runs}
