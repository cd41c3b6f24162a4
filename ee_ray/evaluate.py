"""Held-out loss: a token-weighted mean over a fixed set of windows, the same for any number of workers."""

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

# Tokens per forward pass. Fixed, because the batch shape decides the last bits of a matrix product; about
# 13 MB of fp32 logits for bytes, 0.8 GB for a vocabulary of 49,152.
CHUNK_TOKENS = 4096


def token_losses(model: nn.Module, windows: Tensor) -> Tensor:
    """Cross-entropy in nats of each next token. windows: (n, length + 1) int64; returns (n, length) fp32."""
    inputs, targets = windows[:, :-1], windows[:, 1:]
    logits = model(input_ids=inputs).logits.float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


@torch.no_grad()
def heldout_loss(model: nn.Module, windows: NDArray[np.int64], device: torch.device, precision: str) -> float:
    """Mean loss in nats per token. Workers share out whole chunks and add the sums in one order, in float64."""
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    length = windows.shape[1] - 1
    chunk = max(1, CHUNK_TOKENS // length)
    starts = range(0, len(windows), chunk)
    sums = torch.zeros(len(starts), dtype=torch.float64, device=device)
    was_training = model.training
    model.eval()
    for number in range(rank, len(starts), size):
        batch = torch.from_numpy(windows[starts[number] : starts[number] + chunk]).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            sums[number] = token_losses(model, batch).sum(dtype=torch.float64)
    model.train(was_training)
    if size > 1:
        dist.all_reduce(sums)
    return float(sums.sum().item() / (len(windows) * length))
