"""The plan as a quotation: a price, a picture, a measured speed, and budgets that a run does not exceed."""

import pytest
from conftest import ROOT, Place, fetched_by, figures_of

import ee_ray.cli
from ee_ray.ledger import read_ledger
from ee_ray.measure import tokens_per_second
from ee_ray.quote import quote
from ee_ray.search import Job, open_search
from ee_ray.sweep import open_sweep
from ee_ray.told import plan_text

GPUS = {"execution": {"workers": 2, "gpus_per_worker": 1.0, "gpu": "A100"}}


def test_kinds_of_stages_are_reckoned_by_what_each_takes(write, tmp_path):
    """Two workers with a GPU each for pretraining, a quarter of one for the rest: an eighth of the speed and of the GPUs."""

    def quoted(**execution) -> dict:
        return quote(open_sweep(write(execution=execution), tmp_path / "store"), [])

    alike = quoted(workers=2, gpus_per_worker=1.0)
    own = {"workers": 1, "gpus_per_worker": 0.25}
    mixed = quoted(workers=2, gpus_per_worker=1.0, posttrain=own, finetune=own)
    assert len(set(alike["tokens_per_s"]["by_kind"].values())) == 1
    rates = mixed["tokens_per_s"]["by_kind"]
    assert rates["pretrain"] == alike["tokens_per_s"]["value"] == mixed["tokens_per_s"]["value"]
    assert rates["finetune"] == rates["posttrain"] == pytest.approx(rates["pretrain"] / 8, rel=1e-6)
    assert mixed["gpu_hours"] == pytest.approx(alike["gpu_hours"], abs=1e-4), "slower by as much as they take less"
    assert [stage["key"] for stage in mixed["stages"]] == [stage["key"] for stage in alike["stages"]]


def test_a_price_is_that_of_the_gpu_hours(tmp_path):
    quotation = quote(open_sweep(ROOT / "sweeps/paper/figure3a_30m.yaml", tmp_path), [], price=2.5)
    price, hours, tokens = quotation["price"], quotation["gpu_hours"], quotation["tokens"]
    assert hours > 10
    assert price["certain"] == pytest.approx(hours * 2.5, abs=0.01)
    later = tokens["later_at_most"] / tokens["to_train"]
    assert price["at_most"] == pytest.approx(price["certain"] * (1 + later), rel=0.01)
    assert f"{price['certain']:,.2f}, at most" in plan_text(quotation)


def test_what_needs_no_gpu_has_no_price(finished):
    assert finished.json("plan", "tiny.yaml", "--price-per-gpu-hour", 2, "--json")["price"] is None


def test_the_picture_holds_every_stage_and_opens_without_a_network(finished, tmp_path):
    quotation = finished.json("plan", "tiny.yaml", "--html", tmp_path / "plan.html", "--json")
    page = (tmp_path / "plan.html").read_text()
    (tree,) = figures_of(page)["tree0"]["data"]
    assert set(tree["ids"]) == {"sweep", *(stage["key"] for stage in quotation["stages"])}
    assert fetched_by(page) == []


def test_the_measured_speed_is_about_that_of_training(finished, monkeypatch):
    monkeypatch.setattr(ee_ray.cli, "MEASURED_SECONDS", 1.0)
    quotation = finished.json("plan", "tiny.yaml", "--measure", "--json")["tokens_per_s"]
    assert quotation["source"] == "measured now, on this machine"
    recorded = [finished.store.record(key)["tokens_per_s"] for key in finished.store.published() if finished.store.record(key)["kind"] == "pretrain"]  # fmt: skip
    assert min(recorded) / 100 < quotation["value"] < max(recorded) * 100  # another load of the same machine


def test_measuring_publishes_nothing(copy):
    before = sorted(path for path in copy.store.root.rglob("*") if path.is_file())
    sweep = open_sweep(copy.folder / "tiny.yaml", copy.store.root)
    assert tokens_per_second(sweep, read_ledger(sweep.spec, sweep.data, sweep.store), 0.5) > 0
    assert sorted(path for path in copy.store.root.rglob("*") if path.is_file()) == before


def test_a_gpu_that_is_not_here_cannot_be_measured(finished):
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    finished.write("gpus.yaml", name="gpus", **GPUS)
    assert "none is visible" in finished.ee_ray("plan", "gpus.yaml", "--measure", status=2).stderr


def test_a_budget_of_tokens_below_the_anchors_is_refused_before_anything_trains(write, tmp_path):
    write(search__max_tokens=50_000)
    place = Place(tmp_path)
    said = place.ee_ray("run", "tiny.yaml", "--local", status=2).stderr
    assert "search.max_tokens 50,000 is less than the" in said
    assert not place.store.published()
    assert "search.max_tokens" in place.ee_ray("plan", "tiny.yaml").stderr


def test_no_run_begins_that_would_exceed_the_gpu_hours(copy):
    """Stages of a CPU, reckoned as if they had held two GPUs."""
    copy.write(search__max_trials=10, search__seeds=[0, 1, 2], **GPUS)
    sweep = open_sweep(copy.folder / "tiny.yaml", copy.store.root)
    ledger = read_ledger(sweep.spec, sweep.data, sweep.store)
    assert ledger.decision.outstanding
    search = open_search(Job(sweep.spec, sweep.data, str(sweep.store.root)), ledger)
    spent = sum(search.gpu_seconds.values())
    tokens = sum(record["tokens"] for record in ledger.records.values())
    point = ledger.decision.outstanding[0]
    left = sum(count for key, count in search.prices.stages(point).items() if key not in ledger.records)
    assert search.expected() == pytest.approx(left * spent / tokens)

    def limited(seconds: float) -> str | None:
        limits = sweep.spec.search.model_copy(update={"max_gpu_hours": seconds / 3600})
        search.spec = sweep.spec.model_copy(update={"search": limits})
        return search.overrun()

    assert limited(spent + 1.1 * search.expected()) is None
    assert "do not allow another run" in limited(spent + 0.9 * search.expected())
    assert "are spent" in limited(spent)


def test_a_run_trains_no_more_tokens_than_its_budget(finished, tmp_path):
    sweep = open_sweep(finished.folder / "tiny.yaml", finished.store.root)
    trained = sum(record["tokens"] for record in read_ledger(sweep.spec, sweep.data, sweep.store).records.values())
    place = Place(tmp_path)
    place.ee_ray("run", place.write(search__max_tokens=trained - 1), "--local", "--quiet")
    assert "max_tokens" in place.summary()["stop_reason"]
    assert place.summary()["tokens"]["trained"] <= trained - 1


def test_stages_that_others_trained_leave_the_token_budget_whole(copy):
    more = {"name": "other", "search__seeds": [0, 1, 2], "search__max_trials": 14}
    plain = copy.json("plan", copy.write("other.yaml", **more), "--json")["tokens"]
    assert plain["to_train"] and plain["later_at_most"] > 3000
    copy.write("other.yaml", **more, search__max_tokens=plain["to_train"] + 3000)
    assert copy.json("plan", "other.yaml", "--json")["tokens"]["later_at_most"] == 3000
