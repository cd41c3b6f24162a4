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
    ["gc"],
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


@pytest.fixture
def two_sizes(copy):
    """The finished sweep, and one at twice the D_post."""
    copy.ee_ray("run", copy.write("large.yaml", name="large", stages__posttrain__tokens=4096), "--local")
    return copy


def test_transfer_fits_80_columns_and_speaks_json(two_sizes, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    command = ["transfer", "tiny.yaml", "large.yaml", "--tokens", "1000000000"]
    lines = two_sizes.ee_ray(*command).stdout.splitlines()
    assert len(lines) >= 4 and not [line for line in lines if len(line) > 80]
    told = two_sizes.json(*command, "--json")
    assert told["schema"] == 1 and [each["tokens"] for each in told["sweeps"]] == [2048, 4096]
    assert 0 <= told["prediction"]["value"] <= 1


def test_what_gc_would_remove_and_has_removed_fits_80_columns_and_speaks_json(copy, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    # The second seed's stages are nobody's once the sweep is asked for without it.
    copy.ee_ray("run", copy.write(search__seeds=[0], search__anchor_seeds=1, search__max_trials=3), "--local")
    told = copy.json("gc", "--json")
    assert told["schema"] == 1 and len(told["garbage"]) >= 7 and not told["deleted"]
    said = [copy.ee_ray("gc", *more).stdout for more in ([], ["--delete"], [])]
    assert "nothing deleted" in said[0] and "deleted" in said[1].splitlines() and len(said[2].splitlines()) < len(said[0].splitlines())  # fmt: skip
    assert not [line for text in said for line in text.splitlines() if len(line) > 80]
    assert copy.json("gc", "--json")["garbage"] == []


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
