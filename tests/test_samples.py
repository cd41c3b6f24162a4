"""What the report shows of held-out text, and of what published stages make of it."""

import json
import math
import shutil

import numpy as np
import pytest
import torch

from ee_ray.data.tokens import BYTES
from ee_ray.export.folder import load_stage
from ee_ray.ledger import read_ledger
from ee_ray.report.answers import answers
from ee_ray.report.samples import shown
from ee_ray.samples import decoder, take_samples
from ee_ray.sweep import open_sweep

decode = decoder(BYTES)


@pytest.fixture
def sweep(copy):
    return open_sweep(copy.folder / "tiny.yaml", copy.store.root)


def ledger_of(sweep):
    return read_ledger(sweep.spec, sweep.data, sweep.store)


def kept(sweep) -> dict:
    return sweep.store.read_sweep("tiny", "samples.json")


def test_the_recipe_at_lambda_star_and_both_extremes_are_shown_of_one_seed(sweep):
    ledger = ledger_of(sweep)
    found = answers(sweep, ledger)
    stages = shown(sweep, ledger, found)
    levels = sorted({each.level for each in stages})
    tried = sorted(set(ledger.rows["lambda"]))
    nearest = min(tried, key=lambda level: abs(level - found[0].optimum.lambda_star))
    assert levels == sorted({0.0, 1.0, nearest})
    assert len({each.stage.identity.seed for each in stages}) == 1
    assert [each.after for each in stages if each.level == 1] == ["pretrained", "fine-tuned"]
    assert {each.stage.identity.learning_rate for each in stages if each.after == "fine-tuned"} == {0.0001}


def test_a_sample_is_what_the_published_weights_say_one_token_after_another(copy, sweep):
    """By hand: the whole text so far goes through the model for each next token; the loss is that of the true tokens."""
    ledger = ledger_of(sweep)
    (copy.store.sweep("tiny") / "samples.json").unlink()
    take_samples(sweep, ledger)
    said = kept(sweep)
    for each in shown(sweep, ledger, answers(sweep, ledger)):
        model = load_stage(sweep.store, ledger.records[each.stage.key], 256).eval()
        windows = sweep.packed("post").heldout(16)[[0, 8]]
        for row, text, sample in zip(windows, said["texts"]["post"], said["stages"][each.stage.key]["post"], strict=True):  # fmt: skip
            prompt, truth = torch.from_numpy(row[:16]), torch.from_numpy(row[16:32])
            assert (text["prompt"], text["truth"]) == (decode(row[:16]), decode(row[16:32]))
            with torch.inference_mode():
                tokens = prompt
                for _ in range(16):
                    tokens = torch.cat([tokens, model(tokens[None]).logits[0, -1:].argmax(-1)])
                logits = model(torch.cat([prompt, truth])[None]).logits[0, 15:31]
            assert sample["text"] == decode(tokens[16:].numpy())
            assert sample["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, truth)), abs=1e-3)


def test_a_stage_is_sampled_once_and_what_was_said_stays_when_its_weights_go(copy, sweep):
    ledger = ledger_of(sweep)
    (copy.store.sweep("tiny") / "samples.json").unlink(missing_ok=True)
    first = shown(sweep, ledger, answers(sweep, ledger))
    gone, lost = first[0].stage.key, first[-1].stage.key
    copy.store.weights(lost).unlink()
    assert take_samples(sweep, ledger) == len(first) - 1
    assert take_samples(sweep, ledger) == 0
    copy.store.weights(gone).unlink()
    assert copy.ee_ray("report", "tiny.yaml").exit_code == 0
    page = (copy.folder / "reports/tiny/index.html").read_text()
    assert "Held-out text, and how each stage goes on with it" in page
    assert "Not shown: 1 stage," in page and gone in kept(sweep)["stages"] and lost not in kept(sweep)["stages"]


def test_the_run_has_taken_them_and_the_page_has_every_text_without_any_markup_of_theirs(finished):
    page = (finished.folder / "reports/tiny/index.html").read_text()
    said = json.loads((finished.store.sweep("tiny") / "samples.json").read_text())
    assert page.count('<div class="sample">') == 6 and "<unk>" not in page
    assert all(math.isfinite(each["loss"]) for stage in said["stages"].values() for role in stage.values() for each in role)  # fmt: skip


def test_a_report_without_samples_says_how_to_have_them_and_reads_no_weights(copy, sweep):
    (copy.store.sweep("tiny") / "samples.json").unlink()
    for key in copy.store.published():
        copy.store.weights(key).unlink()
    copy.ee_ray("report", "tiny.yaml")
    page = (copy.folder / "reports/tiny/index.html").read_text()
    assert "ee-ray report tiny.yaml --samples" in page and '<div class="sample">' not in page


def test_samples_of_corpora_that_are_gone_are_refused_in_one_message(copy):
    (copy.store.sweep("tiny") / "samples.json").unlink()
    shutil.rmtree(copy.store.root / "data")
    assert "ee-ray prepare brings them back" in " ".join(copy.ee_ray("report", "tiny.yaml", "--samples", status=2).stderr.split())  # fmt: skip


def test_tokens_become_the_text_that_they_were_read_or_trained_on():
    tokens = np.frombuffer("Grüße\0x".encode(), np.uint8).astype(np.int64)
    assert decode(tokens) == decode(np.where(np.arange(len(tokens)) < 3, ~tokens, tokens)) == "Grüße▪x"


def test_samples_that_cannot_be_taken_are_no_failure_of_the_run_and_its_log_says_why(copy):
    sweep = open_sweep(copy.folder / "tiny.yaml", copy.store.root)
    (sweep.store.sweep("tiny") / "samples.json").unlink()
    for key in ledger_of(sweep).records:
        sweep.store.weights(key).write_bytes(b"torn")
    copy.ee_ray("run", "tiny.yaml", "--local")
    said = "".join(path.read_text() for path in sweep.store.logs("tiny").iterdir())
    assert "no samples of text: SafetensorError" in said
    assert "Traceback" in said
