"""What is published is whole, is published once, and is never believed when it is not what was asked for."""

import json
import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT, tiny

from ee_ray.errors import UserError
from ee_ray.plan import Point, build_trial
from ee_ray.spec.sweep import SweepSpec
from ee_ray.store import RECORD, Store

DATA = {"pre": "a" * 16, "post": "b" * 16, "ft": "c" * 16}
STAGE = build_trial(SweepSpec.model_validate(tiny()), DATA, Point(2, 0)).pretrain


def publish(store: Store, content: bytes = b"weights", key: str = STAGE.key) -> bool:
    with store.draft(key) as draft:
        (draft / "weights.safetensors").write_bytes(content)
        return store.publish(key, draft, {"kind": "pretrain", "parent": None, "payload": STAGE.identity.payload()})


def elsewhere(code: str, store: Store) -> subprocess.Popen[str]:
    """Run code in another process that knows `store`, `publish` and `STAGE`."""
    head = f"from test_store import *; store = Store({store.place!r}); "
    return subprocess.Popen([sys.executable, "-c", head + code], cwd=ROOT / "tests", stdout=subprocess.PIPE, text=True)


@pytest.fixture
def store(tmp_path) -> Store:
    store = Store(tmp_path / "store")
    store.create()
    return store


def test_a_published_stage_is_found_with_all_that_was_said_of_it(any_store):
    assert any_store.find(STAGE.key, STAGE.identity.payload()) is None
    assert publish(any_store)
    record = any_store.find(STAGE.key, STAGE.identity.payload())
    assert record["schema"] == 1 and record["kind"] == "pretrain" and record["key"] == STAGE.key
    assert any_store.published() == [STAGE.key]
    assert any_store.damage(STAGE.key) == []


@pytest.mark.parametrize("moment", ["os.fsync", "os.replace", "os.rename"])
def test_a_writer_that_is_killed_at_any_moment_publishes_nothing(store, moment):
    """Before its record is on disk, before the record has its name, before the folder has its place."""
    code = f"{moment} = lambda *_: os.kill(os.getpid(), signal.SIGKILL); publish(store, b'half')"
    assert elsewhere(code, store).wait() == -signal.SIGKILL
    assert store.published() == []
    assert store.record(STAGE.key) is None
    assert publish(store)
    assert store.published() == [STAGE.key]


def test_of_racing_writers_one_publishes_and_all_find_it(any_store):
    racers = [elsewhere(f"print(publish(store, b'{n}' * 1000))", any_store) for n in range(4)]
    won = [racer.communicate()[0].strip() for racer in racers]
    assert sorted(won) == ["False", "False", "False", "True"]
    assert any_store.damage(STAGE.key) == []
    assert [path.name for path in (any_store.root / "stages").iterdir()] == [STAGE.key]


def test_an_error_while_drafting_leaves_nothing_behind(any_store):
    with pytest.raises(ZeroDivisionError), any_store.draft(STAGE.key) as draft:
        (draft / "weights.safetensors").write_bytes(b"half")
        raise ZeroDivisionError
    assert list((any_store.root / "stages").iterdir()) == []


def test_a_key_with_another_payload_is_never_taken_for_a_hit(any_store):
    publish(any_store)
    other = {**STAGE.identity.payload(), "seed": 7}
    with pytest.raises(RuntimeError, match="another payload"):
        any_store.find(STAGE.key, other)


def test_changed_and_missing_files_are_named(store):
    publish(store)
    store.weights(STAGE.key).write_bytes(b"changed")
    assert store.damage(STAGE.key) == [f"stage {STAGE.key}: weights.safetensors does not match its hash"]
    os.unlink(store.weights(STAGE.key))
    assert store.damage(STAGE.key) == [f"stage {STAGE.key}: weights.safetensors is missing"]


def test_a_record_moved_to_another_key_is_named(store):
    publish(store)
    os.rename(store.stage(STAGE.key), store.stage("0" * 16))
    assert store.damage("0" * 16) == [f"stage {'0' * 16}: its payload gives another key"]


def test_evidence_of_a_failure_goes_when_the_stage_is_published(any_store):
    any_store.fail(STAGE.key, {"error": "out of memory", "diverged": False})
    assert any_store.failure(STAGE.key)["error"] == "out of memory"
    publish(any_store)
    assert any_store.failure(STAGE.key) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [(json.dumps({"schema": 2}), "has schema 2, this version reads 1"), ("{", "store.json cannot be read")],
)
def test_a_store_of_another_schema_is_left_alone(tmp_path, content, message):
    (tmp_path / "store.json").write_text(content)
    with pytest.raises(UserError, match=message):
        Store(tmp_path)


def test_a_record_of_another_schema_is_not_guessed_at(store):
    publish(store)
    path = store.stage(STAGE.key) / RECORD
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 9'))
    with pytest.raises(UserError, match="has schema 9"):
        store.record(STAGE.key)


def test_storage_that_cannot_be_had_is_refused(tmp_path):
    with pytest.raises(UserError, match="a directory or in a bucket, s3://BUCKET/PREFIX, got the scheme ftp"):
        Store("ftp://host/x")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be"):
        Store(tmp_path / "file" / "store").create()


def test_drafts_that_a_dead_writer_left_go_after_a_day(store):
    old, new = store.root / "stages" / ".a.tmp", store.root / "stages" / ".b.tmp"
    for path in (old, new):
        path.mkdir(parents=True)
        (path / "weights.safetensors").touch()
    os.utime(old, (0, 0))
    store.create()
    assert not old.exists() and new.exists()
