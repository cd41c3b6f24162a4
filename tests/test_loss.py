"""The loss in pieces is the loss: same value, same gradients, whatever stands around the model."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import ray_environment
from torch import nn

import ee_ray.loss
from ee_ray.evaluate import heldout_loss
from ee_ray.interventions import adapt
from ee_ray.loss import separable_head, summed_loss, token_losses
from ee_ray.model import build_config, build_model

LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}  # fmt: skip
TIED = {**LLAMA, "tie_word_embeddings": True}
LIKE_LLAMA = {key: value for key, value in LLAMA.items() if key != "model_type"}
SEPARABLE = {
    "llama": LLAMA,
    "tied": TIED,
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 32,
        "n_layer": 1,
        "n_head": 2,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "phi, whose head has a bias": {"model_type": "phi", **LIKE_LLAMA},
    "qwen3": {"model_type": "qwen3", **LIKE_LLAMA, "head_dim": 16, "num_key_value_heads": 1},
    "gpt_neox": {"model_type": "gpt_neox", **LIKE_LLAMA},
}
MORE_THAN_A_HEAD = {
    "gemma2, soft-capping": {
        "model_type": "gemma2",
        **LIKE_LLAMA,
        "head_dim": 16,
        "num_key_value_heads": 1,
        "final_logit_softcapping": 30.0,
    },
    "granite, scaling": {"model_type": "granite", **LIKE_LLAMA, "logits_scaling": 8.0},
    "cohere, scaling": {"model_type": "cohere", **LIKE_LLAMA, "logit_scale": 0.0625, "pad_token_id": 0},
}
NO_DROPOUT = {"embedding": 0.0, "attention": 0.0, "residual": 0.0, "mlp": 0.0}
LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "targets": ["o_proj", "up_proj", "lm_head"]}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """13 tokens at a time: 4 x 32 tokens are ten pieces, the last of them short."""
    monkeypatch.setattr(ee_ray.loss, "CHUNK_LOGITS", {"cpu": 13 * 300})
    monkeypatch.setattr(ee_ray.loss, "CHUNK_TOKENS_LEAST", 1)


@pytest.fixture
def windows():
    made = torch.from_numpy(np.random.default_rng(0).integers(1, 299, (4, 33)))
    made[:, 10:20] = ~made[:, 10:20]  # read, but no loss on them
    return made


def model_of(fields) -> nn.Module:
    model = build_model(build_config(fields, 300, 32), 0)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)  # logits of a model that has learnt something
    return model


def both_ways(model, windows, net=None, precision=torch.float32):
    """(loss, gradients) in pieces and of whole logits, with the same draws of dropout."""
    found = []
    for head in (separable_head(model), None):
        torch.manual_seed(0)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            loss = summed_loss(net or model, windows, head)
        (loss * 0.25).backward()
        found.append((loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    return found


def assert_close(pieces, whole, rtol):
    assert pieces[0].item() == pytest.approx(whole[0].item(), rel=rtol)
    assert pieces[1].keys() == whole[1].keys() and pieces[1]
    for name, gradient in whole[1].items():
        assert (pieces[1][name] - gradient).norm() <= rtol * gradient.norm() + 1e-7, name


@pytest.mark.parametrize("name", SEPARABLE)
def test_loss_and_gradients_in_pieces_are_those_of_whole_logits(name, windows):
    model = model_of(SEPARABLE[name])
    assert separable_head(model) is model.get_output_embeddings()
    assert_close(*both_ways(model, windows), rtol=2e-6)


@pytest.mark.parametrize("name", MORE_THAN_A_HEAD)
def test_a_model_that_does_more_to_its_logits_keeps_whole_ones(name, windows):
    model = model_of(MORE_THAN_A_HEAD[name])
    assert separable_head(model) is None
    expected = model(input_ids=torch.where(windows < 0, ~windows, windows)[:, :-1]).logits.float()
    expected = nn.functional.cross_entropy(expected.flatten(0, 1), windows[:, 1:].clamp(min=0).flatten(), reduction="none")  # fmt: skip
    kept = (windows[:, 1:] >= 0).flatten()
    assert torch.equal(token_losses(model, windows, separable_head(model)).flatten()[kept], expected[kept])


def test_in_bf16_both_are_equally_near_to_full_precision(windows):
    model = model_of(TIED)
    _, exact = both_ways(model, windows)
    pieces, whole = both_ways(model, windows, precision=torch.bfloat16)

    def error(found):
        return sum((found[1][name] - gradient).norm() ** 2 for name, gradient in exact[1].items()) ** 0.5

    assert error(pieces) <= 1.2 * error(whole)
    assert pieces[0].item() == pytest.approx(whole[0].item(), rel=1e-3)


def test_adapters_of_the_head_and_dropout_get_their_gradients(windows):
    model = adapt(model_of(LLAMA), {**NO_DROPOUT, "residual": 0.2, "embedding": 0.1}, LORA)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if "lora_B" in name:
                param.normal_(0, 0.1)
    model.train()
    pieces, whole = both_ways(model, windows)
    assert any("lm_head.lora_A" in name for name in pieces[1]) and all("lora_" in name for name in pieces[1])
    assert_close(pieces, whole, rtol=2e-6)
    assert model.training


def test_a_wrapped_model_reduces_the_gradients_of_the_pieces(windows, tmp_path):
    model = model_of(TIED)
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        assert_close(*both_ways(model, windows, nn.parallel.DistributedDataParallel(model)), rtol=2e-6)
    finally:
        dist.destroy_process_group()


def test_evaluation_in_pieces_gives_each_token_its_loss(windows, monkeypatch):
    model = model_of(LLAMA)
    whole = token_losses(model, windows)
    with torch.no_grad():
        pieces = token_losses(model, windows, separable_head(model))
    assert torch.allclose(pieces, whole, rtol=1e-5, atol=1e-6) and not pieces[:, 9:19].any()
    mean = heldout_loss(model, windows.numpy(), torch.device("cpu"), "fp32")
    assert mean == pytest.approx(whole.sum().item() / (4 * 22), rel=1e-6)


def test_few_logits_are_made_at_once_to_the_last_bit_of_plain_arithmetic(windows, monkeypatch):
    monkeypatch.setattr(ee_ray.loss, "CHUNK_LOGITS", {"cpu": 1 << 22})
    model = model_of(LLAMA)
    pieces, whole = both_ways(model, windows)
    assert torch.equal(pieces[0], whole[0]) and all(torch.equal(pieces[1][n], g) for n, g in whole[1].items())


def test_the_head_is_itself_again_whatever_happens(windows):
    model = model_of(LLAMA)
    head = separable_head(model)
    summed_loss(model, windows, head)
    assert "forward" not in head.__dict__
    with pytest.raises(IndexError):
        summed_loss(model, windows * 1000, head)
    assert "forward" not in head.__dict__


PEAK = """
import sys, torch
from ee_ray.loss import separable_head, summed_loss
from ee_ray.model import build_config, build_model
fields = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
model = build_model(build_config(fields, 49_152, 512), 0)
windows = torch.randint(0, 49_152, (4, 513))
head = separable_head(model) if sys.argv[1] == "pieces" else None
def peak():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))) / 1024
before = peak()
summed_loss(model, windows, head).backward()
print(peak() - before)
"""


def test_the_logits_of_49152_tokens_are_never_in_memory_together():
    """2,048 tokens: 403 MB of fp32 logits, of which whole ones need three copies. In pieces: the gradients of head and
    embedding, a copy while they are added up (38 MB), and three copies of 50 MB of logits."""
    peaks = {}
    for way in ("pieces", "whole"):
        done = subprocess.run([sys.executable, "-c", PEAK, way], capture_output=True, text=True, check=True, env=ray_environment())  # fmt: skip
        peaks[way] = float(done.stdout)
    assert peaks["whole"] > 800
    assert peaks["pieces"] < 330
