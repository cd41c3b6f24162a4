"""What is done to a model while stage 2 trains: dropout where the paper has it, adapters, and what a hand-over makes of them."""

import re

import numpy as np
import pytest
import torch
from bench import CPU, LORA, NO_DROPOUT, small
from conftest import tiny

from ee_ray.errors import UserError
from ee_ray.interventions import adapt, merged
from ee_ray.loss import token_losses
from ee_ray.model import build_config, build_model, load_weights, refuse_randomness, save_weights
from ee_ray.train import shares, weights_of
from ee_ray.world import World


@pytest.mark.parametrize("place", NO_DROPOUT)
def test_each_dropout_acts_in_training_and_not_in_evaluation(place, windows):
    plain, dropped = small(), adapt(small(), {**NO_DROPOUT, place: 0.5}, None)
    plain.eval(), dropped.eval()
    assert torch.equal(token_losses(plain, windows), token_losses(dropped, windows))
    plain.train(), dropped.train()
    assert not torch.equal(token_losses(plain, windows), token_losses(dropped, windows))
    assert set(dropped.state_dict()) == set(plain.state_dict())


@pytest.mark.parametrize(("place", "modules"), [("embedding", 1), ("residual", 4), ("mlp", 2)])
def test_dropout_stands_where_it_is_said_to_stand(place, modules):
    model = adapt(small(), {**NO_DROPOUT, place: 0.25}, None)
    found = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    assert len(found) == modules and {module.p for module in found} == {0.25}


def test_masks_of_dropout_depend_neither_on_workers_nor_on_micro_batches():
    rows = np.arange(40).reshape(20, 2)
    alone = [(tuple(part[:, 0]), draw) for part, _, draw in shares(rows, CPU, 3, True)]
    three = [(tuple(part[:, 0]), draw) for rank in range(3) for part, _, draw in shares(rows, World(CPU.device, rank, 3), 1, True)]  # fmt: skip
    assert sorted(alone) == sorted(three) and len(alone) == 3


@pytest.mark.parametrize("tied", [True, False])
def test_adapters_merged_at_hand_over_give_the_same_losses(tied, windows, tmp_path):
    base = small(tie_word_embeddings=tied)
    save_weights(base, tmp_path / "w.safetensors")
    model = small(tie_word_embeddings=False)
    load_weights(model, tmp_path / "w.safetensors")
    if tied:
        assert torch.equal(model.lm_head.weight, base.model.embed_tokens.weight)
    trained = adapt(model, None, LORA)
    embedding = model.model.embed_tokens.weight.clone()
    names = set(weights_of(trained))
    assert all("lora_" in name for name in names) and len(names) == 2 * (2 * 4 + 1)
    assert not any(part in name for name in names for part in ("q_proj", "k_proj", "v_proj"))
    with torch.no_grad():
        for name, param in trained.named_parameters():
            if "lora_B" in name:
                param.normal_(0, 0.1)
    trained.eval()
    before = token_losses(trained, windows)
    plain = merged(trained)
    assert torch.allclose(before, token_losses(plain, windows), atol=1e-5)
    assert not torch.allclose(before, token_losses(base, windows), atol=1e-2)
    assert torch.equal(plain.model.embed_tokens.weight, embedding)
    save_weights(plain, tmp_path / "merged.safetensors")
    again = small(tie_word_embeddings=False)
    load_weights(again, tmp_path / "merged.safetensors")
    assert torch.equal(token_losses(again, windows), token_losses(plain, windows))


def test_a_tied_model_goes_through_adapters_to_fine_tuning(bench):
    here = bench(model={**tiny()["model"], "tie_word_embeddings": True}, stages__posttrain__lora=LORA)
    trial = here.trial(2)
    records = here.run_all(trial.stages)
    assert [r["payload"]["model"].get("tie_word_embeddings") for r in records] == [True, False, False, False]
    assert records[1]["parameters"] == records[0]["parameters"] + 256 * 32
    assert records[1]["losses"]["post"] < records[0]["losses"]["post"]


@pytest.mark.parametrize(
    ("dropout", "lora", "message"),
    [
        ({**NO_DROPOUT, "mlp": 0.1}, None, "stages.posttrain.dropout.mlp"),
        (None, {**LORA, "targets": ["w_proj", "lm_head"]}, "targets: this model has no w_proj"),
    ],
)
def test_a_model_without_the_place_is_refused(dropout, lora, message):
    model = build_model(build_config({"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2}, 256, 32), 0)
    with pytest.raises(UserError, match=message):
        adapt(model, dropout, lora)


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({"model_type": "gpt2"}, ["resid_pdrop is 0.1", "embd_pdrop is 0.1", "attn_pdrop is 0.1"]),
        ({"model_type": "opt", "layerdrop": 0.2}, ["dropout is 0.1", "layerdrop is 0.2"]),
        ({"model_type": "llama", "attention_dropout": 0.1}, ["attention_dropout is 0.1"]),
        ({"model_type": "phimoe"}, ["router_jitter_noise is 0.01"]),
        ({"model_type": "gpt2", "resid_pdrop": 0.0, "embd_pdrop": 0, "attn_pdrop": 0.0}, []),
        ({"model_type": "gpt_neox"}, []),  # its classifier's dropout is none of a causal model's
        (tiny()["model"], []),
    ],
)
def test_what_a_config_would_draw_itself_is_refused_all_at_once_and_a_checkpoint_s_too(fields, refused, tmp_path):
    """Its masks would depend on micro-batches, workers and kills, under the same key."""
    config = build_config(fields, 256, 32)
    config.save_pretrained(tmp_path)
    for found, checkpoint in ((config, None), (build_config({}, 256, 32, tmp_path), "base")):
        problems = []
        try:
            refuse_randomness(found, checkpoint)
        except UserError as error:
            problems = error.problems
        said = [re.sub("^model.checkpoint: base/config.json: |^model.", "", problem) for problem in problems]
        assert sorted(each.split(":")[0] for each in said) == sorted(refused)
        assert all("set it to 0.0" in each for each in said)
