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
from ee_ray.api import frontier, ledger, load_sweep, plan, run
from ee_ray.report.precision import precision_text


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


def test_a_run_from_python_warns_of_failed_stages_and_of_an_early_end(copy):
    """Other seeds than those that are trained, and no time to train them."""
    copy.write(search__seeds=[5, 6], search__max_hours=1e-9)
    with contextlib.chdir(copy.folder):
        sweep = load_sweep("tiny.yaml")
        stage = plan(sweep)["stages"][0]
        copy.store.fail(stage["key"], {"kind": stage["kind"], "error": "gradient norm nan", "diverged": True})
        with pytest.warns(UserWarning) as said:
            assert run(sweep, local=True, quiet=True).empty
    texts = [str(each.message) for each in said]
    assert any(f"failed: {stage['kind']} {stage['key']}" in text for text in texts)
    assert any("max_hours 1e-09 of this command are spent" in text for text in texts)


def test_noise_without_its_anchors_is_no_success(copy):
    done = copy.ee_ray("noise", copy.write(search__seeds=[5, 6], search__max_hours=1e-9), "--local", status=3)
    assert "6 of 6 anchors are not trained: max_hours 1e-09" in done.stderr


@pytest.mark.parametrize(("cut", "told"), [(0, "takes        about 64 runs"), (12, "takes        more than 64 runs")])
def test_futures_that_were_cut_say_how_many_runs_are_too_few(cut, told):
    forecast = {"runs": [24, 64, 66], "tokens": [1, 2, 3], "seeds": [2, 3, 4], "futures": 12, "reach_it": 12 - cut, "cut": cut, "within_max_trials": 0}  # fmt: skip
    found = {"sweep": "tiny", "runs": 6, "seeds": 2, "noise": [], "asked": {"ci_width": 0.1, "max_trials": 60}}
    assert told in precision_text(found | {"forecast": forecast})
