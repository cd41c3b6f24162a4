"""What a stage notes while it trains: the curve in its metrics, the same in TensorBoard, and what looking costs."""

import dataclasses
import math
from pathlib import Path

import psutil
import pyarrow.parquet as parquet
import pytest
import torch
from conftest import Place, tiny
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

from ee_ray.events import EVENTS, TAGS, write_events
from ee_ray.identity import stage_of
from ee_ray.meter import LOOK_SHARE, LOOKS, TRAIN_TO_EVALUATE, Meter, peak_memory, steps_between_looks
from ee_ray.metrics import Curve
from ee_ray.plan import Point, build_trial
from ee_ray.spec.sweep import SweepSpec
from ee_ray.world import World

STAGE = build_trial(SweepSpec.model_validate(tiny()), {"pre": "a", "post": "b", "ft": "c"}, Point(2, 0)).pretrain


def rows(place: Place, key: str) -> dict[str, list]:
    return parquet.read_table(place.store.metrics(key)).to_pydict()


def test_every_stage_of_a_sweep_has_its_curve(finished):
    for key in finished.store.published():
        record, curve = finished.store.record(key), rows(finished, key)
        assert curve.keys() == {field.name for field in dataclasses.fields(Curve)}
        assert curve["step"][-1] == record["steps"] and curve["tokens"][-1] == record["tokens"]
        assert curve["step"] == sorted(set(curve["step"])) and curve["seconds"] == sorted(curve["seconds"])
        assert all(value > 0 for name in ("loss", "grad_norm", "tokens_per_s", "memory") for value in curve[name])
        assert all(map(math.isnan, curve["peak_share"]))  # nobody knows the peak of this CPU
        assert record["memory_bytes"] == curve["memory"][-1] > 1e8  # torch alone is more


def test_speed_is_that_of_training_without_what_evaluation_takes():
    at = [0.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.monotonic", lambda: at[0])
        meter = Meter(World(torch.device("cpu")), 1e6, earlier=100.0, tokens=500)
        at[0] = 2.0
        assert meter.read(900)["tokens_per_s"] == 200.0
        meter.pause()
        at[0] = 50.0
        meter.resume()
        at[0] = 54.0
        reading = meter.read(1300)
    assert (reading["tokens_per_s"], reading["seconds"]) == (100.0, 154.0)


def test_memory_is_what_the_process_held_at_most():
    held = psutil.Process().memory_info().rss
    block = torch.ones(100_000_000)  # 400 MB
    del block
    assert peak_memory(torch.device("cpu")) > held + 3.5e8


@given(windows=st.integers(1, 10**7), batch=st.integers(1, 512), heldout=st.integers(1, 4096), roles=st.integers(1, 3))
def test_looking_at_held_out_losses_takes_no_more_arithmetic_than_it_may(windows, batch, heldout, roles):
    part = dataclasses.replace(STAGE.identity.parts[0], start=0, stop=windows)
    stage = stage_of(dataclasses.replace(STAGE.identity, parts=(part,), global_batch_size=batch)).identity
    every = steps_between_looks(stage, dict.fromkeys(("pre", "post", "ft")[:roles], heldout))
    looks = (
        sum(step % every == 0 for step in range(1, stage.steps)) if stage.steps < 10**5 else (stage.steps - 1) // every
    )
    assert looks <= 2 * LOOKS
    if looks and every > 1:
        assert looks * roles * heldout <= 2 * LOOK_SHARE * TRAIN_TO_EVALUATE * windows


def test_tensorboard_shows_the_stages_by_recipe(finished):
    """As `tensorboard --logdir store/sweeps/tiny/tensorboard` reads them: by recipe, stage and key, through links."""
    folder = finished.store.sweep("tiny") / "tensorboard"
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    found = multiplexer.Runs()
    finetunes = [name for name in found if name.startswith("lambda0.5000-seed0/3-finetune-lr0.0001-")]
    assert len(finetunes) == 1
    assert {name.split("/")[0] for name in found} >= {"lambda0.0000-seed0", "lambda0.5000-seed1", "lambda1.0000-seed0"}
    assert not any(name.startswith("lambda1.0000-seed0/2-posttrain") for name in found)  # nothing is left for it
    for name, tags in found.items():
        key = next(key for key in finished.store.published() if key.startswith(name.rsplit("-", 1)[1]))
        record, curve = finished.store.record(key), rows(finished, key)
        losses = [event.value for event in multiplexer.Scalars(name, TAGS["loss"])]
        assert losses == pytest.approx(curve["loss"], rel=1e-6)
        assert {tag.removeprefix("heldout/") for tag in tags["scalars"] if tag.startswith("heldout/")} == set(
            record["losses"]
        )
        for role, loss in record["losses"].items():
            last = multiplexer.Scalars(name, f"heldout/{role}")[-1]
            assert (last.step, last.value) == (record["steps"], pytest.approx(loss, rel=1e-6))
    assert {key[:8] for key in finished.store.published()} == {name.rsplit("-", 1)[1] for name in found}


def test_event_files_are_part_of_what_is_published_and_verified(copy):
    key = copy.store.published()[0]
    events = copy.store.stage(key) / EVENTS
    assert EVENTS in copy.store.record(key)["sha256"]
    events.write_bytes(events.read_bytes() + b"x")
    assert copy.store.damage(key) == [f"stage {key}: {EVENTS} does not match its hash"]


def test_nothing_is_drawn_where_nobody_looked(tmp_path: Path):
    curve = Curve()
    for step in (1, 2):
        curve.add(step=step, tokens=step, loss=1.0, seconds=float(step), heldout_post=2.0 if step == 2 else math.nan)
    write_events(tmp_path / EVENTS, curve, {}, 2, 1000.0)
    multiplexer = EventMultiplexer().AddRun(str(tmp_path), "one")
    multiplexer.Reload()
    (point,) = multiplexer.Scalars("one", "heldout/post")
    assert (point.step, point.wall_time) == (2, 1000.0)
    assert TAGS["peak_share"] not in multiplexer.Runs()["one"]["scalars"]
