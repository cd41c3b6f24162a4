"""One stage's training loop: AdamW, warmup and cosine, clipping, gradient accumulation. Plain PyTorch.

The global batch is a slice of the stage's schedule whatever the number of workers and the micro-batch; each worker
takes its share, and the loss is divided by the tokens of the *global* batch, so a short last batch weighs each of its
tokens as every other step does.
"""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ee_ray.data.order import Indices
from ee_ray.errors import Diverged
from ee_ray.evaluate import token_losses
from ee_ray.plan import StageIdentity

BETAS = (0.9, 0.95)  # paper, tables 3 to 8
CLIP_NORM = 1.0
CURVE_POINTS = 50
REPORT_SECONDS = 0.5

Gather = Callable[[Indices], NDArray[np.int64]]
Report = Callable[[int], object]


@dataclass(frozen=True)
class World:
    """This worker's place: rank of size, its device, and how a model is made ready for many workers (DDP)."""

    device: torch.device
    rank: int = 0
    size: int = 1
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model


@dataclass
class Curve:
    """About CURVE_POINTS points of training, one list a column; `loss` is this step's global batch, in nats."""

    step: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def learning_rate(stage: StageIdentity, step: int) -> float:
    """Linear warmup to the peak, then a cosine to the minimum at the stage's last step (step counts from 0)."""
    if step < stage.warmup_steps:
        return stage.learning_rate * (step + 1) / stage.warmup_steps
    progress = (step - stage.warmup_steps + 1) / max(1, stage.steps - stage.warmup_steps)
    low = stage.min_learning_rate
    return low + (stage.learning_rate - low) * 0.5 * (1 + math.cos(math.pi * progress))


def optimizer(model: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """AdamW; matrices decay, vectors (norms, biases) do not."""
    params = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=1.0, betas=BETAS, fused=True)


def _share(rows: Indices, world: World, micro_batch: int) -> list[tuple[Indices, float]]:
    """This worker's micro-batches of a global batch, each with its weight.

    A worker that a short last batch leaves without rows repeats one with weight 0: it must still join the reduction.
    """
    mine = rows[world.rank :: world.size]
    if len(mine) == 0:
        return [(rows[:1], 0.0)]
    return [(mine[i : i + micro_batch], 1.0) for i in range(0, len(mine), micro_batch)]


def _backward(
    net: nn.Module, gather: Gather, rows: Indices, stage: StageIdentity, world: World, micro: int
) -> torch.Tensor:
    """Accumulate the gradient of the mean loss over a global batch; returns this worker's part of that loss."""
    total = torch.zeros((), device=world.device)
    shares = _share(rows, world, micro)
    for number, (part, weight) in enumerate(shares):
        windows = torch.from_numpy(gather(part)).to(world.device, non_blocking=True)
        last = number == len(shares) - 1
        hold = contextlib.nullcontext() if last or not hasattr(net, "no_sync") else net.no_sync()  # type: ignore[operator]
        with hold:
            with torch.autocast(world.device.type, torch.bfloat16, enabled=stage.precision == "bf16"):
                losses = token_losses(net, windows)
            # DDP averages gradients over workers; the mean wanted is over the global batch's tokens.
            loss = losses.sum() * (weight * world.size / (len(rows) * stage.sequence_length))
            loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach() / world.size
    return total


def train(
    model: nn.Module,
    order: Indices,
    gather: Gather,
    stage: StageIdentity,
    world: World,
    micro_batch: int | None,
    report: Report,
) -> Curve:
    """Train `model` in place over the whole schedule.

    Args:
        order: the stage's schedule, one row a window (data/order.py).
        gather: rows of the schedule to their token windows, shape (n, sequence_length + 1).
        report: called with the number of tokens done, about every REPORT_SECONDS.

    Raises:
        Diverged: the gradient norm is not finite; every worker sees the same norm and raises at the same step.
    """
    net = world.wrap(model)
    net.train()
    optim = optimizer(net, stage.weight_decay)
    batch, curve = stage.global_batch_size, Curve()
    micro = min(micro_batch or batch, -(-batch // world.size))
    every = max(1, stage.steps // CURVE_POINTS)
    started = reported = time.monotonic()
    for step in range(stage.steps):
        rate = learning_rate(stage, step)
        for group in optim.param_groups:
            group["lr"] = rate
        optim.zero_grad(set_to_none=True)
        loss = _backward(net, gather, order[step * batch : (step + 1) * batch], stage, world, micro)
        norm = nn.utils.clip_grad_norm_(net.parameters(), CLIP_NORM)
        if (step + 1) % every == 0 or step + 1 == stage.steps:
            if not math.isfinite(float(norm)):
                raise Diverged(f"gradient norm {float(norm)} at step {step + 1} of {stage.steps}, learning rate {rate:g}, loss {float(loss):g}; the last losses were {[round(x, 4) for x in curve.loss[-5:]]}")  # fmt: skip
            _note(curve, stage, step, _global_sum(loss, world), rate, float(norm), time.monotonic() - started)
        optim.step()
        if time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            report(min((step + 1) * batch, len(order)) * stage.sequence_length)
    return curve


def _global_sum(loss: torch.Tensor, world: World) -> float:
    if world.size > 1:
        torch.distributed.all_reduce(loss)
    return float(loss)


def _note(curve: Curve, stage: StageIdentity, step: int, loss: float, rate: float, norm: float, seconds: float) -> None:
    curve.step.append(step + 1)
    curve.tokens.append(min((step + 1) * stage.global_batch_size, stage.windows) * stage.sequence_length)
    curve.loss.append(loss)
    curve.learning_rate.append(rate)
    curve.grad_norm.append(norm)
    curve.seconds.append(round(seconds, 4))
