"""What people see on a terminal of 80 columns, and what scripts read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, ray_environment

READERS = [
    ["plan", "tiny.yaml"],
    ["status", "tiny.yaml"],
    ["report", "tiny.yaml"],
    ["verify", "tiny.yaml"],
    ["noise", "tiny.yaml", "--local"],
    ["compare", "tiny.yaml", "tiny.yaml"],
]


@pytest.mark.parametrize("command", [*READERS, ["run", "tiny.yaml", "--local"]], ids=" ".join)
def test_what_a_command_prints_fits_80_columns(copy, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = copy.ee_ray(*command)
    lines = (done.stdout + done.stderr).splitlines()
    assert lines
    assert not [line for line in lines if len(line) > 80]


def test_a_mistake_is_told_in_80_columns(copy, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    copy.write("wrong.yaml", stages__posttrain__tokens=2080, search__max_trials=2)
    done = copy.ee_ray("plan", "wrong.yaml", status=2)
    assert done.stderr.count("error: ") == 2 or done.stderr.count("error: ") == 1
    assert all(len(line) <= 80 for line in done.stderr.splitlines())


def test_the_plan_of_every_sweep_of_the_project_fits_80_columns(tmp_path, monkeypatch):
    from ee_ray.fold import fold
    from ee_ray.quote import quote
    from ee_ray.sweep import open_sweep
    from ee_ray.told import plan_text

    monkeypatch.setenv("COLUMNS", "80")
    for path in [ROOT / "sweeps/quickstart.yaml", *sorted((ROOT / "sweeps/paper").glob("figure3*.yaml"))]:
        lines = fold(plan_text(quote(open_sweep(path, tmp_path), [])), 18).splitlines()
        assert not [line for line in lines if len(line) > 80]


@pytest.mark.parametrize("command", READERS, ids=" ".join)
def test_everything_that_reads_speaks_json(copy, command):
    found = json.loads(copy.ee_ray(*command, "--json").stdout)
    assert found["schema"] == 1


def test_explain_speaks_json(finished):
    row = finished.summary()["trials"][0]
    assert finished.json("explain", row["finetune_key"], "--json")["key"] == row["finetune_key"]
    differing = finished.json("explain", row["finetune_key"], row["pretrain_key"], "--json")
    assert "kind" in [each["field"] for each in differing]


def complete(folder: Path, *words: str) -> list[str]:
    """What a shell is offered for the last of the words."""
    environment = {**ray_environment(), "_EE_RAY_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}  # fmt: skip
    program = "import sys; sys.argv[0] = 'ee-ray'; from ee_ray.cli import main; main(prog_name='ee-ray')"
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, check=True)  # fmt: skip
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_tab_completes_commands_and_sweep_files(tmp_path):
    (tmp_path / "sweeps").mkdir()
    for name in ("sweeps/one.yaml", "sweeps/notes.txt", "two.yaml"):
        (tmp_path / name).touch()
    assert "plan" in complete(tmp_path, "ee-ray", "pl")
    assert complete(tmp_path, "ee-ray", "run", "s") == ["sweeps/"]
    assert complete(tmp_path, "ee-ray", "run", "sweeps/") == ["sweeps/one.yaml"]
    assert complete(tmp_path, "ee-ray", "export", "tw") == ["two.yaml"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_is_printed_for_each_shell(finished, shell):
    assert "_EE_RAY_COMPLETE" in finished.ee_ray("completion", shell).stdout


def test_bash_takes_its_completion(finished, tmp_path):
    script = tmp_path / "completion.bash"
    script.write_text(finished.ee_ray("completion", "bash").stdout)
    done = subprocess.run(["bash", "-c", f"source {script}; complete -p ee-ray"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
