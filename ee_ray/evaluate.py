"""Held-out loss: a token-weighted mean over a fixed set of windows, the same for any number of workers."""

import math

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F

# Tokens per forward pass. Fixed, because the batch shape decides the last bits of a matrix product; about
# 13 MB of fp32 logits for bytes, 0.8 GB for a vocabulary of 49,152.
CHUNK_TOKENS = 4096
NO_LOSS = -100


def token_losses(model: nn.Module, windows: Tensor) -> Tensor:
    """Cross-entropy in nats of each next token. windows: (n, length + 1) int64; returns (n, length) fp32.

    A token that is read but carries no loss is stored as its complement, ~t, and has loss 0.
    """
    inputs, targets = windows[:, :-1], windows[:, 1:]
    logits = model(input_ids=torch.where(inputs < 0, ~inputs, inputs)).logits.float()
    targets = targets.masked_fill(targets < 0, NO_LOSS)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=NO_LOSS).view(
        targets.shape
    )


@torch.no_grad()
def heldout_loss(model: nn.Module, windows: NDArray[np.int64], device: torch.device, precision: str) -> float:
    """Mean loss in nats per token. Workers share out whole chunks and add the sums in one order, in float64."""
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    chunk = max(1, CHUNK_TOKENS // (windows.shape[1] - 1))
    starts = range(0, len(windows), chunk)
    sums = torch.zeros(len(starts), dtype=torch.float64, device=device)
    was_training = model.training
    model.eval()
    # Where the model is sharded each forward pass is an act of all workers: those without a chunk repeat the last one.
    rounds = math.ceil(len(starts) / size) * size if isinstance(model, FSDPModule) else len(starts)
    for number in range(rank, rounds, size):
        start = starts[min(number, len(starts) - 1)]
        batch = torch.from_numpy(windows[start : start + chunk]).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = token_losses(model, batch).sum(dtype=torch.float64)
        if number < len(starts):
            sums[number] = loss
    if isinstance(model, FSDPModule):
        model.reshard()  # backward does it in training; its parameters are not those of the optimizer until then
    model.train(was_training)
    if size > 1:
        dist.all_reduce(sums)
    return float(sums.sum().item() / (windows[:, 1:] >= 0).sum())
