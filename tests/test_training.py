"""One stage: what it trains, how it goes on after a kill, when it stops early, and what is done to it."""

import itertools
import json
import math
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from bench import CPU, LORA, Bench, small
from conftest import ray_environment, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

import ee_ray.meter
from ee_ray.data.order import schedule
from ee_ray.data.pack import open_packed
from ee_ray.errors import Diverged, UserError
from ee_ray.evaluate import heldout_loss
from ee_ray.loss import token_losses
from ee_ray.model import build_config, build_model, load_weights
from ee_ray.plan import Point, build_trial, parameters
from ee_ray.resume import newest_state, read_state
from ee_ray.spec.model import PRESETS
from ee_ray.stage import batches_of
from ee_ray.sweep import open_sweep, prepare
from ee_ray.train import Progress, learning_rate


@pytest.mark.parametrize(("preset", "millions"), [("nano", 0.107), ("smollm2-135m", 134.5), ("smollm2-1b", 1030.0)])
def test_presets_have_the_parameters_that_they_are_named_for(preset, millions):
    vocabulary = 256 if preset == "nano" else 49_152
    with torch.device("meta"):
        model = build_model(build_config(PRESETS[preset], vocabulary, 1024), 0)
    count = sum(p.numel() for p in model.parameters())
    assert count == parameters(PRESETS[preset], vocabulary)
    assert count / 1e6 == pytest.approx(millions, rel=0.01)


def test_smollm2_135m_is_transformers_own():
    """Counted in huggingface.co/HuggingFaceTB/SmolLM2-135M: 134,515,008 parameters; its config's own fields."""
    fields = PRESETS["smollm2-135m"]
    assert parameters(fields, 49_152) == 134_515_008
    config = build_config(fields, 49_152, 8192)
    assert (config.num_hidden_layers, config.hidden_size, config.num_key_value_heads) == (30, 576, 3)
    assert config.rope_parameters["rope_theta"] == 100_000


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_runs_forward_at_its_own_shape_cut_to_one_layer(preset, windows):
    model = build_model(build_config({**PRESETS[preset], "num_hidden_layers": 1}, 256, 32), 0)
    losses = token_losses(model, windows)
    assert losses.shape == (4, 32) and losses.mean().item() == pytest.approx(math.log(256), rel=0.35)


def test_a_window_of_exposure_is_a_chain_whose_plain_prefix_all_levels_share(bench):
    late = bench(stages__pretrain__exposure={"window": [0.5, 1.0]})
    first = {late.trial(level).pretrains[0].key for level in range(5)}
    assert len(first) == 1
    assert [len(late.trial(level).pretrains) for level in (0, 2, 4)] == [2, 2, 2]
    early = bench(stages__pretrain__exposure={"window": [0.0, 0.5]})
    assert [len(early.trial(level).pretrains) for level in (0, 2)] == [1, 2]


def test_a_chain_of_plain_segments_is_the_unbroken_pretraining_bit_for_bit(bench):
    whole = bench()
    cut = bench(file="cut.yaml", stages__pretrain__exposure={"window": [0.37, 1.0]})
    one, two = whole.trial(0).pretrains, cut.trial(0).pretrains
    assert (len(one), len(two)) == (1, 2)
    whole.run_all(one)
    cut.run_all(two)
    assert whole.weights(one[-1]) == cut.weights(two[-1])
    assert whole.store.record(one[-1].key)["losses"] == cut.store.record(two[-1].key)["losses"]


@pytest.mark.parametrize("mixing", ["add", "replace"])
@settings(max_examples=30)
@given(edges=st.tuples(st.floats(0, 1), st.floats(0, 1)), level=st.integers(0, 4), passes=st.integers(1, 2))
def test_segments_conserve_both_budgets_and_the_course(mixing, edges, level, passes):
    from pydantic import ValidationError

    from ee_ray.spec.sweep import SweepSpec

    exposure = {"window": sorted(edges), "passes": passes}
    try:
        spec = SweepSpec.model_validate(tiny(stages__pretrain__exposure=exposure, stages__pretrain__mixing=mixing))
    except ValidationError:
        return  # no room for it, which the spec says
    chain = build_trial(spec, {"pre": "a", "post": "b", "ft": "c"}, Point(level, 0)).pretrains
    parts = [part for stage in chain for part in stage.identity.parts]
    exposed = 64 * level // 4 * passes
    assert sum(p.windows for p in parts if p.role == "post") == exposed
    assert sum(p.windows for p in parts if p.role == "pre") == 256 - (exposed if mixing == "replace" else 0)
    courses = [stage.identity.course for stage in chain]
    assert courses[0].begin == 0 and courses[-1].end == courses[-1].total == 256
    assert all(a.end == b.begin for a, b in itertools.pairwise(courses))
    cursor = 0
    for part in (p for p in parts if p.role == "pre"):
        assert part.start == cursor
        cursor = part.stop


def test_the_learning_rate_is_the_same_at_the_same_point_of_the_general_corpus(bench):
    """Mixing adds steps; it must not move warmup or cosine (a lesson paid for by others)."""
    rates = {}
    for level in (0, 4):
        stage = bench().trial(level).pretrain.identity
        done = np.minimum(np.arange(1, stage.steps + 1) * 8, stage.windows) / stage.windows
        rates[level] = np.interp([0.25, 0.5, 0.75, 1.0], done, [learning_rate(stage, step) for step in range(stage.steps)])  # fmt: skip
    assert rates[0] == pytest.approx(rates[4], rel=0.01)
    assert rates[0][-1] == pytest.approx(0.0, abs=1e-12)


def test_recipes_that_differ_in_their_window_share_what_comes_before_it(bench):
    windows_ = [{"window": [0.0, 1.0]}, {"window": [0.5, 1.0]}, {"window": [0.75, 1.0]}]
    some = bench(search__choices={"pretrain.exposure": windows_}, search__max_trials=18)
    plain = {some.trial(0, choice=choice).pretrain.key for choice in range(3)}
    assert len(plain) == 1
    late, latest = (some.trial(2, choice=choice).pretrains for choice in (1, 2))
    assert late[0].key == latest[0].key and latest[1].key == some.trial(0).pretrains[1].key


def test_several_passes_repeat_the_same_windows_in_other_orders(bench):
    twice = bench(stages__posttrain__passes=2).trial(2).posttrain.identity
    (part,) = twice.parts
    assert part.windows == 2 * 32
    pool = bench().sweep.packed("post")
    from ee_ray.data.order import Run

    rows = schedule([Run(pool.train_windows, part.start, part.stop, part.order_seed, part.passes)])[:, 1]
    first, second = rows[:32], rows[32:]
    assert sorted(first) == sorted(second) and list(first) != list(second)


def test_replay_brings_general_text_in_proportion_to_what_is_trained(bench):
    found = {}
    for level in (0, 2):
        parts = bench(stages__posttrain__replay=0.125).trial(level).posttrain.identity.parts
        found[level] = {part.role: part.windows for part in parts}
    assert found == {0: {"post": 64, "pre": 32}, 2: {"post": 32, "pre": 16}}


def kill_in_the_middle(bench: Bench, stage, steps: int, last: int) -> int:
    """Run the stage in a process of its own, saving every `steps` steps, and kill it after the `last` step, while it may
    still be writing; returns the step that it can go on from."""
    code = f"""
import itertools, signal, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from bench import *
bench = object.__new__(Bench)
bench.sweep = open_sweep({str(bench.path)!r}, {str(bench.store.root)!r}); bench.store = bench.sweep.store
stages = {{s.key: s for level in range(5) for s in bench.trial(level).stages}}
import ee_ray.train as t
torch.set_num_threads({torch.get_num_threads()})
step, begun = t._Trainer.step, itertools.count()
t._Trainer.step = lambda self, feed: step(self, feed) if next(begun) < {last} else (print(flush=True), signal.pause())
bench.run(stages[{stage.key!r}], steps={steps})
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=ray_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "\n", process.stderr.read()
    while not newest_state(bench.store.work(stage.key)):
        time.sleep(0.01)
    process.kill()
    process.wait(60)
    return newest_state(bench.store.work(stage.key))


VARYING = {"setting": "varying", "stages__posttrain__passes": 6, "stages__posttrain__early_stopping": {"every_steps": 4, "patience": 2, "windows": 8}}  # fmt: skip
DROPOUT = {"stages__posttrain__dropout": {"embedding": 0.1, "attention": 0.1, "residual": 0.1, "mlp": 0.1}}


@pytest.mark.parametrize(
    ("kind", "changes", "damaged"),
    [
        ("pretrain", {}, False),
        ("pretrain", {}, True),
        ("posttrain", VARYING, False),
        ("posttrain", {**DROPOUT, "stages__posttrain__lora": LORA}, False),
    ],
    ids=["plain", "and its last state is damaged", "early stopping", "dropout and adapters"],
)
def test_a_stage_killed_at_a_random_step_ends_as_the_unbroken_one_bit_for_bit(write, tmp_path, kind, changes, damaged):
    unbroken = Bench(write, **changes)
    stage = getattr(unbroken.trial(2), kind)
    unbroken.run_all([*unbroken.trial(2).pretrains, stage] if kind == "posttrain" else [stage])
    (tmp_path / "other").mkdir()
    broken = object.__new__(Bench)
    broken.path = unbroken.path
    broken.sweep = open_sweep(unbroken.path, tmp_path / "other" / "store")
    prepare(broken.sweep, lambda role, done: None)
    broken.store = broken.sweep.store
    if kind == "posttrain":
        broken.run_all(broken.trial(2).pretrains)
    steps, last = random.choice((1, 2, 3)), random.randint(3, _curve(unbroken, stage)["step"][-1] - 1)
    at = kill_in_the_middle(broken, stage, steps, last)
    print(f"saved every {steps} steps, killed after step {last}, goes on from {at}")  # shown if this fails
    assert 0 < at < stage.identity.steps and at % steps == 0
    if damaged:
        folder = broken.store.work(stage.key)
        (folder / f"{at:08d}" / "state.safetensors").open("r+b").truncate(1000)
        assert newest_state(folder) < at
    record = broken.run(stage)
    assert broken.weights(stage) == unbroken.weights(stage)
    assert record["losses"] == unbroken.store.record(stage.key)["losses"]
    assert not broken.store.work(stage.key).exists()


def test_states_are_written_every_so_many_steps_and_the_last_two_are_kept(bench):
    here = bench()
    stage = here.trial(0).pretrain
    with pytest.raises(KeyboardInterrupt):
        here.run(stage, steps=5, report=_interrupt_after(23 * 8 * 32))
    assert sorted(path.name for path in here.store.work(stage.key).glob("[0-9]*")) == ["00000015", "00000020"]


@pytest.mark.parametrize("changes", [{}, DROPOUT], ids=["plain", "dropout"])
def test_looking_at_held_out_losses_on_the_way_changes_no_bit_of_what_is_trained(write, tmp_path, monkeypatch, changes):
    weights, curves = [], []
    for share in (0.0, 10.0):
        monkeypatch.setattr(ee_ray.meter, "LOOK_SHARE", share)
        (tmp_path / str(share)).mkdir()
        here = Bench(write, **changes)
        here.sweep = open_sweep(here.path, tmp_path / str(share) / "store")
        prepare(here.sweep, lambda role, done: None)
        here.store = here.sweep.store
        here.run_all(here.trial(2).stages[:2])
        weights.append(here.weights(here.trial(2).posttrain))
        curves.append(_curve(here, here.trial(2).posttrain))
    assert weights[0] == weights[1]
    assert [sum(math.isfinite(loss) for loss in curve["heldout_post"]) for curve in curves] == [0, 7]


def test_a_damaged_state_is_noticed_and_the_one_before_is_used_and_what_that_took_is_charged(bench):
    here = bench()
    stage = here.trial(0).pretrain
    with pytest.raises(KeyboardInterrupt):
        here.run(stage, steps=1, report=_interrupt_after(20 * 8 * 32))
    folder = here.store.work(stage.key)
    newest = newest_state(folder)
    (folder / f"{newest:08d}" / "state.safetensors").open("r+b").truncate(100)
    before = newest_state(folder)
    assert 0 < before < newest
    assert read_state(folder, before)[1]["step"] == before
    file = folder / f"{before:08d}" / "state.json"
    facts = json.loads(file.read_text())
    file.write_text("{")
    assert newest_state(folder) == 0
    facts["curve"]["seconds"][-1] = 5000.0  # as if it had taken so long
    file.write_text(json.dumps(facts))
    assert 5000 < here.run(stage)["seconds"]["train"] < 9000


def _interrupt_after(tokens: int):
    import ee_ray.train

    ee_ray.train.REPORT_SECONDS, kept = 0.0, ee_ray.train.REPORT_SECONDS

    def report(done: int) -> None:
        if done >= tokens:
            ee_ray.train.REPORT_SECONDS = kept
            time.sleep(0.2)  # the last state is written in the background
            raise KeyboardInterrupt

    return report


def test_early_stopping_hands_on_the_best_weights_and_measures_those(bench):
    here = bench(**{**VARYING, "stages__posttrain__learning_rate": 0.05, "stages__posttrain__passes": 40})
    trial = here.trial(0)
    here.run_all(trial.pretrains)
    record = here.run(trial.posttrain)
    curve = _curve(here, trial.posttrain)
    looked = {step: loss for step, loss in zip(curve["step"], curve["validation"], strict=True) if not math.isnan(loss)}
    assert record["best_step"] == min(looked, key=looked.__getitem__)
    assert record["steps"] == record["best_step"] + 2 * 4 < trial.posttrain.identity.steps
    assert record["tokens"] == record["steps"] * 4 * 32 < trial.posttrain.identity.tokens
    model = small(num_hidden_layers=1)
    load_weights(model, here.store.weights(trial.posttrain.key))
    pool = here.sweep.packed("post")
    assert heldout_loss(model, pool.validation(8, 16), CPU.device, "fp32") == min(looked.values())
    assert heldout_loss(model, pool.heldout(16), CPU.device, "fp32") == record["losses"]["post"]


def _curve(bench: Bench, stage) -> dict[str, list[float]]:
    import pyarrow.parquet as parquet

    return parquet.read_table(bench.store.metrics(stage.key)).to_pydict()


def test_the_windows_that_early_stopping_watches_are_not_those_that_are_reported(bench):
    pool = bench().sweep.packed("post")
    tested, watched = ({row.tobytes() for row in found} for found in (pool.heldout(16), pool.validation(8, 16)))
    assert len(watched) == 8 and not tested & watched


def test_in_the_varying_setting_post_training_sees_all_of_its_corpus(bench):
    for level in (0, 2, 4):
        trial = bench(**VARYING).trial(level)
        assert sum(part.windows for part in trial.posttrain.identity.parts) == 6 * 64
        exposed = sum(p.windows for p in trial.pretrain.identity.parts if p.role == "post")
        assert exposed == 64 * level // 4


def test_evaluation_leaves_the_random_state_and_the_mode_alone(windows):
    model = small()
    model.train()
    before = torch.get_rng_state()
    heldout_loss(model, windows.numpy(), CPU.device, "fp32")
    assert torch.equal(before, torch.get_rng_state()) and model.training


def test_held_out_loss_counts_only_tokens_that_carry_loss(windows):
    model = small()
    plain = token_losses(model, windows)
    hidden = windows.clone()
    hidden[:, 10:20] = ~hidden[:, 10:20]
    losses = token_losses(model, hidden)
    keep = torch.ones(32, dtype=torch.bool)
    keep[9:19] = False
    assert torch.equal(losses[:, keep], plain[:, keep]) and not losses[:, ~keep].any()
    mean = heldout_loss(model, hidden.numpy(), CPU.device, "fp32")
    assert mean == pytest.approx(plain[:, keep].mean().item(), rel=1e-6)


def test_a_stage_that_diverges_stops_at_once_and_says_where(bench):
    here = bench(stages__pretrain__learning_rate=0.9, model={**tiny()["model"], "rms_norm_eps": -1.0})
    with pytest.raises(Diverged, match="gradient norm nan at step 1 of 32"):
        here.run(here.trial(0).pretrain)


def test_a_held_out_loss_that_is_not_finite_is_a_stage_that_diverged(write, tmp_path):
    """A checkpoint with one embedding lost: of a byte that is among the held-out text and that this short training never meets."""
    short = {"stages__pretrain__tokens": 256}
    plain = Bench(write, **short)
    identity, pool = plain.trial(0).pretrain.identity, open_packed(plain.store.data(plain.sweep.data["pre"]))
    batches = batches_of([pool], identity)
    met = set(batches.gather(batches.order).flat)
    lost = next(token for token in pool.heldout(identity.heldout_windows)[:, :-1].flat if token not in met)
    model = small(num_hidden_layers=1)
    with torch.no_grad():
        model.model.embed_tokens.weight[lost] = math.nan
    model.save_pretrained(tmp_path / "mine")
    here = Bench(write, model={"checkpoint": "mine"}, **short)
    stage = here.trial(0).pretrain
    with pytest.raises(
        Diverged, match=r"held-out losses {'pre': nan} after the last of 1 steps; the last losses were \[5"
    ):
        here.run(stage)
    assert here.store.record(stage.key) is None


def test_a_sweep_can_go_on_from_a_model_that_somebody_has(write, tmp_path):
    from ee_ray.pretrained import fingerprint

    model = small(num_hidden_layers=1)
    model.save_pretrained(tmp_path / "mine")
    here = Bench(write, model={"checkpoint": "mine"})
    assert here.store.model(here.sweep.data["model"]).is_dir()
    trial = here.trial(0)
    assert trial.pretrain.identity.model == {"checkpoint": fingerprint(tmp_path / "mine")}
    (tmp_path / "mine").rename(tmp_path / "moved")  # the store has what it needs
    record = here.run(trial.pretrain)
    assert record["parameters"] == sum(p.numel() for p in model.parameters())
    records = here.run_all([trial.posttrain, trial.finetunes[0][1]])
    assert all(math.isfinite(loss) for r in records for loss in r["losses"].values())


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no such folder"),
        ({"x": ""}, "config.json cannot be read"),
        ({"config.json": "{}"}, "has no model_type"),
        ({"config.json": '{"model_type": "llama"}', "pytorch_model.bin": "pickle"}, "pickled weights are not loaded"),
    ],
)
def test_what_is_no_checkpoint_is_refused(write, tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / "mine" / name).write_text(text)
    with pytest.raises(UserError, match=message):
        open_sweep(write(model={"checkpoint": "mine"}), tmp_path / "store")


def test_a_vocabulary_that_is_too_small_is_refused(tmp_path):
    build_model(build_config(tiny()["model"], 100, 32), 0).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="vocabulary of 100 is smaller than the tokenizer's 256"):
        build_config({}, 256, 32, tmp_path)


def test_facts_of_a_state_survive_json():
    at = Progress(best_loss=math.inf)
    at.curve.add(step=1)
    assert json.loads(json.dumps(at.facts()))["best_loss"] == math.inf
