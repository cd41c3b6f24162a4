"""What a stage notes of its training: a curve of losses, rates, speed and memory, at about CURVE_POINTS points.

Held-out losses are looked at on the way as often as LOOK_SHARE of the stage's arithmetic allows, so short stages have none
but the last, which is in the record.
"""

import math
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from ee_ray.devices import peak_flops, training_flops
from ee_ray.identity import StageIdentity
from ee_ray.world import World

CURVE_POINTS = 50
LOOKS = 10
LOOK_SHARE = 0.02
# A token that is trained takes three times the arithmetic of one that is only evaluated: forward once, backward twice.
TRAIN_TO_EVALUATE = 3


@dataclass
class Curve:
    """One list a column; loss in nats, NaN where nobody looked.

    loss:       of this step's global batch.
    validation: what early stopping watches.
    heldout_*:  of the weights after this step, on the windows that the record's losses are measured on.
    seconds:    since the stage began, evaluation and what was trained before an interruption included.
    tokens_per_s: since the point before, evaluation left out.
    peak_share: of that, as a share of the workers' bf16 peak; NaN where the device's is not known.
    memory:     bytes, the most since the stage began: of rank 0's GPU, or on a CPU of its process since it began.
    """

    step: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    heldout_pre: list[float] = field(default_factory=list)
    heldout_post: list[float] = field(default_factory=list)
    heldout_ft: list[float] = field(default_factory=list)
    tokens_per_s: list[float] = field(default_factory=list)
    peak_share: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)

    def add(self, **point: float) -> None:
        """One value for each column; NaN for those that are left out."""
        for name, column in vars(self).items():
            column.append(point.get(name, math.nan))


def steps_between_looks(stage: StageIdentity, windows: Mapping[str, int]) -> int:
    """Steps from one look at the held-out losses to the next: at most LOOKS, within LOOK_SHARE. Beyond the end: none.

    Args:
        windows: held-out windows of each role.
    """
    affordable = LOOK_SHARE * TRAIN_TO_EVALUATE * stage.windows / max(1, sum(windows.values()))
    looks = min(LOOKS, int(affordable))
    return max(1, stage.steps // looks) if looks else stage.steps + 1


def flops_per_token(model: nn.Module, sequence_length: int) -> float:
    """Of training; NaN for a model whose config does not say how deep and wide it is."""
    config = getattr(model, "config", None)
    layers, hidden = (getattr(config, name, None) for name in ("num_hidden_layers", "hidden_size"))
    if not layers or not hidden:
        return math.nan
    return training_flops(sum(p.numel() for p in model.parameters()), layers, hidden, sequence_length)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that was allocated on a GPU, or what was resident of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says of a child begins at what its parent held
        lines = (line.split() for line in status.read_text().splitlines())
        return next(int(words[1]) * 1024 for words in lines if words[0] == "VmHWM:")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Meter:
    """Measures between two points of a curve."""

    def __init__(self, world: World, flops: float, earlier: float, tokens: int) -> None:
        self._world, self._flops = world, flops
        self._began = time.monotonic() - earlier
        self._tokens, self._since, self._spent = tokens, time.monotonic(), 0.0
        if world.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(world.device)

    def pause(self) -> None:
        """Evaluation begins: until `resume` the time is not training's."""
        self._spent += time.monotonic() - self._since

    def resume(self) -> None:
        self._since = time.monotonic()

    def read(self, tokens: int) -> dict[str, float]:
        """seconds, tokens_per_s, peak_share and memory at `tokens`; the next reading measures from here."""
        self.pause()
        rate = (tokens - self._tokens) / self._spent if self._spent else math.nan
        self._tokens, self._spent = tokens, 0.0
        self.resume()
        device = self._world.device
        peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        share = rate * self._flops / (peak * self._world.size) if peak else math.nan
        return {
            "seconds": round(time.monotonic() - self._began, 4),
            "tokens_per_s": round(rate, 1),
            "peak_share": share,
            "memory": peak_memory(device),
        }
