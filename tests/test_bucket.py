"""A store in a bucket: the laws that its server could break, and a sweep that ends as on a disk whatever the server does.

What holds for both kinds of store is in test_store.py and test_lease.py.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, namedtuple
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import SimpleQueue

import pytest
from conftest import Place, ray_environment
from s3 import wait_for
from test_store import STAGE, elsewhere, publish

from ee_ray import lease
from ee_ray.bucket import CACHE
from ee_ray.dashboard import Page
from ee_ray.errors import Unreachable, UserError
from ee_ray.lease import claim, newest
from ee_ray.objects import PATIENCE, Objects, said
from ee_ray.store import Store
from ee_ray.sweep import open_sweep

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def store(in_bucket) -> Store:
    store = Store(in_bucket)
    store.create()
    return store


def other_host(store: Store, tmp_path: Path, monkeypatch) -> Store:
    """The same store seen from a host with a mirror of its own, which is empty."""
    monkeypatch.setenv(CACHE, str(tmp_path / f"cache{len(list(tmp_path.iterdir()))}"))
    return Store(store.place)


@pytest.mark.parametrize("moment", ["upload", "create"])
def test_a_writer_that_is_killed_at_any_moment_publishes_nothing(store, moment, tmp_path, monkeypatch):
    """Before its files are up, and before its record is."""
    code = f"import ee_ray.objects; ee_ray.objects.Objects.{moment} = lambda *_: os.kill(os.getpid(), signal.SIGKILL); publish(store, b'half')"  # fmt: skip
    assert elsewhere(code, store).wait() == -signal.SIGKILL
    there = other_host(store, tmp_path, monkeypatch)
    assert there.published() == [] and there.record(STAGE.key) is None
    assert publish(there) and store.published() == [STAGE.key]
    assert store.weights_checked(STAGE.key).read_bytes() == b"weights"


def test_another_host_reads_what_was_published_and_nothing_that_was_changed_since(store, s3, tmp_path, monkeypatch):
    publish(store, b"as published")
    there = other_host(store, tmp_path, monkeypatch)
    assert there.weights_checked(STAGE.key).read_bytes() == b"as published"
    there.weights(STAGE.key).write_bytes(b"changed in the mirror")
    with pytest.raises(RuntimeError, match="and it is fetched again"):
        there.weights_checked(STAGE.key)

    prefix = f"{store.place.removeprefix('s3://stores/')}/files/stages/{STAGE.key}/"
    (item,) = s3.client().list_objects_v2(Bucket="stores", Prefix=prefix)["Contents"]
    s3.client().put_object(Bucket="stores", Key=item["Key"], Body=b"changed in the bucket")
    assert store.damage(STAGE.key) == [f"stage {STAGE.key}: weights.safetensors does not match its hash"]
    with pytest.raises(RuntimeError, match=r"does not match its hash: remove s3://stores/.*, and it is made again"):
        other_host(store, tmp_path, monkeypatch).weights(STAGE.key)
    s3.client().delete_object(Bucket="stores", Key=item["Key"])
    assert store.damage(STAGE.key) == [f"stage {STAGE.key}: weights.safetensors is missing"]


def test_a_host_that_has_nothing_yet_fetches_what_others_made_once(store, tmp_path, monkeypatch):
    made = store.data("f" * 16)
    made.mkdir(parents=True)
    (made / "manifest.json").write_text("{}")
    (made / "train-00000.bin").write_bytes(b"tokens")
    store.publish_made(made)
    there = other_host(store, tmp_path, monkeypatch)
    assert [path.name for path in there.data("f" * 16).glob("[!.]*")] == ["manifest.json"], "enough to plan with"
    assert (there.corpus("f" * 16) / "train-00000.bin").read_bytes() == b"tokens"
    monkeypatch.setattr(Objects, "download", None)
    assert there.corpus("f" * 16) == Store(store.place).corpus("f" * 16)


def test_what_is_removed_and_trained_again_is_not_taken_from_an_old_mirror(store, tmp_path, monkeypatch):
    there = other_host(store, tmp_path, monkeypatch)
    publish(there, b"old")
    assert store.published() == [STAGE.key] and store.weights(STAGE.key).read_bytes() == b"old"
    time.sleep(1.1)  # S3's times are whole seconds
    there.items.remove("stages", STAGE.key)
    assert there.published() == []
    publish(there, b"new")
    assert store.published() == [STAGE.key]
    assert store.weights_checked(STAGE.key).read_bytes() == b"new"


def test_names_in_a_record_cannot_lead_out_of_the_mirror(store, s3, tmp_path):
    key = f"{store.place.removeprefix('s3://stores/')}/stages/{STAGE.key}.json"
    record = {"schema": 1, "sha256": {"../../../weights.safetensors": "0" * 64}}
    s3.client().put_object(Bucket="stores", Key=key, Body=json.dumps(record))
    with pytest.raises(RuntimeError, match="leads out of the store"):
        store.items.fetch("stages", STAGE.key)


def test_a_holder_elsewhere_is_dead_once_its_beats_are_missed_by_the_clock_of_the_server(store, monkeypatch):
    store.create_claim(f"{STAGE.key}.3", b'{"holder": "far", "machine": "another", "pid": 1}')
    monkeypatch.setattr(time, "time", lambda: 0.0)  # this host's own clock is years off, and nobody asks it
    assert claim(store, STAGE, "b") is None
    time.sleep(3.1)
    missed = newest(store, STAGE.key).age
    assert missed > 1
    monkeypatch.setattr(lease, "DEAD_SECONDS", missed)
    store.renew_claim(f"{STAGE.key}.3")
    assert claim(store, STAGE, "b") is None, "alive"
    monkeypatch.setattr(lease, "DEAD_SECONDS", 1.0)
    time.sleep(2.1)
    held = claim(store, STAGE, "b")
    assert held and newest(store, STAGE.key).generation == 4
    held.release()
    assert store.claims() == [], "the dead one's claim went with it"
    with pytest.raises(OSError):
        store.renew_claim(f"{STAGE.key}.3")
    assert store.claims() == [], "a claim that was taken over does not come back"


def test_a_claim_that_could_not_be_renewed_while_the_server_was_away_is_alive(store, s3, monkeypatch):
    store.create_claim(f"{STAGE.key}.1", b'{"holder": "far", "machine": "another", "pid": 1}')
    monkeypatch.setattr(lease, "DEAD_SECONDS", 1.5)
    with s3.away(3.0):
        assert claim(store, STAGE, "b") is None, "its holder could not say so"
    time.sleep(1.6)
    held = claim(store, STAGE, "b")
    assert held, "and has not said so since"
    held.release()


def test_files_of_stages_go_from_a_mirror_whose_disk_gets_full_and_are_fetched_again(store, monkeypatch):
    publish(store)
    weights = store.weights(STAGE.key)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(total=1000, used=900, free=100))
    publish(store, key="1" * 16)
    assert weights.exists(), "in use"
    os.utime(weights, (0, 0))
    publish(store, key="2" * 16)
    assert not weights.exists() and store.record(STAGE.key)
    assert store.weights_checked(STAGE.key).read_bytes() == b"weights"


def test_a_write_whose_answer_was_lost_is_known_as_ones_own(store):
    assert store.create_claim("a.1", b"mine") and store.create_claim("a.1", b"mine")
    assert not store.create_claim("a.1", b"another's")
    store.renew_claim("a.1")


def test_a_server_that_is_away_is_waited_for_and_one_that_stays_away_is_said_once(store, s3, monkeypatch, caplog):
    for how in ("refuses", "hangs"):
        caplog.clear()
        with s3.away(2.0, how):
            store.write_sweep("tiny", "a.json", how)
        assert store.read_sweep("tiny", "a.json") == how
    with s3.away(2.0):
        publish(store)
    assert [message for message in caplog.messages if "no answer, asking again for 300 s" in message]
    monkeypatch.setenv(PATIENCE, "3")
    s3.relay.close()
    try:
        with pytest.raises(Unreachable, match=r"no answer for \d s: .*the same command goes on"):
            store.published()
        started = time.monotonic()
        with pytest.raises(Unreachable):
            store.fail(STAGE.key, {})
        assert time.monotonic() - started < 3, "what is given up is not waited for again"
    finally:
        s3.relay.open()
    assert store.published() == [STAGE.key]


def test_whoever_interrupts_the_waiting_does_not_wait_for_what_is_cleared_up(store, s3, monkeypatch):
    s3.relay.close()
    try:
        soon = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])
        monkeypatch.setattr(said, "warning", lambda message: soon.start())
        with pytest.raises(KeyboardInterrupt):
            store.published()
        started = time.monotonic()
        with pytest.raises(Unreachable):
            store.claims()
        assert time.monotonic() - started < 60, "not for 300 s"
    finally:
        s3.relay.open()


def test_a_process_that_is_to_end_waits_for_no_server_that_hangs(store, s3, monkeypatch):
    """Not where it has failed before, nor where a thread is in the middle of waiting; and its claims it leaves to age."""

    def wait() -> None:
        with pytest.raises(Unreachable):
            store.published()

    held, waiting = claim(store, STAGE, "a"), threading.Thread(target=wait)
    monkeypatch.setattr("ee_ray.objects.ending", ended := threading.Event())
    s3.relay.close()
    monkeypatch.setattr(said, "warning", lambda message: ended.set())  # it has failed once, and waits
    waiting.start()
    waiting.join(60)
    s3.relay.open()
    assert not waiting.is_alive()
    assert newest(store, STAGE.key).holder == "a", "a server that answers is asked as ever"
    s3.stop()
    try:
        started = time.monotonic()
        held.release()
        assert time.monotonic() - started < 60, "not for 300 s"
    finally:
        s3.go_on()


class Hanging(BaseHTTPRequestHandler):
    """Says that an object is there, and never sends it."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "8")
        self.send_header("ETag", '"a"')
        self.send_header("Last-Modified", "Thu, 26 Nov 2026 12:00:00 GMT")
        self.end_headers()

    def do_GET(self) -> None:
        self.server.asked.put(self.path)
        self.server.over.wait()

    def log_message(self, *_) -> None:
        pass


def test_a_download_is_not_asked_for_again_by_a_process_that_is_to_end(in_bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("ee_ray.objects.TIMEOUTS", (1, 1))
    monkeypatch.setattr("ee_ray.objects.ending", ended := threading.Event())
    with ThreadingHTTPServer(("127.0.0.1", 0), Hanging) as server:
        server.asked, server.over, server.daemon_threads = SimpleQueue(), threading.Event(), True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        objects = Objects(f"s3://stores/x?endpoint_override=127.0.0.1:{server.server_port}&scheme=http")
        with ThreadPoolExecutor(1) as pool:
            download = pool.submit(objects.download, "weights", tmp_path / "weights")
            server.asked.get(timeout=60)
            ended.set()
            with pytest.raises(Unreachable):
                download.result()
        assert server.asked.empty(), "one request, one timeout"
        server.over.set()
        server.shutdown()
    assert list(tmp_path.glob("*weights*")) == []


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://missing/store", "NoSuchBucket"),
        ("s3:///store", "names no bucket"),
        ("s3://stores/x?access_key=a", "must hold no credentials"),
        ("s3://stores/x?colour=red", "colour is not known here: there are endpoint_override, scheme, region"),
    ],
)
def test_places_that_cannot_be_had_are_refused(in_bucket, uri, message):
    with pytest.raises(UserError, match=message):
        Store(uri)


def test_the_endpoint_can_stand_in_the_uri(store, s3, monkeypatch):
    publish(store)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    there = Store(f"{store.place}?endpoint_override=127.0.0.1:{s3.relay.port}&scheme=http&region=us-east-1")
    assert there.published() == [STAGE.key] and there.root == store.root, "the same store, the same mirror"


def test_a_server_that_ignores_conditions_is_refused(store, monkeypatch):
    request = Objects._request
    monkeypatch.setattr(Objects, "_request", lambda self, verb, IfNoneMatch=None, **named: request(self, verb, **named))
    with pytest.raises(UserError, match="ignores conditional writes"):
        store.create()


def run(place: Place, cache: Path, *program: str, **environment: str) -> subprocess.Popen[str]:
    """`ee-ray run --local` on a host with a mirror of its own."""
    command = [
        sys.executable,
        *(program or ("-m", "ee_ray.cli")),
        "run",
        "tiny.yaml",
        "--local",
        "--storage",
        place.storage,
    ]
    settings = {**ray_environment(), "OMP_NUM_THREADS": "1", CACHE: str(cache), **environment}
    return subprocess.Popen(command, cwd=place.folder, env=settings, stderr=subprocess.PIPE, text=True)


def begun(place: Place) -> Counter[str]:
    return Counter(event["key"] for event in place.store.journalled("tiny") if event["event"] == "begun")


def test_two_hosts_train_each_stage_once_though_the_server_is_away_for_twenty_seconds(finished, in_bucket, s3, tmp_path, monkeypatch):  # fmt: skip
    place = Place(tmp_path, in_bucket)
    place.write()
    racers = [run(place, tmp_path / f"host{number}") for number in range(2)]
    wait_for(lambda: len(place.store.published()) >= 4, *racers)
    with s3.away(20.0):
        before = [racer.poll() for racer in racers]
    said = [racer.communicate(timeout=200)[1] for racer in racers]
    assert before == [None, None] and [racer.returncode for racer in racers] == [0, 0], said
    assert place.numbers() == finished.numbers()
    assert set(begun(place).values()) == {1} and begun(place).keys() == set(place.store.published())
    assert place.store.claims() == []

    monkeypatch.setenv(CACHE, str(tmp_path / "third"))
    asked = []
    request = Objects._request
    monkeypatch.setattr(
        Objects, "_request", lambda self, verb, **named: asked.append(verb) or request(self, verb, **named)
    )
    third = Place(tmp_path, in_bucket)
    assert "30 of 30 stages" in third.ee_ray("status", "tiny.yaml").stdout
    assert len(asked) <= 4, "listings, not a question for each stage"
    assert third.json("plan", "tiny.yaml", "--json")["tokens"]["to_train"] == 0
    third.ee_ray("report", "tiny.yaml")
    ours, theirs = third.summary(), finished.summary()
    assert {name: ours[name] for name in ours if name != "provenance"} == {name: theirs[name] for name in theirs if name != "provenance"}  # fmt: skip
    assert not list(third.store.root.glob("data/*/*.bin")), "no corpus was fetched to read a report"
    assert "0 problems" in third.ee_ray("verify", "tiny.yaml").stdout
    third.ee_ray("export", "tiny.yaml", "model")
    key = third.store.published()[0]
    assert third.json("explain", key)["key"] == key
    assert Page(open_sweep(tmp_path / "tiny.yaml", in_bucket)).refresh()


AT_THE_THIRD = """
import time
from pathlib import Path
import ee_ray.cli
from ee_ray.store import Store
publish, before = Store.publish, []
def late(self, *stage):
    while len(before) == 2 and not Path("go").exists():
        time.sleep(0.02)
    before.append(stage)
    return publish(self, *stage)
Store.publish = late
ee_ray.cli.main()
"""


def whole_states(store: Store, s3) -> set[str]:
    """Keys of the stages of which a state is in the bucket with all its files."""
    states = f"{store.place.removeprefix('s3://stores/')}/work/"
    found = s3.client().list_objects_v2(Bucket="stores", Prefix=states).get("Contents", [])
    return {item["Key"].removeprefix(states).split("/")[0] for item in found}


def test_a_server_that_is_gone_ends_a_run_in_one_message_and_another_host_goes_on_in_mid_stage(finished, in_bucket, s3, tmp_path, monkeypatch):  # fmt: skip
    place = Place(tmp_path, in_bucket)
    place.write(execution__checkpoint_steps=4)
    first = run(place, tmp_path / "first", "-c", AT_THE_THIRD, **{PATIENCE: "1"})
    wait_for(lambda: len(place.store.published()) == 2 and whole_states(place.store, s3) - set(place.store.published()), first)  # fmt: skip
    s3.relay.close()
    (tmp_path / "go").touch()
    try:
        said = first.communicate(timeout=100)[1]
    finally:
        s3.relay.open()
    assert first.returncode == 2 and said.count("error: ") == 1 and "Traceback" not in said, said
    kept = place.store.published()
    place.store.delete_claims(entry.name for entry in place.store.claims())  # as 30 s would
    place.ee_ray("run", "tiny.yaml", "--local")
    assert place.numbers() == finished.numbers()
    resumed = [event["step"] for event in place.store.journalled("tiny") if event["event"] == "begun" and event["step"]]
    assert resumed and len(kept) == 2 and set(kept) <= set(place.store.published())
    assert place.store.items.entries("work") == [], "states go when their stage is published"


@pytest.mark.slow
def test_ctrl_c_ends_a_run_though_the_server_hangs(in_bucket, s3, tmp_path):
    """Its state is being uploaded by a thread that would wait for minutes, and its claim is to be given back."""
    place = Place(tmp_path, in_bucket)
    place.write(stages__pretrain__tokens=400_000, execution__checkpoint_seconds=0.5)
    running = run(place, tmp_path / "host")
    wait_for(lambda: place.store.items.entries("work"), running, seconds=120)
    s3.stop()
    try:
        time.sleep(1)
        running.send_signal(signal.SIGINT)
        said = running.communicate(timeout=60)[1]
    finally:
        s3.go_on()
    assert running.returncode == 130 and "the same command continues" in said, said


def test_garbage_in_a_bucket_is_shown_with_its_size_and_goes_only_when_told(finished, in_bucket, s3, tmp_path):
    place = Place(tmp_path, in_bucket)
    small = {"search__max_trials": 6, "search__seeds": [0, 1]}
    place.ee_ray("run", place.write(**small), "--local")
    assert place.json("gc", "--json")["garbage"] == []
    place.ee_ray("run", place.write(**small, stages__posttrain__learning_rate=0.004), "--local")
    before = set(place.store.published())
    found = place.json("gc", "--json")
    assert {item["what"] for item in found["garbage"]} == {"stages of sweep tiny that no sweep asks for"}
    assert 0 < found["garbage_bytes"] < found["bytes"] and set(place.store.published()) == before
    place.ee_ray("gc", "--delete")
    assert len(place.store.published()) == len(before) - len(found["garbage"])
    after = place.json("gc", "--json")
    assert after["garbage"] == [] and after["bytes"] == found["bytes"] - found["garbage_bytes"]
    place.ee_ray("verify", "tiny.yaml")
