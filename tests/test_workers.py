"""Stages on 1, 2 and 4 real workers over gloo: what must not depend on how many there are, or on how they share a model."""

import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
import yaml
from conftest import tiny
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from workers import groups

from ee_ray.plan import Point, build_trial
from ee_ray.resume import newest_state
from ee_ray.sweep import open_sweep, prepare
from ee_ray.train import shares
from ee_ray.world import World

pytestmark = pytest.mark.timeout(600)

# Workers add the same gradients in other orders: fp32 rounding, which training carries on. Nats, and weights of order 0.1.
LOSS_TOLERANCE, WEIGHT_TOLERANCE = 2e-5, 2e-4
LAYOUTS = [(2, "ddp"), (4, "ddp"), (2, "fsdp"), (4, "fsdp")]
LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.1, "targets": ["o_proj", "down_proj", "lm_head"]}

# No batch is divided by 4, and the last of each stage leaves workers with less than the others or with nothing.
UNEVEN = {
    "stages__pretrain__global_batch_size": 6,
    "stages__posttrain__global_batch_size": 5,
    "stages__finetune__global_batch_size": 9,
}
# Batches of 21 are three draws of masks; a rate of 0.05 is too much from the fifth step on.
VARYING = {
    "setting": "varying",
    "stages__posttrain__early_stopping": {"every_steps": 4, "patience": 2, "windows": 8},
    "stages__posttrain__global_batch_size": 21,
}
TOO_FAST = {**VARYING, "stages__posttrain__passes": 40, "stages__posttrain__learning_rate": 0.05}
SWEEPS = {
    "plain": {"stages__pretrain__exposure": {"window": [0.4, 1.0]}},
    "dropout": {
        **VARYING,
        "stages__posttrain__passes": 4,
        "stages__posttrain__dropout": {"embedding": 0.1, "attention": 0.1, "residual": 0.1, "mlp": 0.1},
    },
    "adapters": {"stages__posttrain__lora": LORA},
}


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    with groups([1, 2, 4], tmp_path_factory.mktemp("meetings")) as started:
        yield started


class Bench:
    """One sweep's stages and data; each layout has a store of its own over the same data."""

    def __init__(self, folder: Path, changes: dict):
        self.folder = folder
        path = folder / "tiny.yaml"
        path.write_text(yaml.safe_dump(tiny(**{**UNEVEN, **changes})))
        self.sweep = open_sweep(path, folder / "first")
        prepare(self.sweep, lambda role, done: None)
        trial = build_trial(self.sweep.spec, self.sweep.data, Point(2, 0))
        self.stages = [*trial.pretrains, trial.posttrain, trial.finetunes[1][1]]

    def store(self, name: str):
        root = self.folder / name
        if not root.exists():
            root.mkdir()
            (root / "data").symlink_to(self.folder / "first" / "data")
        return open_sweep(self.folder / "tiny.yaml", root).store


@pytest.fixture(scope="module")
def benches(tmp_path_factory):
    return {name: Bench(tmp_path_factory.mktemp("bench"), changes) for name, changes in SWEEPS.items()}


@pytest.fixture(scope="module")
def alone(team, benches):
    """Every stage of every sweep by one worker: (bench, store of its results)."""
    for bench in benches.values():
        for stage in bench.stages:
            team[1]("run", root=bench.store("alone").root, stage=stage)
    return {name: (bench, bench.store("alone")) for name, bench in benches.items()}


def distance(one, other, key: str) -> float:
    ours, theirs = load_file(one.weights(key)), load_file(other.weights(key))
    assert ours.keys() == theirs.keys()
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


@given(
    rows=st.integers(1, 50), size=st.integers(1, 9), micro=st.integers(1, 20), masked=st.booleans()
)  # fmt: skip
def test_every_number_of_workers_trains_the_same_global_batch_in_equally_many_turns(rows, size, micro, masked):
    batch = np.stack([np.zeros(rows, np.int64), np.arange(rows)], axis=1)
    turns = [shares(batch, World(torch.device("cpu"), rank, size), micro, masked) for rank in range(size)]
    assert len({len(mine) for mine in turns}) == 1
    trained = [row for mine in turns for part, weight, _ in mine if weight for row in part[:, 1]]
    assert sorted(trained) == list(range(rows))


@pytest.mark.parametrize("name", SWEEPS)
@pytest.mark.parametrize(("size", "parallel"), LAYOUTS)
def test_workers_agree_with_one_alone_on_losses_weights_and_when_to_stop(team, alone, name, size, parallel):
    bench, theirs = alone[name]
    ours = bench.store(f"{parallel}{size}")
    for stage in bench.stages:
        answers = team[size]("run", parallel, root=ours.root, stage=stage)
        record, expected = ours.record(stage.key), theirs.record(stage.key)
        assert [answer["record"] for answer in answers] == [record] * size
        assert (record["workers"], record["parallel"]) == (size, parallel)
        assert (record["steps"], record["best_step"], record["tokens"], record["parameters"]) == tuple(
            expected[field] for field in ("steps", "best_step", "tokens", "parameters")
        )
        assert record["losses"] == pytest.approx(expected["losses"], abs=LOSS_TOLERANCE)
        assert distance(ours, theirs, stage.key) < WEIGHT_TOLERANCE
        assert record["sha256"].keys() == expected["sha256"].keys()
        curves = [parquet.read_table(store.metrics(stage.key)).to_pydict() for store in (ours, theirs)]
        assert curves[0]["loss"] == pytest.approx(curves[1]["loss"], abs=LOSS_TOLERANCE)
        assert curves[0]["grad_norm"] == pytest.approx(curves[1]["grad_norm"], rel=1e-2)


@pytest.mark.parametrize(("size", "parallel"), [(4, "ddp"), (2, "fsdp")])
def test_all_workers_stop_early_at_the_same_step_and_hand_on_the_best_weights(team, tmp_path, size, parallel):
    """Far from where a small rounding stays small: workers need not agree with one alone, only with each other."""
    bench = Bench(tmp_path, TOO_FAST)
    store, (pretrain, posttrain, _) = bench.store(parallel), bench.stages
    team[1]("run", root=store.root, stage=pretrain)
    records = [answer["record"] for answer in team[size]("run", parallel, root=store.root, stage=posttrain)]
    assert records == [records[0]] * size
    curve = parquet.read_table(store.metrics(posttrain.key)).to_pydict()
    looked = {step: loss for step, loss in zip(curve["step"], curve["validation"], strict=True) if not math.isnan(loss)}
    assert records[0]["best_step"] == min(looked, key=looked.__getitem__)
    assert records[0]["steps"] == records[0]["best_step"] + 2 * 4 < posttrain.identity.steps
    pool = bench.sweep.packed("post")
    alone = {"weights": store.weights(posttrain.key), "spread": False}
    assert team[1]("evaluate", windows=pool.validation(8, 16), **alone) == [min(looked.values())]
    assert team[1]("evaluate", windows=pool.heldout(16), **alone) == [records[0]["losses"]["post"]]


def test_held_out_loss_is_the_same_to_the_last_bit_however_many_share_it(team):
    windows = np.random.default_rng(0).integers(
        1, 255, (700, 33)
    )  # six chunks: one worker of four has two, another one
    found = {team[1]("evaluate", windows=windows, spread=False)[0]}
    for size, parallel in LAYOUTS:
        for spread in (False, True):
            found.update(team[size]("evaluate", parallel, windows=windows, spread=spread))
    assert len(found) == 1 and math.isfinite(found.pop())


@pytest.mark.parametrize("name", SWEEPS)
def test_what_one_layout_left_half_way_another_finishes(team, alone, name):
    """The post-training stage: one worker, then two with a sharded model, four with replicas, four sharded."""
    bench, theirs = alone[name]
    *before, stage, _ = bench.stages
    ours = bench.store("relay")
    for earlier in before:
        team[1]("run", root=ours.root, stage=earlier)
    done = 0
    for size, parallel, until in ((1, "ddp", 2), (2, "fsdp", 4), (4, "ddp", 5), (4, "fsdp", None)):
        answers = team[size]("run", parallel, root=ours.root, stage=stage, stop_after=until, checkpoint_steps=1)
        assert {answer["first"] for answer in answers} == {done + 1}
        done = newest_state(ours.work(stage.key))
        assert done == until or until is None
    record, expected = ours.record(stage.key), theirs.record(stage.key)
    assert (record["steps"], record["best_step"]) == (expected["steps"], expected["best_step"])
    assert record["losses"] == pytest.approx(expected["losses"], abs=LOSS_TOLERANCE)
    assert distance(ours, theirs, stage.key) < WEIGHT_TOLERANCE
