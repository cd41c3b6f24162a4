"""A sweep on a Ray cluster whose hosts share nothing but a bucket: each has a mirror of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Place, ray_environment
from s3 import wait_for
from test_ray import Run

from ee_ray.objects import PATIENCE

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

LONGER = {"stages__pretrain__tokens": 262_144, "search__max_trials": 6, "execution__checkpoint_steps": 50}
HOSTS = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
hosts = [cluster.add_node(num_cpus=1, env_vars={"EE_RAY_CACHE": f"{sys.argv[1]}/host{n}"}) for n in range(2)]
print(cluster.address, flush=True)
sys.stdin.readline()
cluster.remove_node(hosts[0], allow_graceful=False)
print("removed", flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture
def cluster(in_bucket, tmp_path):
    """A head without CPUs and two hosts of one; a line to it takes the first away, as a spot instance goes."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOSTS, tmp_path], env={**ray_environment(), PATIENCE: "60"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    try:
        yield process
    finally:
        process.communicate(timeout=90)


def run(place: Place, address: str, **environment: str) -> subprocess.Popen[str]:
    """As a cluster's head does it, which is a home folder and has no shared disk."""
    command = [sys.executable, ROOT / "sweeps/submit.py", "tiny.yaml", "--address", address, "--storage", place.storage]
    with (place.folder / "log").open("a") as log:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        settings = {**ray_environment(), "HOME": str(place.folder), "EE_RAY_SHARED": "none", "PATH": path, **environment}  # fmt: skip
        return subprocess.Popen(command, cwd=place.folder, env=settings, stdout=log, stderr=log, text=True)


def test_hosts_that_share_a_bucket_train_each_stage_once_and_go_on_where_a_lost_one_was(cluster, in_bucket, s3, tmp_path):  # fmt: skip
    (tmp_path / "unbroken").mkdir()
    unbroken = Place(tmp_path / "unbroken")
    unbroken.ee_ray("run", unbroken.write(**LONGER), "--local")
    place, address = Place(tmp_path, in_bucket), cluster.stdout.readline().strip()
    place.write(**LONGER)
    driver = run(place, address)
    wait_for(lambda: len(place.store.published()) >= 3, driver, seconds=150)
    with s3.away(20.0):
        assert driver.poll() is None
    wait_for(lambda: list((tmp_path / "host0").glob("*/work/*/0*")), driver)  # half-way there
    cluster.stdin.write("away\n")
    cluster.stdin.flush()
    assert cluster.stdout.readline() == "removed\n"
    assert driver.wait(300) == 0, (tmp_path / "log").read_text()
    assert place.numbers() == unbroken.numbers()
    events = place.store.journalled("tiny")
    assert sum(event["event"] == "published" for event in events) == len(place.store.published())
    assert {path.parent.parent.name for path in tmp_path.glob("host*/*/data")} == {"host0", "host1"}
    assert place.store.claims() == [] and place.store.items.entries("work") == []


def test_a_bucket_that_is_gone_ends_a_sweep_on_a_cluster_in_one_message(cluster, in_bucket, s3, tmp_path):
    place, address = Place(tmp_path, in_bucket), cluster.stdout.readline().strip()
    place.write(**LONGER)
    driver = run(place, address, **{PATIENCE: "5"})
    wait_for(place.store.published, driver, seconds=150)
    s3.relay.close()
    try:
        assert driver.wait(240) == 2, (tmp_path / "log").read_text()
    finally:
        s3.relay.open()
    said = (tmp_path / "log").read_text()
    assert said.count("\nerror: ") == 1 and "no answer for" in said.partition("\nerror: ")[2], (
        said
    )  # Tune tells trials of its own
    assert place.store.published()


def test_ctrl_c_ends_a_sweep_on_ray_with_its_own_status_though_the_server_hangs(in_bucket, s3, tmp_path):
    """Slots that publish wait for the server and hear of nothing else; to shut Ray down over them would be status 1."""
    place = Place(tmp_path, in_bucket)
    spec = place.write(**LONGER)
    sweep = Run(place, spec, "--storage", place.storage)
    sweep.wait_for(place.store.published)
    s3.stop()
    try:
        os.kill(sweep.process.pid, signal.SIGINT)
        assert sweep.process.wait(120) == 130, sweep.log.read_text()
    finally:
        s3.go_on()
    assert "the same command continues" in sweep.log.read_text()
