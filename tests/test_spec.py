"""Bad input gets one message with every problem in it: file, field, what was got, what would do."""

import pytest
from conftest import ROOT, TINY, ee_ray, tiny

from ee_ray.errors import UserError
from ee_ray.spec.load import load_sweep
from ee_ray.spec.sweep import SweepSpec


def problems(path) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_sweep(path)
    return caught.value.problems


def test_every_sweep_in_the_project_loads():
    for path in sorted((ROOT / "sweeps").rglob("*.yaml")):
        assert load_sweep(path).name == path.stem


def test_numbers_may_be_written_as_people_write_them(tmp_path):
    (tmp_path / "s.yaml").write_text(TINY)
    spec = load_sweep(tmp_path / "s.yaml")
    assert spec.stages.pretrain.learning_rate == 0.004
    assert spec == SweepSpec.model_validate(tiny())


def test_all_problems_of_a_file_come_at_once(write):
    path = write(
        sequnce_length=32,
        stages__pretrain__tokens="many",
        search__anchors=[0, 0.5, 1.5],
        data__pre={"source": "ftp://x"},
    )
    lines = "\n".join(problems(path))
    for part in ("sequnce_length: is not a field", "stages.pretrain.tokens: ", "'many'", "lambda must lie in [0, 1], got 1.5", "data.pre.source"):  # fmt: skip
        assert part in lines
    assert all(line.startswith(str(path)) for line in lines.split("\n"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages__posttrain__tokens": 2080}, "not divided by a ladder of 4"),
        ({"stages__finetune__tokens": 2049}, "stages.finetune.tokens 2049 is not a multiple of sequence_length 32"),
        ({"search__anchors": [0, 0.3, 1]}, "not multiples of 1/4"),
        ({"search__anchors": [0, 0.25, 0.5]}, "must hold 0 and 1"),
        ({"search__seeds": [1, 1]}, "must not repeat"),
        ({"search__max_trials": 5}, "less than anchors x anchor_seeds = 6"),
        ({"objective__loss": "weighted"}, "weights goes with loss: weighted, and loss: weighted needs it"),
        ({"objective__finetune_loss": 2.0}, "finetune_loss goes with loss: L_ret_matched"),
        ({"search__max_hours": 0}, "search.max_hours: input should be greater than 0"),
        ({"objective__finetune_lr": 0.5}, "objective.finetune_lr 0.5 is not one of"),
        ({"stages__finetune__min_learning_rate": 0.0005}, "above the peak 0.0001"),
        ({"model": {"hidden_size": 3}}, "model.model_type is missing"),
        ({"model": "gpt-9"}, "model: "),
        ({"execution__workers": 5}, "global_batch_size 4 leaves some of execution.workers 5 without a sequence"),
        ({"execution__workers": [4, 2]}, "a range goes up, as [1, 8] does, got [4, 2]"),
        ({"execution__workers": [1, 5]}, "global_batch_size 4 leaves some of execution.workers [1, 5] without"),
        ({"execution__parallel": "zero"}, "execution.parallel: "),
        ({"execution__posttrain": {"workers": 5}}, "leaves some of execution.posttrain.workers 5 without"),
        ({"execution__gpus_per_worker": 1.5}, "gpus_per_worker 1.5: more than one GPU is a whole number of them"),
        (
            {"execution": {"workers": 2, "finetune": {"gpus_per_worker": 0.5}}},
            "execution: finetune: gpus_per_worker 0.5: a part of a GPU is for stages of one worker, got workers 2",
        ),
        ({"execution__finetune": {"workers": [4, 2]}}, "execution: finetune: a range goes up"),
        (
            {"execution__finetune": {"checkpoint_seconds": 1.0}},
            "execution.finetune.checkpoint_seconds: is not a field here",
        ),
        ({"schema": 2}, "schema: input should be 1, got 2"),
        ({"data__post": {"source": "builtin:music"}}, "size is needed for builtin"),
        ({"sequence_length": True}, "sequence_length: input should be a valid integer, got True"),
        ({"name": "../x"}, "name: "),
        ({"stages__pretrain": {}}, "stages.pretrain.tokens: is missing"),
    ],
)
def test_each_mistake_is_named(write, changes, message):
    assert message in "\n".join(problems(write(**changes)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n", "must be a mapping"),
        ("a: [", "is not YAML"),
        ("a: 1\na: 2\n", "'a' is given twice"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused(tmp_path, text, message):
    path = tmp_path / "s.yaml"
    if text is not None:
        path.write_text(text)
    assert message in "\n".join(problems(path))


def test_a_spec_runs_no_code(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("name: !!python/object/apply:os.system ['touch planted']\n")
    assert "is not YAML" in problems(path)[0]
    assert not (tmp_path / "planted").exists()


def test_the_command_line_says_it_and_exits_2_without_a_traceback(write, tmp_path):
    done = ee_ray("plan", write(stages__posttrain__tokens=2080, search__seeds=[1, 1]), cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    assert not (tmp_path / "store").exists()
