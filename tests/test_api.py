"""ee_ray from Python: docstrings that run, the notebook that runs, and what a run said, kept."""

import contextlib
import doctest
import runpy
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

import ee_ray.api
from ee_ray.api import frontier, ledger, load_sweep


def test_every_example_of_the_docstrings_is_true(copy):
    with contextlib.chdir(copy.folder):
        found = doctest.testmod(ee_ray.api)
    assert found.failed == 0
    assert found.attempted >= 10


def test_the_notebook_runs(copy, capsys):
    (copy.folder / "sweeps").mkdir()
    shutil.copy(copy.folder / "tiny.yaml", copy.folder / "sweeps" / "quickstart.yaml")
    with contextlib.chdir(copy.folder):
        runpy.run_path(str(ROOT / "docs" / "notebook.py"))
    said = capsys.readouterr().out
    assert f"lambda* = {copy.summary()['optimum']['lambda']:.2f}" in said
    assert (copy.folder / "reports/tiny/index.html").exists()


def test_the_ledger_from_python_is_that_of_the_report(finished):
    with contextlib.chdir(finished.folder):
        sweep = load_sweep("tiny.yaml")
        assert ledger(sweep)["L_ret"].tolist() == [row["L_ret"] for row in finished.summary()["trials"]]
        with pytest.raises(ValueError, match="L_up"):
            frontier(sweep, "L_up")


def test_importing_the_package_imports_nothing_else():
    code = (
        "import ee_ray, sys; print([m for m in ('pandas', 'pydantic', 'torch', 'ray', 'plotly') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_what_a_run_said_is_kept_in_the_store(copy):
    before = len(list(copy.store.logs("tiny").iterdir()))
    done = copy.ee_ray("run", "tiny.yaml", "--local")
    logs = sorted(copy.store.logs("tiny").iterdir())
    assert len(logs) == before + 1
    kept = logs[-1].read_text()
    for line in (done.stdout + done.stderr).splitlines():
        assert line in kept
    assert kept.splitlines()[-1].endswith("done")
    assert "stages done" in logs[0].read_text()  # how far it was, from the run that trained


def test_quiet_is_silent_until_something_goes_wrong(copy):
    for command in ("run", "prepare"):
        options = ["--local"] if command == "run" else []
        done = copy.ee_ray(command, "tiny.yaml", "--quiet", *options)
        assert (done.stdout, done.stderr) == ("", "")
    copy.write("wrong.yaml", search__max_trials=1)
    assert "max_trials" in copy.ee_ray("run", "wrong.yaml", "--quiet", status=2).stderr
