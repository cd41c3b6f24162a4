"""Garbage is what no sweep needs; it is shown with its size, and goes only when that is asked for."""

import json
import os
import shutil

import pytest
from conftest import Place

from ee_ray.disk import size


def files(place: Place) -> set[str]:
    return {str(path.relative_to(place.store.root)) for path in place.store.root.rglob("*") if path.is_file()}


def age(path, days: float = 2) -> None:
    then = path.lstat().st_mtime - days * 86_400
    os.utime(path, (then, then), follow_symlinks=False)


def kinds(found: dict) -> set[str]:
    return {item["what"] for item in found["garbage"]}


def test_a_finished_sweep_holds_no_garbage_and_keeps_all_that_it_has(copy):
    before = files(copy)
    found = copy.json("gc", "--delete", "--json")
    assert found["garbage"] == [] and found["sweeps"] == ["tiny"]
    assert files(copy) == before
    copy.ee_ray("verify", "tiny.yaml")


def test_stages_that_a_changed_sweep_no_longer_asks_for_are_shown_and_go_only_when_told(copy):
    copy.ee_ray("run", copy.write(stages__posttrain__learning_rate=0.004), "--local")
    before = files(copy)
    found = copy.json("gc", "--json")
    gone = {item["path"] for item in found["garbage"]}
    assert kinds(found) == {"stages of sweep tiny that no sweep asks for"}
    assert found["garbage_bytes"] == sum(size(copy.store.root / path) for path in gone) > 0
    assert files(copy) == before and "nothing deleted: add --delete" in copy.ee_ray("gc").stdout

    planned = copy.json("plan", "tiny.yaml", "--json")
    report = copy.summary()
    copy.ee_ray("gc", "--delete")
    assert not any(os.path.exists(path) for path in gone)
    assert copy.json("plan", "tiny.yaml", "--json")["stages"] == planned["stages"]
    copy.ee_ray("verify", "tiny.yaml")
    copy.ee_ray("report", "tiny.yaml")
    assert copy.summary() == report
    assert copy.json("gc", "--json")["garbage"] == []


def test_what_an_unfinished_sweep_of_another_user_needs_stays(copy):
    """Its stages were trained by a sweep that asks for other ones now."""
    copy.write("theirs.yaml", name="theirs", search__max_trials=6)
    copy.ee_ray("run", "theirs.yaml", "--local")
    shutil.rmtree(copy.store.sweep("tiny"))
    before = set(copy.store.published())
    copy.ee_ray("gc", "--delete")
    assert set(copy.store.published()) == before, "one ladder, the same stages"
    copy.ee_ray("verify", "theirs.yaml")


def test_without_any_sweep_left_all_stages_and_corpora_can_go(copy):
    shutil.rmtree(copy.store.sweep("tiny"))
    for path in (copy.store.root / "data").iterdir():
        age(path)
    found = copy.json("gc", "--delete", "--json")
    assert kinds(found) == {"stages of sweep tiny that no sweep asks for", "data that no sweep reads"}
    assert copy.store.published() == [] and "kept for no sweep" in copy.ee_ray("gc").stdout


def test_of_a_sweep_that_was_never_registered_everything_stays(copy):
    (copy.store.sweep("tiny") / "spec.json").unlink()
    before = files(copy)
    found = copy.json("gc", "--delete", "--json")
    assert found["garbage"] == [] and found["unregistered"] == ["tiny"]
    assert files(copy) == before


def test_drafts_states_and_half_packed_corpora_go_once_nobody_comes_back_to_them(copy):
    root, key = copy.store.root, copy.store.published()[0]
    leftovers = {
        "abandoned drafts": root / "stages" / f".{key}.abcd.tmp",
        "states of stages that are published": root / "work" / key,
        "states of stages that no sweep asks for": root / "work" / ("0" * 16),
        "corpora half packed and left": root / "data" / "abc.partial",
    }
    fresh = [root / "stages" / ".new.tmp", root / "work" / ("1" * 16), root / "data" / "new.partial"]
    for path in (*leftovers.values(), *fresh):
        path.mkdir(parents=True)
        (path / "file").write_bytes(b"x" * 1000)
    for path in leftovers.values():
        age(path, 15)
    found = copy.json("gc", "--json")
    assert kinds(found) == leftovers.keys() and {item["bytes"] for item in found["garbage"]} == {1000}
    copy.ee_ray("gc", "--delete")
    assert not any(path.exists() for path in leftovers.values()) and all(path.exists() for path in fresh)


def test_a_link_in_the_store_is_removed_and_what_it_points_to_is_not(copy, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "precious").write_text("x")
    link = copy.store.root / "data" / ("0" * 16)
    link.symlink_to(outside)
    age(link)
    copy.ee_ray("gc", "--delete")
    assert not link.is_symlink() and (outside / "precious").exists()


def test_a_registration_of_a_later_version_stops_everything(copy):
    path = copy.store.sweep("tiny") / "spec.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "spec": {"schema": 2}}))
    before = files(copy)
    assert "so nothing can be called garbage" in copy.ee_ray("gc", "--delete", status=2).stderr
    assert files(copy) == before


def test_a_place_that_is_no_store_is_not_made_one(tmp_path):
    place = Place(tmp_path)
    assert "is no store yet" in place.ee_ray("gc", status=2).stderr
    assert not place.store.root.exists()


def test_the_disk_that_a_sweep_takes_is_what_plan_said(tmp_path):
    """With weights of 1 MB, which make up most of a stage as they do in real ones."""
    place = Place(tmp_path)
    spec = place.write(model__hidden_size=128, model__intermediate_size=256, stages__pretrain__tokens=2048, search__max_trials=6)  # fmt: skip
    said = place.json("plan", spec, "--json")["disk_bytes"]
    place.ee_ray("run", spec, "--local")
    assert size(place.store.root / "stages") == pytest.approx(said, rel=0.05)


def test_a_parent_that_changed_on_disk_is_never_trained_from(copy):
    finetunes = [key for key in copy.store.published() if copy.store.record(key)["kind"] == "finetune"]
    parent = copy.store.record(finetunes[0])["parent"]
    shutil.rmtree(copy.store.stage(finetunes[0]))
    weights = copy.store.weights(parent)
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    done = copy.ee_ray("run", "tiny.yaml", "--local", status=3)
    assert f"stage {parent}: weights.safetensors does not match its hash: remove" in done.stderr
    shutil.rmtree(copy.store.stage(parent))
    copy.ee_ray("run", "tiny.yaml", "--local")
    copy.ee_ray("verify", "tiny.yaml")
