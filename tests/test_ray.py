"""Sweeps on real Ray clusters of this machine, with processes killed in the middle. A cluster takes 30 s to start."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import psutil
import pytest
from conftest import Place, ray_environment

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]

# Pretraining of about 3 s: long enough to be killed in the middle of.
LONGER = {"stages__pretrain__tokens": 262_144, "search__max_trials": 6}
TRAIN_WORKER, TRIAL_DRIVER = "ray::RayTrainWorker", "ray::lambda0"  # as Ray's dashboard calls them, too


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The sweep of these tests in one process, without Ray and without interruption."""
    place = Place(tmp_path_factory.mktemp("unbroken"))
    place.ee_ray("run", place.write(**LONGER), "--local")
    return place


class Run:
    """`ee-ray run` in a process of its own, and the processes that it started."""

    def __init__(
        self,
        place: Place,
        spec: str,
        *arguments: str,
        program: Sequence[str] = ("-m", "ee_ray.cli"),
        **environment: str,
    ):
        command = [sys.executable, *program, "run", spec, *arguments]
        self.log = place.folder / f"{spec}.log"
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, cwd=place.folder, env=ray_environment() | environment, stdout=log, stderr=log)  # fmt: skip

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def wait_for(self, condition: Callable[[], object], seconds: float = 400) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)

    def kill_one(self, name: str) -> None:
        """kill -9 the first of our own processes whose command line starts with `name`."""

        self.wait_for(lambda: self.named(name))
        self.named(name)[0].kill()

    def named(self, name: str) -> list[psutil.Process]:
        return [child for child in self.children() if name in " ".join(_command(child))[:200]]

    def end(self, sign: signal.Signals | None = None) -> int:
        """Send a signal, if one is given, and wait; the exit status, once no process of the run is left.

        Two of Ray's own agents need up to two minutes to notice that a killed driver is gone; they hold nothing.
        """
        started = [child for child in self.children() if sign != signal.SIGKILL or "Agent" not in child.name()]
        if sign:
            os.kill(self.process.pid, sign)
        status = self.process.wait(240)
        _, left = psutil.wait_procs(started, timeout=30)
        assert not left, left
        return status


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_whatever_is_killed_the_published_stays_and_the_numbers_are_those_of_an_unbroken_run(unbroken, tmp_path):
    place = Place(tmp_path)
    spec = place.write(**LONGER)

    first = Run(place, spec)
    first.wait_for(place.store.published)
    first.kill_one(TRAIN_WORKER)
    first.wait_for(lambda: len(place.store.published()) >= 4)
    assert first.end(signal.SIGINT) == 130
    assert "the same command continues" in first.log.read_text()
    kept = place.numbers()
    assert 4 <= len(kept) < 22

    second = Run(place, spec)
    second.wait_for(lambda: len(place.store.published()) > len(kept))
    second.kill_one(TRIAL_DRIVER)
    second.wait_for(lambda: len(place.store.published()) >= len(kept) + 4)
    assert second.end(signal.SIGKILL) == -9
    assert place.numbers().items() >= kept.items()
    kept = place.numbers()
    assert len(kept) < 22

    third = Run(place, spec)
    third.wait_for(lambda: len(place.store.published()) > len(kept))
    third.kill_one("ray::Board")
    assert third.end() == 0, third.log.read_text()
    assert place.numbers() == unbroken.numbers()
    assert place.numbers().items() >= kept.items()
    assert place.summary()["optimum"] == unbroken.summary()["optimum"]
    assert place.summary()["stages"]["reused"] == unbroken.summary()["stages"]["reused"]


def test_a_cluster_that_is_lost_is_said_within_seconds_in_one_message(tmp_path):
    place = Place(tmp_path)
    run = Run(place, place.write(**LONGER))
    run.wait_for(place.store.published)
    run.kill_one("gcs/gcs_server")
    assert run.process.wait(40) == 3  # silence alone would take 50 s
    said = run.log.read_text()
    assert "lost: the cluster's control store (gcs) on its head" in said
    assert "everything published is kept, the same command goes on" in " ".join(said.split())
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_range_of_workers_takes_what_there_is_and_shards_the_model_over_it(finished, tmp_path):
    """Up to four sharded workers are asked for, and the machine has room for two."""
    place = Place(tmp_path)
    half = max(1, (os.cpu_count() or 1) // 2)
    changes = {"execution__workers": [1, 4], "execution__cpus_per_worker": half, "execution__parallel": "fsdp"}
    run = Run(place, place.write(**changes, search__max_trials=6))
    assert run.end() == 0, run.log.read_text()
    ours, theirs = place.numbers(), finished.numbers()
    assert ours.keys() <= theirs.keys() and len(ours) == 22
    records = [place.store.record(key) for key in ours]
    assert {(record["workers"], record["parallel"]) for record in records} == {(2, "fsdp")}
    for key, (losses, _) in ours.items():
        assert losses == pytest.approx(theirs[key][0], abs=1e-3)


def test_more_workers_than_the_machine_has_cpus_is_said_in_one_message(tmp_path):
    place = Place(tmp_path)
    run = Run(place, place.write(execution__cpus_per_worker=999))
    assert run.end() == 2
    said = run.log.read_text()
    assert "a stage needs 999 CPUs" in said and "lower execution.workers" in said
    assert "Traceback" not in said


CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
cluster.add_node(num_cpus=int(sys.argv[1]), num_gpus=int(sys.argv[2]))
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@contextlib.contextmanager
def cluster(cpus: int, gpus: int = 0) -> Iterator[str]:
    """A head that holds drivers and one node that holds workers; the head's address. GPUs are announced, not there."""
    command = [sys.executable, "-c", CLUSTER, str(cpus), str(gpus)]
    process = subprocess.Popen(command, env=ray_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip()
    finally:
        process.communicate(timeout=60)


def at_once(place: Place, *sweeps: str) -> dict[str, int]:
    """How many stages were trained at once, at most, while one of a kind was; by kind, from what the sweeps noted."""
    most, running = Counter(), set()
    events = [event for sweep in sweeps for event in place.store.journalled(sweep)]
    for event in events:
        running ^= {event["key"]}
        kind = place.store.record(event["key"])["kind"]
        most[kind] = max(most[kind], len(running))
    return dict(most)


def test_stages_of_a_part_of_a_gpu_share_it_and_those_of_a_whole_one_have_it_for_themselves(finished, tmp_path):
    """One GPU, announced to Ray on a machine that has none: Ray's bookkeeping is the real one, training is on CPUs. Slots of
    both shapes want it, and give way to each other."""
    place = Place(tmp_path)
    execution = {"gpus_per_worker": 1.0, "finetune": {"gpus_per_worker": 0.5}}
    longer = {"stages__finetune__tokens": 65_536}  # so that the second slot comes up before the first has done it all
    spec = place.write(search__seeds=[0], search__max_trials=3, search__runs_per_round=3, execution=execution, **longer)
    with cluster(cpus=3, gpus=1) as address:
        run = Run(place, spec, "--address", address, EE_RAY_DEVICE="cpu")
        assert run.end() == 0, run.log.read_text()
    ours, theirs = place.numbers(), finished.numbers()
    assert len(ours) == 11 and sum(ours[key] == theirs.get(key) for key in ours) == 5, "all but the longer fine-tunings"
    assert at_once(place, "tiny") == {"pretrain": 1, "posttrain": 1, "finetune": 2}


def test_two_runs_on_one_cluster_whose_drivers_outnumber_its_only_slot_train_what_they_share_once(tmp_path):
    """Four drivers and room for one slot: whoever waited with it in hand for the other run would wait for ever. The second
    sweep differs in its post-training and shares every pretraining, and at lambda = 1 everything."""
    place = Place(tmp_path)
    few = {"search__seeds": [0], "search__max_trials": 3}
    files = [place.write(**few), place.write("other.yaml", name="other", stages__posttrain__learning_rate=0.004, **few)]
    place.ee_ray("prepare", files[0])
    with cluster(cpus=1) as address:
        runs = [Run(place, file, "--address", address) for file in files]
        assert [run.end() for run in runs] == [0, 0], [run.log.read_text() for run in runs]
    events = [event for sweep in ("tiny", "other") for event in place.store.journalled(sweep)]
    begun = Counter(event["key"] for event in events if event["event"] == "begun")
    assert set(begun.values()) == {1} and set(begun) == set(place.store.published())
    summaries = [place.summary(name) for name in ("tiny", "other")]
    assert [summary["stages"]["failed"] for summary in summaries] == [0, 0]
    assert [len(summary["trials"]) for summary in summaries] == [6, 6]
    planned = sum(summary["stages"]["planned"] for summary in summaries)
    assert len(begun) == planned - 5, "three pretrainings and the two fine-tunings at lambda = 1 are common"


GROWING = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
sys.stdin.readline()
second = cluster.add_node(num_cpus=1)
sys.stdin.readline()
cluster.remove_node(second, allow_graceful=False)
sys.stdin.read()
cluster.shutdown()
"""
SOON = "import ee_ray.runner as r, ee_ray.cli as c; r.RESIZE_SECONDS = 5.0; c.main()"


@pytest.mark.slow
def test_a_stage_grows_onto_a_node_that_comes_and_goes_on_with_fewer_workers_when_it_is_killed(tmp_path):
    """Two pretrainings of a minute: the second worker joins in the first, and its node dies in the second.

    Over ten thousand steps at this rate the order of additions alone moves losses on data that is not trained on by 0.1 nats
    (another micro-batch does more than another number of workers), and on data that is by 0.002.
    """
    place = Place(tmp_path)
    changes = {"stages__pretrain__tokens": 2_621_440, "search__anchors": [0.0, 1.0], "search__anchor_seeds": 1}
    spec = place.write(**changes, search__max_trials=2, execution__workers=[1, 2], execution__checkpoint_seconds=5)

    def pretrained() -> list[dict]:
        records = [place.store.record(key) for key in place.store.published()]
        return [record for record in records if record["payload"]["kind"] == "pretrain"]

    def begun() -> list[dict]:
        return [line for line in place.store.journalled("tiny") if line["event"] == "begun"]

    command = [sys.executable, "-c", GROWING]
    nodes = subprocess.Popen(command, env=ray_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        run = Run(place, spec, "--address", nodes.stdout.readline().strip(), program=("-c", SOON))
        run.wait_for(lambda: list(place.store.root.glob("work/*/*")))
        print(file=nodes.stdin, flush=True)
        run.wait_for(pretrained, seconds=400)
        assert pretrained()[0]["workers"] == 2
        steps = [line["step"] for line in begun() if line["key"] == pretrained()[0]["key"]]
        assert len(steps) == 2 and steps[1] > 0
        run.wait_for(lambda: list(place.store.root.glob("work/*/*")))
        print(file=nodes.stdin, flush=True)
        assert run.end() == 0, run.log.read_text()
    finally:
        nodes.communicate(timeout=60)
    assert sorted(record["workers"] for record in pretrained()) == [1, 2]

    unbroken = Place(tmp_path / "unbroken")
    unbroken.folder.mkdir()
    unbroken.ee_ray("run", unbroken.write(**changes, search__max_trials=2), "--local")
    theirs = unbroken.numbers()
    assert place.numbers().keys() == theirs.keys()
    for record in pretrained():
        assert record["losses"]["pre"] == pytest.approx(theirs[record["key"]][0]["pre"], abs=0.01)
