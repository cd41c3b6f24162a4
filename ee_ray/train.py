"""One stage's training loop: AdamW, warmup and cosine, clipping, gradient accumulation. Plain PyTorch.

The global batch is a slice of the stage's schedule whatever the number of workers and the micro-batch; each worker
takes its share, and the loss is divided by the tokens of the *global* batch that carry loss, so a short last batch
weighs each of its tokens as every other step does.
"""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ee_ray.accelerate import compile_blocks, compiling_pays, micro_batch_that_fits
from ee_ray.allocator import keep_freed_memory
from ee_ray.data.order import Indices
from ee_ray.errors import Diverged
from ee_ray.feed import made_ahead
from ee_ray.identity import StageIdentity
from ee_ray.loss import separable_head, summed_loss
from ee_ray.meter import CURVE_POINTS, Meter, flops_per_token
from ee_ray.metrics import Curve
from ee_ray.resume import optimizer_state, set_optimizer_state
from ee_ray.world import World, laid_out_as, whole

BETAS = (0.9, 0.95)  # paper, tables 3 to 8
CLIP_NORM = 1.0
REPORT_SECONDS = 0.5
# Sequences that share one draw of dropout's masks. Fixed, so that masks depend neither on workers nor on micro-batches;
# 8 x 1,024 tokens fill a GPU, and more would only save memory traffic.
MASK_SEQUENCES = 8
AHEAD = 4  # micro-batches read before an accelerator asks for them

Report = Callable[[int], object]


@dataclass(frozen=True)
class Batches:
    """What a stage trains on, in order.

    order:   its schedule, one row a window (data/order.py).
    gather:  rows of it to their windows, shape (n, sequence_length + 1); ~t where token t carries no loss.
    counted: rows of it to the number of tokens in them that carry loss.
    """

    order: Indices
    gather: Callable[[Indices], NDArray[np.int64]]
    counted: Callable[[Indices], int]


@dataclass
class Progress:
    """How far a stage is. With early stopping `best` holds the weights that had the lowest validation loss."""

    step: int = 0
    curve: Curve = field(default_factory=Curve)
    best_loss: float = math.inf
    best_step: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        return {"curve": asdict(self.curve), "best_loss": self.best_loss, "best_step": self.best_step}


@dataclass(frozen=True)
class Keeper:
    """Where a stage's state goes half-way and where it comes from. `start` is the optimizer that it continues, if any;
    `saved` is its own last state; `save` is called after each step with a function that collects the state, and decides."""

    start: Mapping[str, Tensor] | None = None
    saved: tuple[Mapping[str, Tensor], Mapping[str, Any]] | None = None
    save: Callable[[int, Callable[[], tuple[dict[str, Tensor], dict[str, Any]]]], None] = lambda step, collect: None


def learning_rate(stage: StageIdentity, step: int) -> float:
    """Linear warmup to the peak, then a cosine to the minimum at the end of the stage's course (step counts from 0)."""
    course = stage.course
    done = min((step + 1) * stage.global_batch_size, stage.windows) / stage.windows
    at = course.begin + (course.end - course.begin) * done
    if at < course.warmup:
        return stage.learning_rate * at / course.warmup
    progress = (at - course.warmup) / max(1, course.total - course.warmup)
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


def has_masks(stage: StageIdentity) -> bool:
    """Training draws random masks."""
    return bool(stage.dropout) or bool(stage.lora and stage.lora["dropout"])


def shares(rows: Indices, world: World, micro_batch: int, masked: bool) -> list[tuple[Indices, float, int]]:
    """This worker's micro-batches of a global batch, each with its weight and the number of its draw of masks.

    Every worker gets as many: where one has less, or in a short last batch nothing, it repeats a row with weight 0, for it
    must join what the others do together.
    """
    if masked:
        blocks = [(rows[i : i + MASK_SEQUENCES], 1.0, i) for i in range(0, len(rows), MASK_SEQUENCES)]
        mine, most = blocks[world.rank :: world.size], math.ceil(len(blocks) / world.size)
    else:
        own = rows[world.rank :: world.size]
        mine = [(own[i : i + micro_batch], 1.0, 0) for i in range(0, len(own), micro_batch)]
        most = math.ceil(math.ceil(len(rows) / world.size) / micro_batch)
    return mine + [(rows[:1], 0.0, 0)] * (most - len(mine))


class _Trainer:
    """One stage in the middle of its training."""

    def __init__(
        self, model: nn.Module, batches: Batches, stage: StageIdentity, world: World, micro_batch: int | None
    ) -> None:
        self.model, self.batches, self.stage, self.world = model, batches, stage, world
        self.head = separable_head(model)
        self.masked = has_masks(stage)
        self.micro = self._micro_batch(micro_batch)
        parameters = sum(p.numel() for p in model.parameters())
        if compiling_pays(world.device, parameters, stage.tokens, self.masked):
            compile_blocks(model)
        self.net = world.spread(model)
        self.optim = optimizer(model, stage.weight_decay)
        self.at = Progress()

    def _micro_batch(self, asked: int | None) -> int:
        """Sequences per forward pass: what was asked for, or what fits; on a CPU a worker's whole share."""
        stage, most = self.stage, -(-self.stage.global_batch_size // self.world.size)
        if asked or self.masked or self.world.device.type != "cuda":
            return min(asked or most, most)
        fits = micro_batch_that_fits(self.model, self.head, stage.sequence_length, stage.precision, most)
        if self.world.size > 1:  # the same on every worker
            box = torch.tensor([fits], device=self.world.device)
            torch.distributed.all_reduce(box, torch.distributed.ReduceOp.MIN)
            fits = int(box)
        return fits

    def restore(self, keeper: Keeper) -> None:
        if keeper.start:
            set_optimizer_state(self.model, self.optim, keeper.start)
        if keeper.saved:
            tensors, facts = keeper.saved
            set_weights(self.model, _under("model.", tensors))
            set_optimizer_state(self.model, self.optim, tensors)
            self.at = Progress(
                facts["step"], Curve(**facts["curve"]), facts["best_loss"], facts["best_step"], _under("best.", tensors)
            )

    def collect(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that `restore` needs, whole and copied to the CPU: training may go on while it is written."""
        tensors = {f"model.{name}": value for name, value in weights_of(self.model).items()}
        best = {f"best.{name}": value for name, value in self.at.best.items()}
        return {**tensors, **best, **optimizer_state(self.model, self.optim)}, self.at.facts()

    def feed(self) -> Iterator[Tensor]:
        """Windows of this worker's micro-batches, from the step that training is at to the end."""
        stage, cuda = self.stage, self.world.device.type == "cuda"
        steps = range(self.at.step, stage.steps)
        parts = (part for step in steps for part, _, _ in shares(self._rows(step), self.world, self.micro, self.masked))

        def read(part: Indices) -> Tensor:
            windows = torch.from_numpy(self.batches.gather(part))
            return windows.pin_memory() if cuda else windows

        return made_ahead(parts, read, AHEAD if cuda else 0)

    def _rows(self, step: int) -> Indices:
        size = self.stage.global_batch_size
        return self.batches.order[step * size : (step + 1) * size]

    def step(self, feed: Iterator[Tensor]) -> tuple[Tensor, float, Tensor]:
        """One step up to the optimizer's own: this worker's part of the global batch's loss, the learning rate, gradient norm."""
        stage, step = self.stage, self.at.step
        rate = learning_rate(stage, step)
        for group in self.optim.param_groups:
            group["lr"] = rate
        self.optim.zero_grad(set_to_none=True)
        loss = self._backward(self._rows(step), feed)
        norm = whole(nn.utils.clip_grad_norm_(self.net.parameters(), CLIP_NORM))
        self.at.step += 1
        return loss, rate, norm

    def _backward(self, rows: Indices, feed: Iterator[Tensor]) -> Tensor:
        """Accumulate the gradient of the mean loss over a global batch; returns this worker's part of that loss."""
        world, net = self.world, self.net
        total = torch.zeros((), device=world.device)
        counted = max(1, self.batches.counted(rows))
        parts = shares(rows, world, self.micro, self.masked)
        for number, (_, weight, draw) in enumerate(parts):
            windows = next(feed).to(world.device, non_blocking=True)
            if self.masked:
                torch.manual_seed(_mask_seed(self.stage.seed, self.at.step, draw))
            last = number == len(parts) - 1
            hold = contextlib.nullcontext() if last or not hasattr(net, "no_sync") else net.no_sync()  # type: ignore[operator]
            with hold:
                with torch.autocast(world.device.type, torch.bfloat16, enabled=self.stage.precision == "bf16"):
                    loss = summed_loss(net, windows, self.head)
                # DDP averages gradients over workers; the mean wanted is over the global batch's tokens.
                loss = loss * (weight * world.size / counted)
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach() / world.size
        return total

    def validate(self, loss: float) -> bool:
        """Take a validation loss in: remember the weights if it is the best; True when patience is at its end."""
        stopping = self.stage.early_stopping
        assert stopping
        if loss < self.at.best_loss:
            self.at.best_loss, self.at.best_step, self.at.best = loss, self.at.step, weights_of(self.model)
        return self.at.step - self.at.best_step >= stopping["patience"] * stopping["every_steps"]


def _mask_seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies on the CPU of what training changes, whole, by name; tied tensors once."""
    return {
        name: whole(param.detach()).cpu().clone() for name, param in model.named_parameters() if param.requires_grad
    }


@torch.no_grad()
def set_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """The reverse of `weights_of`, whatever the layout of the model.

    Raises:
        KeyError: a parameter that is trained is missing.
    """
    for name, param in model.named_parameters():
        if param.requires_grad:
            param.copy_(laid_out_as(weights[name], param))


@dataclass(frozen=True)
class Watch:
    """What is evaluated on the way, the same on every worker.

    validation: the loss that early stopping watches.
    heldout:    losses by role, for the curve, after every `every` steps.
    """

    validation: Callable[[], float] = lambda: math.nan
    heldout: Callable[[], Mapping[str, float]] = dict
    every: int = sys.maxsize


def train(
    model: nn.Module,
    batches: Batches,
    stage: StageIdentity,
    world: World,
    micro_batch: int | None,
    report: Report,
    watch: Watch = Watch(),
    keeper: Keeper = Keeper(),
) -> tuple[Progress, torch.optim.Optimizer]:
    """Train `model` in place over the whole schedule, or until early stopping ends it with the best weights restored.

    Args:
        report: called with the number of tokens done, about every REPORT_SECONDS.

    Raises:
        Diverged: the gradient norm is not finite; every worker sees the same norm and raises at the same step.
    """
    keep_freed_memory()
    flops = flops_per_token(model, stage.sequence_length)
    trainer = _Trainer(model, batches, stage, world, micro_batch)
    trainer.restore(keeper)
    feed = trainer.feed()
    trainer.net.train()
    at, stopping = trainer.at, stage.early_stopping
    every = max(1, stage.steps // CURVE_POINTS)
    meter = Meter(world, flops, at.curve.seconds[-1] if at.curve.seconds else 0.0, _tokens(stage, at.step))
    reported = time.monotonic()
    while at.step < stage.steps:
        loss, rate, norm = trainer.step(feed)
        ends = at.step == stage.steps
        validates = bool(stopping) and (ends or at.step % stopping["every_steps"] == 0)  # type: ignore[index]
        looks = not ends and at.step % watch.every == 0
        noted = ends or validates or looks or at.step % every == 0
        if (noted or world.device.type == "cpu") and not math.isfinite(float(norm)):
            raise Diverged(f"gradient norm {float(norm)} at step {at.step} of {stage.steps}, learning rate {rate:g}, loss {float(loss):g}; the last losses were {[round(x, 4) for x in at.curve.loss[-5:]]}")  # fmt: skip
        trainer.optim.step()
        seen = math.nan
        if noted:
            mean, tokens = _global_sum(loss, world), _tokens(stage, at.step)
            speed = meter.read(tokens)
            meter.pause()
            seen = watch.validation() if validates else math.nan
            heldout = {f"heldout_{role}": value for role, value in watch.heldout().items()} if looks else {}
            meter.resume()
            at.curve.add(step=at.step, tokens=tokens, loss=mean, learning_rate=rate, grad_norm=float(norm), validation=seen, **speed, **heldout)  # fmt: skip
        if validates and trainer.validate(seen):
            break
        if not ends:
            keeper.save(at.step, trainer.collect)
        if time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            report(_tokens(stage, at.step))
    if at.best:
        set_weights(model, at.best)
    return at, trainer.optim


def _tokens(stage: StageIdentity, step: int) -> int:
    """Trained after `step` steps."""
    return min(step * stage.global_batch_size, stage.windows) * stage.sequence_length


def _global_sum(loss: Tensor, world: World) -> float:
    if world.size > 1:
        torch.distributed.all_reduce(loss)
    return float(loss)
