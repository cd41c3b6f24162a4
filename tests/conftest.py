"""What tests share: a sweep small enough to train in seconds, and the command line run as people run it."""

import base64
import contextlib
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import settings
from s3 import Server, serving

from ee_ray.cli import main
from ee_ray.store import Store

# A shell starts what it puts into the background deaf to Ctrl-C, and children inherit that: tests interrupt some of theirs.
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.pop("COLUMNS", None)  # xdist sets it, and what is printed would be folded as for a terminal

settings.register_profile("ee_ray", deadline=None)  # machines that others use too have no time of their own
settings.load_profile("ee_ray")


# Files of which some tests start clusters. One process has them all, for two clusters at once are too much for two cores.
CLUSTERS = {
    "test_bucket_ray",
    "test_cluster",
    "test_hosts",
    "test_ray",
    "test_scatter",
    "test_security",
    "test_trackers",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first."""
    items.sort(key=lambda item: item.path.stem not in CLUSTERS)
    marked = {item.path.stem for item in items if {"ray", "hosts"} & {mark.name for mark in item.iter_markers()}}
    assert marked <= CLUSTERS, marked


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Of two processes that test (make test) one starts all clusters; the tests of any other file stay together, for they share
    what is set up for them. (xdist's own groups do not work with pytest 9.2.)"""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "clusters" if Path(file).stem in CLUSTERS else file

    return ByFile(config, log)


ROOT = Path(__file__).resolve().parent.parent
CORPORA = ROOT.parent / "shared" / "corpora"

TINY = """
schema: 1
name: tiny
model: {model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2}
sequence_length: 32
data:
  pre: {source: "builtin:web", size: 30_000}
  post: {source: "builtin:music", size: 20_000}
  ft: {source: "builtin:chemistry", size: 20_000}
  heldout_fraction: 0.3
  heldout_windows: 16
stages:
  pretrain: {tokens: 8192, global_batch_size: 8, learning_rate: 4e-3}
  posttrain: {tokens: 2048, global_batch_size: 4, learning_rate: 2e-3}
  finetune: {tokens: 2048, global_batch_size: 8, learning_rates: [1e-4, 1e-3]}
search: {ladder: 4, anchors: [0, 0.5, 1], seeds: [0, 1], max_trials: 8, runs_per_round: 2, ci_width: 0.01}
objective: {finetune_lr: 1e-4, practical: 0.0001}
"""


def figures_of(page: str) -> dict:
    """The figures that a page carries in itself, by name, as Plotly takes them."""
    found = re.search(r'id="packed-data">([^<]*)<', page)
    assert found
    return json.loads(gzip.decompress(base64.b64decode(found[1])))["figures"]


def fetched_by(page: str) -> list[str]:
    """What a browser would ask a network for."""
    return re.findall(r'<(?:script|link|img)[^>]*?(?:src|href)="(?!data:)[^"]*"', page)


def tiny(**changes: object) -> dict:
    """The tiny sweep as a mapping; changes are dotted paths with __ for the dot: stages__pretrain__tokens=4096."""
    spec = yaml.safe_load(
        TINY.replace("4e-3", "0.004").replace("2e-3", "0.002").replace("1e-4", "0.0001").replace("1e-3", "0.001")
    )
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = spec
        for name in parents:
            place = place.setdefault(name, {})
        place[last] = value
    return spec


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write the tiny sweep, with changes, into the test's folder; returns its path."""

    def write_spec(file: str = "tiny.yaml", **changes: object) -> Path:
        path = tmp_path / file
        path.write_text(yaml.safe_dump(tiny(**changes)))
        return path

    return write_spec


def ray_environment() -> dict[str, str]:
    return {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


def ee_ray(*arguments: object, cwd: Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "ee_ray.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=ray_environment(), capture_output=True, text=True, timeout=timeout)


class Place:
    """A folder in which a sweep is run by the command line, as people do it; `storage`: the store, if it is elsewhere."""

    def __init__(self, folder: Path, storage: str | None = None):
        self.folder, self.storage = folder, storage
        self.store = Store(storage or folder / "store")

    def write(self, file: str = "tiny.yaml", **changes: object) -> str:
        (self.folder / file).write_text(yaml.safe_dump(tiny(**changes)))
        return file

    def ee_ray(self, *arguments: object, status: int = 0) -> Result:
        """Run a command, in this process to spare 9 s of imports, and insist on its exit status."""
        elsewhere = ["--storage", self.storage] if self.storage else []
        with contextlib.chdir(self.folder):
            done = CliRunner().invoke(main, [*map(str, arguments), *elsewhere])
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == status, f"exit {done.exit_code}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *arguments: object) -> dict:
        return json.loads(self.ee_ray(*arguments).stdout)

    def summary(self, sweep: str = "tiny") -> dict:
        return json.loads((self.folder / "reports" / sweep / "summary.json").read_text())

    def numbers(self) -> dict[str, tuple]:
        """What training gave, by stage: held-out losses and the hash of the weights. Equal means bit for bit."""
        records = [self.store.record(key) for key in self.store.published()]
        return {r["key"]: (r["losses"], r["sha256"]["weights.safetensors"]) for r in records}


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An S3 server with the bucket `stores`."""
    with serving(tmp_path_factory.mktemp("s3")) as server:
        server.client().create_bucket(Bucket="stores")
        yield server


@pytest.fixture
def in_bucket(s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a store that nobody has used; environment and mirror are this test's, and those of processes it starts."""
    for name, value in {**s3.environment, "EE_RAY_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    return f"s3://stores/{uuid.uuid4().hex}/store"


@pytest.fixture(params=["directory", "bucket"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A store of each kind."""
    directory = request.param == "directory"
    store = Store(tmp_path / "store" if directory else request.getfixturevalue("in_bucket"))
    store.create()
    return store


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The tiny sweep, run to its end in one process without interruption. To be read, not changed."""
    place = Place(tmp_path_factory.mktemp("finished"))
    place.ee_ray("run", place.write(), "--local")
    return place


@pytest.fixture
def copy(finished: Place, tmp_path: Path) -> Place:
    """A copy of the finished sweep that a test may change."""
    shutil.copytree(finished.folder, tmp_path, dirs_exist_ok=True)
    return Place(tmp_path)


@pytest.fixture
def bench(write):
    """Stores with the tiny sweep's data, on which single stages are run."""
    from bench import Bench

    return lambda **changes: Bench(write, **changes)


@pytest.fixture
def windows():
    import numpy as np
    import torch

    return torch.from_numpy(np.random.default_rng(0).integers(1, 255, (4, 33)))
