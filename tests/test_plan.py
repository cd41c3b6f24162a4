"""Equal stages have equal keys, different ones different keys, and shared stages are counted once."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT, tiny

from ee_ray.identity import encode, key_of
from ee_ray.plan import Point, allocate, build_trial, distinct, parameters, trialwise_tokens
from ee_ray.spec.load import load_sweep
from ee_ray.spec.sweep import SweepSpec

DATA = {"pre": "a" * 16, "post": "b" * 16, "ft": "c" * 16}


MIDDLE = Point(2, 0)


def trial(point=MIDDLE, data=DATA, **changes):
    return build_trial(SweepSpec.model_validate(tiny(**changes)), data, point)


def keys(found):
    return [stage.key for stage in found.stages]


def test_keys_are_equal_in_a_fresh_process():
    code = (
        "from test_plan import *; import json; print(json.dumps(keys(trial())))"
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tests", capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == keys(trial())


@pytest.mark.parametrize(
    "changes",
    [
        {"model__hidden_size": 64},
        {"sequence_length": 16},
        {"precision": "bf16"},
        {"data__heldout_windows": 8},
        {"stages__pretrain__tokens": 4096},
        {"stages__pretrain__global_batch_size": 4},
        {"stages__pretrain__learning_rate": 0.01},
        {"stages__pretrain__min_learning_rate": 0.001},
        {"stages__pretrain__warmup_steps": 1},
        {"stages__pretrain__weight_decay": 0.0},
        {"stages__pretrain__mixing": "replace"},
    ],
)
def test_each_identity_field_changes_every_key(changes):
    assert not set(keys(trial(**changes))) & set(keys(trial()))


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"execution": {"workers": 2, "cpus_per_worker": 2, "gpus_per_worker": 1.0, "micro_batch": 1}},
        {
            "execution": {
                "pretrain": {"workers": [1, 8], "parallel": "fsdp"},
                "finetune": {"gpus_per_worker": 0.25, "micro_batch": 2},
            }
        },
        {"search__max_trials": 20},
        {"search__ladder": 8},
        {"objective__practical": 0.5},
    ],
)
def test_what_cannot_change_the_numbers_changes_no_key(changes):
    point = Point(4, 0) if "search__ladder" in changes else Point(2, 0)
    assert keys(trial(point, **changes)) == keys(trial())


def test_a_change_reaches_only_what_lies_below_it():
    base = trial()
    rate = trial(stages__posttrain__learning_rate=0.01)
    assert rate.pretrain.key == base.pretrain.key
    assert rate.posttrain.key != base.posttrain.key
    fan = trial(stages__finetune__learning_rates=[0.0001, 0.01])
    assert keys(fan)[:3] == keys(base)[:3]
    assert keys(fan)[3] != keys(base)[3]


def test_what_lambda_0_pretrains_does_not_depend_on_the_other_corpora():
    other = {**DATA, "post": "d" * 16, "ft": "e" * 16}
    assert trial(Point(0, 0)).pretrain.key == trial(Point(0, 0), data=other).pretrain.key
    assert trial(Point(1, 0)).pretrain.key != trial(Point(1, 0), data=other).pretrain.key


def test_at_lambda_1_there_is_no_post_training():
    last = trial(Point(4, 0))
    assert last.posttrain is None
    assert all(stage.parent == last.pretrain.key for _, stage in last.finetunes)


def test_every_level_trains_the_same_tokens_when_mixing_adds():
    totals = {sum(s.identity.tokens for s in distinct([trial(Point(level, 0))]).values()) for level in range(5)}
    assert len(totals) == 1


def test_sharing_is_counted_exactly():
    spec = SweepSpec.model_validate(tiny())
    trials = [build_trial(spec, DATA, Point(level, seed)) for level in (0, 2, 4) for seed in (0, 1)]
    once = sum(stage.identity.tokens for stage in distinct(trials).values())
    assert once == 6 * (8192 + 2048 + 2 * 2048)
    assert trialwise_tokens(trials) == 6 * 2 * (8192 + 2048 + 2048)


def test_the_encoder_refuses_what_has_no_identity():
    for value in (len, object(), float("nan"), {"parts": [{"start": 1.0}]}):
        with pytest.raises(TypeError):
            encode(value)
    assert key_of({"a": 1}) != key_of({"a": True}) != key_of({"a": "1"})


def test_parameters_are_counted_as_transformers_counts_them():
    from ee_ray.model import build_config, build_model

    for fields in (tiny()["model"], load_sweep(ROOT / "sweeps" / "quickstart.yaml").model_config_fields):
        model = build_model(build_config(fields, 256, 32), 0)
        assert parameters(fields, 256) == sum(p.numel() for p in model.parameters())


def test_allocation_is_whole_windows():
    spec = SweepSpec.model_validate(tiny())
    assert [allocate(spec, level).exposed for level in range(5)] == [0, 16, 32, 48, 64]
