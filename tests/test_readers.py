"""Commands that only read: they leave the store as it is, know when to stop looking, and outlive what they cannot read."""

import time
from pathlib import Path

from ee_ray import progress
from ee_ray.dashboard import Page
from ee_ray.ledger import NOTES
from ee_ray.sweep import open_sweep


def moments(folder: Path) -> dict[Path, int]:
    """When each file and folder was last changed: a file that came and went changes its folder."""
    return {path: path.lstat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def test_whoever_reads_changes_nothing_in_the_store_and_takes_a_sweep_in_its_middle_for_no_failure(copy):
    copy.store.fail("f" * 16, {"kind": "pretrain", "error": "of another sweep", "diverged": True})
    copy.write(search__max_trials=10)
    before = moments(copy.store.root)
    for command in ("status", "report", "verify"):
        copy.ee_ray(command, "tiny.yaml", status=0)
        assert moments(copy.store.root) == before, command


def test_watching_ends_with_the_sweep_or_when_nobody_runs_it(copy, monkeypatch):
    monkeypatch.setattr(progress, "RUNNING_SECONDS", 0.0)
    assert "ended: " in copy.ee_ray("status", "tiny.yaml", "--watch").stdout
    done = copy.ee_ray("status", copy.write(search__max_trials=10), "--watch")
    assert "not ended" in done.stdout and "nobody runs it: ee-ray run tiny.yaml" in done.stderr


def test_a_run_is_taken_to_go_on_as_long_as_it_notes_something(copy):
    for age, is_running in ((0.0, True), (2 * progress.RUNNING_SECONDS, False)):
        copy.store.write_sweep("tiny", progress.LIVE, {"time": time.time() - age})
        assert bool(progress.running(copy.store, "tiny")) == is_running
    copy.store.clear_sweep("tiny", progress.LIVE)
    assert progress.running(copy.store, "tiny") is None


def test_the_live_page_outlives_what_it_cannot_read(write, tmp_path):
    said: list[str] = []
    page = Page(open_sweep(write(), tmp_path / "store"), said.append)
    page.sweep.store.create()
    notes = page.sweep.store.sweep("tiny") / NOTES
    notes.parent.mkdir(parents=True)
    notes.write_text("{")
    page.look(0.0)
    page.look(0.0)
    assert len(said) == 1 and "the page stays as it was" in page.state()["html"]
    notes.unlink()
    page.look(0.0)
    assert page.html and "the page stays as it was" not in page.state()["html"]
