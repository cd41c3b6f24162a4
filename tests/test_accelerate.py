"""What is done for speed changes no batch, no order and, on a CPU, no number. Parts of a GPU that a CPU can show are shown here."""

import shutil
import subprocess
import sys
import threading

import pytest
import torch
from conftest import ray_environment
from test_loss import LLAMA, windows  # noqa: F401

from ee_ray.accelerate import compiling_pays, largest, micro_batch_that_fits
from ee_ray.allocator import keep_freed_memory
from ee_ray.feed import made_ahead
from ee_ray.loss import separable_head, summed_loss
from ee_ray.model import build_config, build_model

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("ahead", [0, 1, 4, 99])
def test_what_is_made_ahead_comes_in_order(ahead):
    assert list(made_ahead(range(20), lambda part: part * part, ahead)) == [part * part for part in range(20)]


def test_a_thread_works_ahead_by_so_many_and_no_more_and_ends_with_the_iterator():
    made = []
    before = threading.active_count()
    found = made_ahead(iter(range(100)), lambda part: made.append(part) or part, 3)
    assert [next(found) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert 5 <= len(made) <= 5 + 3
    found.close()
    assert threading.active_count() == before and len(made) <= 5 + 3


def test_what_fails_ahead_fails_where_it_is_asked_for():
    found = made_ahead([1, 0, 1], lambda part: 1 // part, 2)
    assert next(found) == 1
    with pytest.raises(ZeroDivisionError):
        next(found)


@pytest.mark.parametrize(
    ("capacity", "most", "fits"),
    [
        (100, 64, 8),
        (99, 64, 8),
        (29, 64, 1),
        (0, 64, 1),
        (30, 64, 2),
        (10**9, 64, 64),
        (10**9, 48, 48),
        (450, 48, 32),
        (490, 48, 48),
    ],
)
def test_a_micro_batch_fills_the_memory_there_is(capacity, most, fits):
    """One sequence takes 20, each more takes 10."""
    assert largest(20, 30, capacity, most) == fits
    assert fits == 1 or 20 + 10 * (fits - 1) <= capacity


def test_only_long_stages_without_masks_on_an_accelerator_are_compiled():
    assert compiling_pays(CUDA, 134_515_008, 3_000_000_000, False)
    assert not compiling_pays(CUDA, 134_515_008, 3_000_000, False)
    assert not compiling_pays(CUDA, 134_515_008, 3_000_000_000, True)
    assert not compiling_pays(CPU, 134_515_008, 3_000_000_000, False)


def test_memory_is_kept_on_glibc():
    assert keep_freed_memory() == (sys.platform == "linux")


COMPILED = """
import torch
from torch._dynamo.utils import counters
from ee_ray.accelerate import compile_blocks
from ee_ray.loss import separable_head, summed_loss
from ee_ray.model import build_config, build_model
torch.set_num_threads(1)
fields = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
model = build_model(build_config(fields, 300, 32), 0)
windows = torch.randint(1, 299, (4, 33))
names = [name for name, _ in model.named_parameters()]
def step():
    model.zero_grad()
    loss = summed_loss(model, windows, separable_head(model))
    loss.backward()
    return loss.item(), [p.grad.clone() for p in model.parameters()]
plain = step()
if BROKEN:
    def broken(graph, inputs): raise RuntimeError("no compiler here")
    compile_ = torch.nn.Module.compile
    torch.nn.Module.compile = lambda self, **how: compile_(self, backend=broken, **how)
assert compile_blocks(model) == 4
compiled = step()
assert abs(compiled[0] - plain[0]) < 1e-5 * plain[0]
assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(plain[1], compiled[1]))
assert [name for name, _ in model.named_parameters()] == names
print(counters["stats"]["unique_graphs"])
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ray_environment(), timeout=250)  # fmt: skip


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile on a CPU needs a C++ compiler")
def test_compiled_blocks_give_the_same_loss_and_share_their_code():
    done = run("BROKEN = False" + COMPILED)
    assert done.returncode == 0, done.stderr
    assert 1 <= int(done.stdout) <= 3  # by the mode of gradients, not by the layer


def test_what_cannot_be_compiled_runs_as_it_is_and_says_so():
    done = run("BROKEN = True" + COMPILED)
    assert done.returncode == 0, done.stderr
    assert "no compiler here" in done.stderr


@needs_gpu
def test_a_step_on_a_gpu_waits_for_nothing(windows):  # noqa: F811
    model = build_model(build_config(LLAMA, 300, 32), 0).cuda()
    head, there = separable_head(model), windows.pin_memory().cuda(non_blocking=True)
    optim = torch.optim.AdamW(model.parameters(), fused=True)
    summed_loss(model, there, head).backward()
    optim.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        summed_loss(model, windows.pin_memory().to("cuda", non_blocking=True), head).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optim.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_the_micro_batch_that_is_said_to_fit_trains():
    model = build_model(build_config(LLAMA, 300, 32), 0).cuda()
    assert micro_batch_that_fits(model, separable_head(model), 32, "bf16", 64) == 64
