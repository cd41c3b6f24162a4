"""What is taken away: transformers loads it, its losses are those recorded, and its tokenizer cuts text as training did."""

import json

import pytest
import torch
import yaml
from conftest import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

from ee_ray.data.pack import open_packed
from ee_ray.data.portable import write_tokenizer
from ee_ray.data.tokenizer import train
from ee_ray.data.tokens import BYTES, Encoding, encode
from ee_ray.evaluate import heldout_loss

TEXTS = [
    "plain text, twice  spaced\n\tand tabbed ",
    "déjà vu — Ā ā 中文 😀 \u200b\ufeff",
    "a byte 0 \x00 in the middle, and controls \x01\x7f\x80",
    "marks are characters: <|endoftext|> <s> [MASK]",
    "",
]


def losses_of(folder, place, record):
    """Held-out losses of the folder's model, as transformers loads it."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    payload = record["payload"]
    return {
        role: heldout_loss(model, open_packed(place.store.data(data)).heldout(payload["heldout_windows"]), torch.device("cpu"), payload["precision"])
        for role, data in payload["heldout"]
    }  # fmt: skip


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    return folder, finished.json("export", "tiny.yaml", folder, "--best", "--json")


def test_the_exported_model_loses_what_was_recorded(finished, exported):
    folder, told = exported
    record = finished.store.record(told["key"])
    assert losses_of(folder, finished, record) == pytest.approx(record["losses"], abs=1e-6)
    assert len(record["losses"]) == 2


def test_it_generates_until_a_document_ends(exported):
    model, tokenizer = (kind.from_pretrained(exported[0]) for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 0
    written = model.generate(**tokenizer("The", return_tensors="pt"), max_new_tokens=8, do_sample=False)
    assert tokenizer.decode(written[0]).startswith("The")


def test_the_best_is_the_post_trained_model_nearest_to_lambda_star(finished, exported):
    summary, told = finished.summary(), exported[1]
    levels = {row["lambda"] for row in summary["trials"]}
    nearest = min(abs(level - summary["optimum"]["lambda"]) for level in levels)
    rows = [row for row in summary["trials"] if abs(abs(row["lambda"] - summary["optimum"]["lambda"]) - nearest) < 1e-9 and row["finetune_lr"] == 1e-4]  # fmt: skip
    least = min(rows, key=lambda row: row["L_ret"])
    assert told["key"] == (least["posttrain_key"] or least["pretrain_key"])
    assert f"{least['L_ret']:.4f} nats" in told["how"]


def test_any_stage_is_exported_by_the_start_of_its_key(finished, tmp_path):
    row = finished.summary()["trials"][0]
    for key in (row["pretrain_key"], row["finetune_key"]):
        told = finished.json("export", "tiny.yaml", tmp_path / key, "--key", key[:12], "--json")
        assert told["key"] == key
        record = finished.store.record(key)
        assert losses_of(tmp_path / key, finished, record) == pytest.approx(record["losses"], abs=1e-6)


@pytest.mark.parametrize("kind", ["bytes", "trained"])
def test_the_exported_tokenizer_gives_the_ids_of_training(tmp_path, kind):
    encoding = BYTES
    if kind == "trained":
        tokenizer = train(iter(TEXTS * 3), 300)
        tokenizer.save(str(tmp_path / "trained.json"))
        encoding = Encoding(str(tmp_path / "trained.json"), tokenizer.token_to_id("<|endoftext|>"), 300)
    (tmp_path / "out").mkdir()
    write_tokenizer(tmp_path / "out", encoding, 128)
    (tmp_path / "out" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    trained_on = encode(encoding, [(text, 0, len(text)) for text in TEXTS], partial=False)
    assert [[*loaded(text)["input_ids"], loaded.eos_token_id] for text in TEXTS] == [ids.tolist() for ids in trained_on]
    readable = [text for text in TEXTS if "\x00" not in text]
    assert [loaded.decode(loaded(text)["input_ids"]) for text in readable] == readable


def test_the_card_tells_the_recipe_the_losses_the_data_and_the_choice(finished, exported):
    folder, told = exported
    _, header, text = (folder / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(header)["library_name"] == "transformers"
    record = finished.store.record(told["key"])
    for part in (
        told["how"],
        *(f"{loss:.4f}" for loss in record["losses"].values()),
        *(f"`{fingerprint}`" for _, fingerprint in record["payload"]["heldout"]),
        "builtin:music",
        f"`{record['key']}`",
        record["versions"]["torch"],
        "What it is not",
    ):
        assert part in text
    assert record["host"] not in text


def test_the_winning_recipe_is_a_sweep_that_plans_at_a_larger_budget(finished, exported):
    folder, _ = exported
    spec = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert spec["stages"]["pretrain"]["tokens"] == 81_920
    quotation = finished.json("plan", folder / "recipe.yaml", "--json")
    assert quotation["search"]["trials"] == quotation["search"]["trials_at_most"] == len(spec["search"]["anchors"]) * 2
    assert not quotation["warnings"]


def test_at_the_same_budget_the_recipe_is_what_the_store_holds(finished, tmp_path):
    finished.ee_ray("export", "tiny.yaml", tmp_path / "same", "--times", 1)
    quotation = finished.json("plan", tmp_path / "same" / "recipe.yaml", "--json")
    assert {stage["status"] for stage in quotation["stages"]} == {"cached"}


def test_paths_in_the_recipe_lead_from_its_own_folder(tmp_path):
    from ee_ray.export.recipe import _moved

    (tmp_path / "sweeps").mkdir()
    moved = _moved("../data/x.jsonl", tmp_path / "sweeps", tmp_path / "out" / "model")
    assert (tmp_path / "out" / "model" / moved).resolve() == tmp_path / "data" / "x.jsonl"
    assert _moved("s3://bucket/x", tmp_path, tmp_path) == "s3://bucket/x"


def test_a_folder_that_holds_something_is_left_alone_unless_told(finished, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    done = finished.ee_ray("export", "tiny.yaml", tmp_path, status=2)
    assert "is not empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    finished.ee_ray("export", "tiny.yaml", tmp_path, "--overwrite")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--key", "zz"], "no published stages"),
        (["--key", ""], "published stages of"),
        (["--key", "a", "--best"], "exclude each other"),
    ],
)
def test_what_cannot_be_exported_is_said(finished, tmp_path, options, message):
    assert message in finished.ee_ray("export", "tiny.yaml", tmp_path / "x", *options, status=2).stderr
    assert not (tmp_path / "x").exists()


def test_a_damaged_stage_is_not_exported(copy, tmp_path):
    key = copy.summary()["trials"][0]["pretrain_key"]
    weights = copy.store.weights(key)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    assert "does not match its hash" in copy.ee_ray("export", "tiny.yaml", "x", "--key", key, status=2).stderr


def test_an_unfinished_sweep_has_no_best(write, tmp_path):
    from conftest import Place

    write()
    assert "has no lambda* yet" in Place(tmp_path).ee_ray("export", "tiny.yaml", "x", status=2).stderr


def test_every_sweep_of_the_project_narrows_to_a_sweep(tmp_path):
    from ee_ray.export.recipe import _narrowed
    from ee_ray.spec.load import load_sweep

    for path in sorted((ROOT / "sweeps").rglob("*.yaml")):
        spec = load_sweep(path)
        for level in (0, 1, spec.search.ladder):
            (tmp_path / "s.yaml").write_text(yaml.safe_dump(_narrowed(spec, level, 0)))
            narrowed = load_sweep(tmp_path / "s.yaml")
            assert narrowed.stages == spec.chosen(0).stages
