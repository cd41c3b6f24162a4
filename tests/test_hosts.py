"""The documented way to a cluster of one's own machines, walked on three hosts that this machine pretends to be.

The cluster's file is docs/cluster-local.yaml itself. Changed in it: addresses, user and key; one CPU for each worker
host, so that a stage of two workers must span both; and no installation from a network, for the hosts see this
machine's environment.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, tiny
from hosts import Host, Rack, why_not

from ee_ray.store import Store

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(900)]

WATCH = "cd /mnt/ee_ray && ee-ray status ~/ee_ray/sweeps/tiny.yaml"
TRAIN_WORKER = "ray::RayTrainWorker"
ASK = """
import sys, urllib.error, urllib.request
headers = {"Authorization": "Bearer " + sys.argv[1]} if sys.argv[1:] else {}
try:
    print(urllib.request.urlopen(urllib.request.Request("http://127.0.0.1:8265/api/jobs/", headers=headers)).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


@dataclass
class Cluster:
    """A cluster that `ray up` made, as its owner sees it: from the laptop, by the command line of Ray."""

    rack: Rack
    file: Path

    def ray(self, command: str, *arguments: object, status: int = 0, seconds: float = 180) -> str:
        done = self.rack.laptop.run("bash", "-c", f'cd {ROOT} && ray "$@"', "ray", command, *arguments, seconds=seconds)
        said = done.stdout + done.stderr
        assert done.returncode == status, f"ray {command}: exit {done.returncode}\n{said}"
        return said

    @property
    def head(self) -> Host:
        return self.rack.hosts[0]

    @property
    def shared(self) -> Path:
        return self.rack.folder / "shared"


def furnish(host: Host, *lines: str) -> None:
    """A home with the project's environment in it, where `ray up` would install one."""
    (host.home / "ee_ray").mkdir()
    (host.home / "ee_ray" / ".venv").symlink_to(sys.prefix)
    # A raylet ends itself when its agents have not answered in time, which three hosts on two busy cores may miss.
    usual = ["export PYTHONPATH=~/ee_ray RAY_USAGE_STATS_ENABLED=0 RAY_agent_register_timeout_ms=120000", *lines]
    (host.home / ".bashrc").write_text("\n".join(usual) + "\n")


def cluster_file(rack: Rack) -> dict:
    config = yaml.safe_load((ROOT / "docs/cluster-local.yaml").read_text())
    head, *workers = [host.address for host in rack.hosts]
    config["provider"] |= {"head_ip": head, "worker_ips": workers}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(rack.key)}
    config["setup_commands"] = [command for command in config["setup_commands"] if "pip install" not in command]
    config["worker_start_ray_commands"][-1] += " --num-cpus=1"
    return config


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := why_not():
        pytest.skip(f"no hosts on this machine: {reason}")
    rack = Rack(tmp_path_factory.mktemp("rack"), ["head", "worker1", "worker2"], keep=[ROOT])
    try:
        furnish(rack.laptop, "export PATH=~/ee_ray/.venv/bin:$PATH RAY_AUTH_MODE=token")
        for host in rack.hosts:
            furnish(host)
        file = rack.folder / "cluster.yaml"
        file.write_text(yaml.safe_dump(cluster_file(rack)))
        cluster = Cluster(rack, file)
        cluster.ray("get-auth-token", "--generate")
        cluster.ray("up", "-y", file)
        yield cluster
    finally:
        rack.down()


def send_spec(cluster: Cluster, **changes: object) -> None:
    """Bring the tiny sweep, two workers a stage, to where `ray up` has put the others."""
    spec = cluster.rack.laptop.home / "tiny.yaml"
    spec.write_text(yaml.safe_dump(tiny(execution__workers=2, **changes)))
    cluster.ray("rsync-up", cluster.file, spec, "~/ee_ray/sweeps/tiny.yaml")


@contextmanager
def tunnel(cluster: Cluster) -> Iterator[None]:
    """The head's dashboard and job API on the laptop, as long as the block runs."""
    command = f"ray dashboard {cluster.file}"
    shown = subprocess.Popen(cluster.rack.laptop.inside("bash", "-c", command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        end = time.monotonic() + 60
        while cluster.rack.laptop.run("bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8265").returncode:
            assert time.monotonic() < end, "no tunnel"
            time.sleep(0.5)
        yield
    finally:
        cluster.rack.laptop.run("pkill", "-f", "[r]ay dashboard|[s]sh ")  # of the laptop's own processes
        shown.wait(30)


def test_a_submitted_sweep_trains_stages_that_span_two_hosts_and_leaves_its_report_on_the_shared_disk(
    cluster, finished, tmp_path
):
    """Of two workers the order of additions differs, and nothing else: 1e-3 nats is a hundredth of what seeds differ by."""
    send_spec(cluster, search__max_trials=6)
    log = tmp_path / "submit.log"
    command = f"cd {ROOT} && ray submit {cluster.file} sweeps/submit.py -- sweeps/tiny.yaml"
    with log.open("w") as out:
        submit = subprocess.Popen(cluster.rack.laptop.inside("bash", "-c", command), stdout=out, stderr=out)
    most, end = [0, 0, 0], time.monotonic() + 400
    while submit.poll() is None and time.monotonic() < end:
        most = max(most, [host.processes(TRAIN_WORKER) for host in cluster.rack.hosts], key=sum)
        time.sleep(1)
    said = log.read_text()

    assert submit.poll() == 0, said
    assert most == [0, 1, 1], "one worker on each worker host at once, none on the head"
    assert "stages done" in said and "report: reports/tiny/index.html" in said
    store = Store(cluster.shared / "store")
    assert len(store.published()) == 22
    assert {store.record(key)["workers"] for key in store.published()} == {2}
    theirs = finished.numbers()
    for key in store.published():
        assert store.record(key)["losses"] == pytest.approx(theirs[key][0], abs=1e-3)
    summary = json.loads((cluster.shared / "reports/tiny/summary.json").read_text())
    assert summary["stages"]["failed"] == 0 and (cluster.shared / "reports/tiny/index.html").exists()


def test_a_job_goes_on_without_the_laptop_and_is_watched_from_afar(cluster):
    send_spec(cluster, search__max_trials=8)
    api = ("--address", "http://127.0.0.1:8265")
    job = ("--submission-id", "tiny", "--no-wait", "--working-dir", ".", "--", "python", "sweeps/submit.py", "sweeps/tiny.yaml")  # fmt: skip
    with tunnel(cluster):
        cluster.ray("job", "submit", *api, *job)
    end = time.monotonic() + 300
    while "8 of 8 trials" not in (said := cluster.ray("exec", cluster.file, WATCH)):
        assert time.monotonic() < end, said
        time.sleep(5)
    with tunnel(cluster):
        while "Job 'tiny' succeeded" not in (said := cluster.ray("job", "status", *api, "tiny")):
            assert time.monotonic() < end, said + cluster.ray("job", "logs", *api, "tiny")
            time.sleep(2)
        assert "report: reports/tiny/index.html" in cluster.ray("job", "logs", *api, "tiny")


def test_a_submitted_mistake_is_said_and_the_status_is_not_0(cluster):
    said = cluster.ray("submit", cluster.file, "sweeps/submit.py", "--", "sweeps/none.yaml", status=1)
    assert "error:" in said and "none.yaml" in said and "Traceback" not in said


def test_the_token_is_asked_for_and_readable_by_its_owner_alone(cluster):
    head, token = cluster.head, (cluster.rack.laptop.home / ".ray/auth_token").read_text()
    python = head.home / "ee_ray/.venv/bin/python"
    assert [head.run(python, "-c", ASK, *words).stdout.strip() for words in ([], ["wrong"], [token])] == ["401", "403", "200"]  # fmt: skip
    modes = {host.name: oct((host.home / ".ray/auth_token").stat().st_mode & 0o777) for host in cluster.rack.hosts}
    assert modes == {"head": "0o600", "worker1": "0o600", "worker2": "0o600"}


def test_the_dashboard_is_closed_to_other_machines(cluster):
    asked = cluster.rack.laptop.run("bash", "-c", f"exec 3<>/dev/tcp/{cluster.head.address}/8265")
    assert asked.returncode and "refused" in asked.stderr


def test_ray_down_stops_the_head(cluster):
    assert cluster.head.processes("raylet")
    cluster.ray("down", "-y", cluster.file)
    assert not cluster.head.processes("raylet")
