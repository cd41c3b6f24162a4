"""A sweep run in one process: what it leaves behind, what it never trains again, and what its failures say."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser

import optuna
import pandas as pd
import pytest
import ray
from conftest import CORPORA, Place, ray_environment, tiny
from ray.train.torch import TorchTrainer

from ee_ray.ledger import read_ledger
from ee_ray.report.sections import _cost
from ee_ray.runner import SlotTrainer
from ee_ray.search import Job, LadderSearch, _report, asked, open_search
from ee_ray.spec.sweep import SweepSpec
from ee_ray.store import Store
from ee_ray.sweep import open_sweep


def test_a_sweep_ends_with_a_verdict_and_a_report(finished):
    summary = finished.summary()
    assert summary["schema"] == 1 and summary["sweep"] == "tiny"
    optimum = summary["optimum"]
    assert optimum["ci95"][0] <= optimum["lambda"] <= optimum["ci95"][1]
    assert optimum["verdict"] in ("interior", "boundary_0", "boundary_1", "flat", "undetermined")
    assert set(optimum["gain_over_0"]) == set(optimum["gain_over_1"]) == {"value", "ci95"}
    assert summary["stages"] == {"planned": 30, "trained": 30, "reused": 0, "failed": 0}
    assert len(summary["trials"]) == 8 * 2
    log = min((finished.store.sweep("tiny") / "logs").iterdir())  # of the first command
    assert "By L_ft and L_ret, " in log.read_text() and "may lie on the frontier.\n" in log.read_text()


def test_training_learns_more_than_the_frequency_of_letters(finished):
    """ln 256 = 5.5 nats is ignorance; about 3.2 is the entropy of single letters of this text."""
    losses = [finished.store.record(key)["losses"] for key in finished.store.published()]
    assert max(loss for stage in losses for loss in stage.values()) < 5.6
    assert min(stage["pre"] for stage in losses) < 3.6


def test_a_larger_fine_tuning_rate_learns_more_of_its_own_corpus(finished):
    losses = {(r["lambda"], r["seed"], r["finetune_lr"]): r["L_ft"] for r in finished.summary()["trials"]}
    assert all(losses[level, seed, 1e-3] < losses[level, seed, 1e-4] for level, seed, _ in losses)


def links(page: str) -> list[str]:
    """Addresses that a browser would fetch or lead to; what stands inside a script is not markup."""
    found: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.extend(v for k, v in attributes if k in ("src", "href", "data"))  # fmt: skip
    parser.feed(page)
    return found


def test_the_report_says_what_the_ledger_says(finished):
    page = (finished.folder / "reports/tiny/index.html").read_text()
    summary = finished.summary()
    assert f"lambda* = {summary['optimum']['lambda']:.2f}" in page
    for row in summary["trials"]:
        record = finished.store.record(row["finetune_key"])
        assert (row["L_ret"], row["L_ft"], row["L_pre"]) == tuple(record["losses"][role] for role in ("post", "ft", "pre"))  # fmt: skip
        assert row["L_im"] == finished.store.record(row["posttrain_key"] or row["pretrain_key"])["losses"]["post"]
        assert f"{row['L_ret']:.4f}" in page
    assert all(link.startswith(("#", "data:")) for link in links(page))  # within the page, or an empty icon


def test_mixed_and_unmixed_are_compared_with_their_numbers_of_trials(finished):
    found = finished.summary()["comparison"]
    levels = [row["lambda"] for row in finished.summary()["trials"]]
    assert found["trials"] == {"mixed": sum(level > 0 for level in levels), "unmixed": levels.count(0)}
    assert found["trials"]["mixed"] > found["trials"]["unmixed"]
    page = (finished.folder / "reports/tiny/index.html").read_text()
    if found["gap"]:
        assert f"{found['trials']['mixed']} trials against {found['trials']['unmixed']}" in page
    assert found["hypervolume"]["mixed"] >= 0


def test_a_report_is_rebuilt_from_the_store_alone(copy):
    before = copy.summary()
    (copy.folder / "reports/tiny/summary.json").unlink()
    copy.ee_ray("report", "tiny.yaml")
    assert copy.summary() == before


def test_a_second_run_trains_nothing(copy):
    before = copy.numbers()
    finish = {key: copy.store.record(key)["finished"] for key in before}
    done = copy.ee_ray("run", "tiny.yaml")
    assert "nothing to train" in done.stderr
    assert {key: copy.store.record(key)["finished"] for key in copy.store.published()} == finish


def test_the_plan_is_exact(finished, tmp_path):
    fresh = Place(tmp_path)
    quotation = fresh.json("plan", fresh.write(search__max_trials=6), "--json")
    assert {stage["status"] for stage in quotation["stages"]} == {"planned"}
    assert quotation["tokens"]["to_train"] == sum(stage["tokens"] for stage in quotation["stages"])
    assert quotation["tokens"]["to_train"] == 6 * (8192 + 2048 + 2 * 2048)
    assert quotation["tokens"]["trialwise"] == 6 * 2 * (8192 + 2048 + 2048)
    assert not fresh.store.published()
    after = finished.json("plan", "tiny.yaml", "--json")
    assert after["tokens"]["to_train"] == 0
    assert {stage["status"] for stage in after["stages"]} == {"cached"}
    assert {stage["key"] for stage in quotation["stages"]} <= {stage["key"] for stage in after["stages"]}
    assert finished.summary()["tokens"]["trained"] == sum(stage["tokens"] for stage in after["stages"])


def test_a_changed_post_training_rate_retrains_no_pretraining(copy):
    spec = copy.write("other.yaml", name="other", stages__posttrain__learning_rate=0.004)
    planned = {(stage["kind"], stage["status"]) for stage in copy.json("plan", spec, "--json")["stages"]}
    assert ("pretrain", "planned") not in planned and ("posttrain", "cached") not in planned
    copy.ee_ray("run", spec, "--local")
    summary = copy.summary("other")
    assert summary["stages"]["reused"] >= 6
    assert {row["pretrain_key"] for row in summary["trials"]} & {row["pretrain_key"] for row in copy.summary()["trials"]}  # fmt: skip


def test_the_same_numbers_come_from_any_micro_batch_and_store(finished, tmp_path):
    place = Place(tmp_path)
    place.ee_ray("run", place.write(search__max_trials=6, execution__micro_batch=8), "--local")
    numbers = place.numbers()
    assert numbers == {key: finished.numbers()[key] for key in numbers}


def test_status_and_verify_read_the_store(copy):
    state = copy.json("status", "tiny.yaml", "--json")
    assert state["stages"] == {"planned": 30, "published": 30, "failed": 0}
    assert state["tokens"]["left"] == 0 and state["stop"]
    assert copy.json("verify", "tiny.yaml", "--json")["problems"] == []


def test_verify_lists_every_mismatch(copy):
    damaged, gone = copy.store.published()[:2]
    copy.store.weights(damaged).write_bytes(b"x")
    copy.store.weights(gone).unlink()
    fingerprint = copy.summary()["provenance"]["data"]["post"]["fingerprint"]
    with (copy.store.data(fingerprint) / "train-00000.bin").open("r+b") as file:
        file.write(b"changed")
    summary = copy.summary()
    summary["optimum"]["lambda"] = 0.123
    (copy.folder / "reports/tiny/summary.json").write_text(json.dumps(summary))
    found = "\n".join(json.loads(copy.ee_ray("verify", "tiny.yaml", "--json", status=1).stdout)["problems"])
    for part in (f"stage {damaged}: weights.safetensors does not match", f"stage {gone}: weights.safetensors is missing", "train-00000.bin does not match", "differs from the store in optimum.lambda"):  # fmt: skip
        assert part in found


def test_explain_tells_a_stage_and_what_differs_between_two(finished):
    trial = finished.summary()["trials"][0]
    record = finished.json("explain", trial["pretrain_key"][:10], "--json")
    assert record["kind"] == "pretrain" and record["payload"]["seed"] == trial["seed"]
    other = next(t for t in finished.summary()["trials"] if t["lambda"] == trial["lambda"] and t["seed"] != trial["seed"])  # fmt: skip
    rows = json.loads(finished.ee_ray("explain", trial["pretrain_key"], other["pretrain_key"], "--json").stdout)
    assert {row["field"] for row in rows} == {"seed", "parts[0].order_seed"}
    assert "no published stage" in finished.ee_ray("explain", "ffff", status=2).stderr


def test_stages_that_diverge_are_recorded_with_their_evidence_and_never_tried_again(tmp_path):
    """No rate below 1 brings down a model that normalises its layers; the root of a negative number does."""
    place = Place(tmp_path)
    spec = place.write(search__max_trials=6, model__rms_norm_eps=-1.0)
    done = place.ee_ray("run", spec, "--local", status=3)
    failures = place.summary()["failures"]
    first = [evidence for evidence in failures.values() if evidence["diverged"]]
    assert len(first) == 6 and {evidence["kind"] for evidence in first} == {"pretrain"}
    assert "gradient norm nan at step" in done.stderr and "rerun: ee-ray run" in done.stderr
    assert "fewer than three levels" in done.stdout and place.summary()["optimum"] is None
    again = place.ee_ray("run", spec, "--local", status=3)
    assert "nothing to train" in again.stderr


def test_a_board_is_told_what_diverged_in_earlier_runs_and_not_what_may_succeed_now(tmp_path):
    store = Store(tmp_path / "store")
    store.create()
    job = Job(SweepSpec.model_validate(tiny()), dict.fromkeys(("pre", "post", "ft"), "a" * 16), store.place)
    trial = job.trial({"level": 2, "seed": 0})
    store.fail(trial.pretrain.key, {"error": "gradient norm nan", "diverged": True})
    store.fail(trial.upstream.key, {"error": "killed", "diverged": False})
    told, published, diverged = asked(job, trial)
    assert [order.stage.key for order in told] == [stage.key for stage in trial.stages]
    assert not published and set(diverged) == {trial.pretrain.key}


def test_a_stage_that_is_published_has_not_failed_however_late_its_evidence_comes(copy):
    """One run tries in vain, another publishes meanwhile."""
    sweep = open_sweep(copy.folder / "tiny.yaml", copy.store.place)
    job = Job(sweep.spec, sweep.data, copy.store.place)
    trial, late = job.trial({"level": 2, "seed": 0}), {"error": "killed", "diverged": False}
    told = _report(job, trial, {trial.upstream.key: late})
    assert told["settled"] and told["failed_stages"] == 0 and not copy.store.failed()
    copy.store.fail(trial.upstream.key, late)  # as stores have it from before
    assert not read_ledger(sweep.spec, sweep.data, copy.store).failures


def test_a_stage_that_fails_for_want_of_something_is_tried_again_by_the_next_run(tmp_path, finished):
    place = Place(tmp_path)
    spec = place.write(search__max_trials=6)
    place.ee_ray("prepare", spec)
    fingerprint = finished.summary()["provenance"]["data"]["ft"]["fingerprint"]
    hidden = place.store.data(fingerprint) / "heldout-00000.bin"
    hidden.rename(hidden.with_suffix(".away"))
    done = place.ee_ray("run", spec, "--local", status=3)
    assert "heldout-00000.bin" in done.stderr
    kept = place.numbers()
    assert len(kept) == 10
    hidden.with_suffix(".away").rename(hidden)
    place.ee_ray("run", spec, "--local")
    assert place.numbers() == {key: finished.numbers()[key] for key in place.numbers()}
    assert place.numbers().items() >= kept.items()
    assert place.summary()["failures"] == {}


def test_noise_trains_the_anchors_alone_and_the_run_goes_on_from_them(finished, tmp_path):
    place = Place(tmp_path)
    found = place.json("noise", place.write(search__ci_width=0.6), "--local", "--json")
    assert found["runs"] == 6 and found["seeds"] == 2
    names = [row["name"] for row in found["noise"]]
    assert names[0] == "retained loss L_ret, fine-tuned at 0.0001" and "immediate loss L_im" in names
    assert all(row["noise_sd"] > 0 for row in found["noise"])
    low, middle, high = found["forecast"]["runs"]
    assert 6 <= low <= middle <= high <= 10
    kept = place.numbers()
    assert len(kept) == 22
    again = place.ee_ray("noise", "tiny.yaml", "--local")
    assert "nothing to train" in again.stderr and "it takes" in again.stdout
    place.ee_ray("run", place.write(), "--local")
    assert place.numbers() == finished.numbers()


def test_a_search_may_be_stopped_by_the_clock_and_the_same_command_goes_on(finished, tmp_path):
    place = Place(tmp_path)
    done = place.ee_ray("run", place.write(search__max_hours=1e-9), "--local")
    assert "max_hours 1e-09 of this command are spent" in done.stdout
    assert not place.numbers()
    place.ee_ray("run", place.write(), "--local")
    assert place.numbers() == finished.numbers()


def test_the_plan_promises_no_more_than_the_token_budget(tmp_path):
    fresh = Place(tmp_path)
    plain = fresh.json("plan", fresh.write(), "--json")["tokens"]
    certain, later = plain["to_train"], plain["later_at_most"]
    assert later > 3000
    tight = fresh.json("plan", fresh.write(search__max_tokens=certain + 3000), "--json")["tokens"]
    assert (tight["to_train"], tight["later_at_most"]) == (certain, 3000)


def test_gpu_hours_are_counted_once_a_stage_and_only_for_the_sweep_that_trained_it(copy):
    """On a machine without a GPU: the stages stay as they are, the spec says that each had one."""
    sweep = open_sweep(copy.folder / copy.write(execution__gpus_per_worker=1.0), copy.folder / "store")
    trained = sum(copy.store.record(key)["seconds"][part] for key in copy.numbers() for part in ("train", "evaluate"))

    def search(most: float, name: str = "tiny") -> LadderSearch:
        limits = sweep.spec.search.model_copy(update={"max_gpu_hours": most / 3600})
        spec = sweep.spec.model_copy(update={"search": limits, "name": name})
        return open_search(Job(spec, sweep.data, str(copy.store.root)), read_ledger(spec, sweep.data, copy.store))

    assert search(trained * 1.01).overrun() is None
    assert "max_gpu_hours" in search(trained * 0.99).overrun()
    assert search(trained * 0.01, name="other").overrun() is None


def test_device_hours_count_every_device_of_every_worker(write, tmp_path):
    of_one = {"workers": 1, "gpus_per_worker": 0.25}
    sweep = open_sweep(write(execution={"workers": 2, "gpus_per_worker": 2.0, "finetune": of_one}), tmp_path / "store")
    hour = {"setup_s": 9.0, "train_s": 3000.0, "evaluate_s": 600.0, "tokens": 1, "bytes": 1, "state": "published"}
    stages = [("pretrain", "H100", 2), ("finetune", "H100", 1), ("pretrain", "cpu", 2)]
    table = pd.DataFrame([{**hour, "kind": kind, "device": device, "workers": count} for kind, device, count in stages])
    assert re.findall(r"<td[^>]*>([\d.]+)</td><td>1 bytes", _cost(sweep, {"stages": table})) == ["4.0000", "0.2500", "2.0000"]  # fmt: skip


def test_a_slot_starts_no_process_for_data_sets_and_all_else_that_ray_train_starts():
    plain, ours = (
        [type(each).__name__ for each in trainer(print)._create_default_callbacks()]
        for trainer in (TorchTrainer, SlotTrainer)
    )
    assert "DatasetsCallback" in plain and ours == [name for name in plain if name != "DatasetsCallback"]


def test_tune_can_keep_the_search_and_who_shows_it_gets_an_answer_while_it_is_not_asked_too_often(copy):
    """Tune pickles what it is given; the answer is worked out for those who look, and rests three times as long as it took."""
    sweep = open_sweep(copy.folder / copy.write(), copy.folder / "store")
    job = Job(sweep.spec, sweep.data, copy.store.place)
    search = open_search(job, read_ledger(sweep.spec, sweep.data, copy.store))
    assert ray.cloudpickle.dumps(search)
    told = search.so_far()
    assert told["optimum"]["verdict"] == copy.summary()["optimum"]["verdict"] and told["names"] == {}
    search.results.popitem()
    assert search.so_far()["optimum"] is told["optimum"], "it was worked out a moment ago"
    search.answer_due = 0.0
    assert search.so_far()["optimum"] is not told["optimum"]


def test_lines_that_a_full_disk_cut_off_are_lost_alone_in_the_journal_of_stages_and_in_optunas(copy):
    sweep = open_sweep(copy.folder / copy.write(), copy.folder / "store")
    job, before = Job(sweep.spec, sweep.data, copy.store.place), copy.store.journalled("tiny")

    def study() -> optuna.Study:
        return open_search(job, read_ledger(sweep.spec, sweep.data, copy.store))._ot_study

    known = len(study().trials)
    for name in ("journal.jsonl", "optuna.journal"):
        with (copy.store.sweep("tiny") / name).open("a") as file:
            file.write('{"event": "beg')
    copy.store.journal("tiny", event="begun", key="after")
    assert [line["event"] for line in copy.store.journalled("tiny")] == [line["event"] for line in before] + ["begun"]
    for value in ("once", "twice"):  # Optuna passes over a torn last line, and refuses one in the middle
        study().set_user_attr("seen", value)
    assert len(study().trials) == known > 0 and study().user_attrs["seen"] == "twice"


def test_a_search_notes_what_it_chose_and_can_do_without_the_note(copy):
    notes = copy.folder / "store/sweeps/tiny/search.json"
    before, noted = copy.summary(), json.loads(notes.read_text())
    assert sum(map(len, noted["rounds"].values())) >= 2
    notes.unlink()
    copy.ee_ray("report", "tiny.yaml")
    assert copy.summary() == before


def test_noise_tells_of_stages_that_failed(tmp_path):
    place = Place(tmp_path)
    done = place.ee_ray("noise", place.write(model__rms_norm_eps=-1.0), "--local", status=2)
    assert "gradient norm nan at step" in done.stderr and "nothing to judge noise by" in done.stderr


@pytest.mark.parametrize(
    "goal",
    [
        {"loss": "L_im"},
        {"loss": "weighted", "weights": {"L_ret": 1.0, "L_ft": 0.5}},
    ],
    ids=lambda goal: goal["loss"],
)
def test_any_of_the_losses_can_be_what_is_sought(copy, goal):
    copy.ee_ray("run", copy.write(**{f"objective__{name}": value for name, value in goal.items()}), "--local")
    summary = copy.summary()
    assert summary["objective"]["loss"] == goal["loss"] and summary["optimum"]
    assert "retained loss L_ret, fine-tuned at 0.0001" in [other["name"] for other in summary["others"]]


def test_a_fine_tuning_loss_that_no_recipe_reaches_is_said(copy):
    copy.ee_ray("run", copy.write(objective__loss="L_ret_matched", objective__finetune_loss=1.0), "--local")
    summary = copy.summary()
    assert summary["optimum"] is None and "reached objective.finetune_loss" in summary["stop_reason"]


def test_small_sweeps_predict_the_optimum_of_a_larger_one(copy):
    larger = copy.write("larger.yaml", name="larger", stages__posttrain__tokens=4096)
    again = copy.ee_ray("transfer", "tiny.yaml", larger, "--tokens", 8192, status=2)
    assert f"no result at three levels of lambda yet: ee-ray run {larger}" in again.stderr
    copy.ee_ray("run", larger, "--local")
    found = copy.json("transfer", "tiny.yaml", larger, "--tokens", 8192, "--json")
    assert [sweep["tokens"] for sweep in found["sweeps"]] == [2048, 4096]
    low, high = found["prediction"]["ci95"]
    assert 0 <= low <= found["prediction"]["value"] <= high <= 1
    assert "for each doubling of D_post" in copy.ee_ray("transfer", "tiny.yaml", larger, "--tokens", 8192).stdout
    same = copy.ee_ray("transfer", "tiny.yaml", "tiny.yaml", "--tokens", 8192, status=2)
    assert "two sizes or more are needed" in same.stderr
    assert "one of them" in copy.ee_ray("transfer", "tiny.yaml", larger, status=2).stderr


def test_sweeps_of_small_models_predict_the_optimum_of_a_larger_one(copy):
    wider = copy.write("wider.yaml", name="wider", model__intermediate_size=128, search__max_trials=6)
    copy.ee_ray("run", wider, "--local")
    both = ["transfer", "tiny.yaml", wider]
    told = copy.json(*both, "--parameters", 40_000, "--json")
    records = [copy.store.record(row["pretrain_key"]) for name in ("tiny", "wider") for row in copy.summary(name)["trials"][:1]]  # fmt: skip
    assert [sweep["parameters"] for sweep in told["sweeps"]] == [record["parameters"] for record in records]
    assert "for each doubling of the model" in copy.ee_ray(*both, "--parameters", 40_000).stdout
    assert "size of D_post alone" in copy.ee_ray(*both, "--tokens", 8192, status=2).stderr


def running(place: Place, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ee_ray.cli", "run", *map(str, arguments)]
    return subprocess.Popen(command, cwd=place.folder, env=ray_environment(), stderr=subprocess.PIPE, text=True)


def published_at_least(place: Place, count: int, process: subprocess.Popen[str]) -> None:
    while len(place.store.published()) < count:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


@pytest.mark.parametrize(("sign", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)])
def test_an_interrupted_run_keeps_what_it_published_and_ends_with_the_same_numbers(finished, tmp_path, sign, status):
    place = Place(tmp_path)
    spec = place.write()
    process = running(place, spec, "--local")
    published_at_least(place, 7, process)
    os.kill(process.pid, sign)
    assert process.wait(60) == status
    kept = place.numbers()
    assert 7 <= len(kept) < 30
    place.ee_ray("run", spec, "--local")
    assert place.numbers() == finished.numbers()
    assert {**place.numbers(), **kept} == place.numbers()


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"execution__workers": 2}, ["--local"], "--local has one process"),
        ({"execution__gpus_per_worker": 1.0}, ["--local"], "no GPU is visible here"),
        ({"model__hidden_sise": 3}, ["--local"], "config has no hidden_sise"),
        ({"model__num_attention_heads": 3}, ["--local"], "model: "),
        ({"model": {"model_type": "lama"}}, ["--local"], "model: "),
        ({}, ["--local", "--address", "x"], "exclude each other"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_trains(tmp_path, changes, arguments, message):
    place = Place(tmp_path)
    done = place.ee_ray("run", place.write(**changes), *arguments, status=2)
    assert message in done.stderr
    assert done.stdout == ""
    assert not place.store.published()


@pytest.mark.skipif(not CORPORA.is_dir(), reason=f"the real corpora are not at {CORPORA}")
def test_real_text_goes_through_to_a_report(tmp_path):
    place = Place(tmp_path)
    spec = place.write(
        data__pre={"source": f"file:{CORPORA}/general_wikitext2.jsonl"},
        data__post={"source": f"file:{CORPORA}/music_nottingham.jsonl"},
        data__ft={"source": f"file:{CORPORA}/chemistry_zinc.txt"},
        search__seeds=[0], search__max_trials=3,
    )  # fmt: skip
    place.ee_ray("run", spec, "--local")
    summary = place.summary()
    assert {len(summary["trials"]), summary["stages"]["trained"]} == {6, 11}
    assert summary["epochs"]["pre"] < 1
