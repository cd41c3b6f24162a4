"""Run one stage from the store to the store: parent's weights, data, training, held-out losses, publication.

The same function runs in process, on one machine and on a cluster; what differs between them is the `World`.
"""

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import transformers
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from ee_ray.board import Order
from ee_ray.data.order import Indices, Run, schedule
from ee_ray.data.pack import Packed, open_packed
from ee_ray.errors import Diverged, Superseded
from ee_ray.evaluate import heldout_loss
from ee_ray.identity import StageIdentity
from ee_ray.interventions import adapt, merged
from ee_ray.lease import Lease
from ee_ray.meter import steps_between_looks
from ee_ray.model import build_config, build_model, load_checkpoint, load_weights
from ee_ray.publish import publish
from ee_ray.resume import newest_state, optimizer_state, read_state, write_state
from ee_ray.store import OPTIMIZER, Store
from ee_ray.train import Batches, Keeper, Report, Watch, set_weights, train, weights_of
from ee_ray.world import World

ASKED_STEPS = 10


def _open(store: Store, fingerprint: str) -> Packed:
    packed = open_packed(store.corpus(fingerprint))
    if packed is None:
        raise FileNotFoundError(f"prepared data {fingerprint} is not in {store.place}")
    return packed


def batches_of(pools: list[Packed], stage: StageIdentity) -> Batches:
    """The stage's schedule over its pools; rows of it are (part, window)."""
    parts = zip(pools, stage.parts, strict=True)
    runs = [Run(pool.train_windows, part.start, part.stop, part.order_seed, part.passes) for pool, part in parts]

    def gather(rows: Indices) -> NDArray[np.int64]:
        out = np.empty((len(rows), stage.sequence_length + 1), np.int64)
        for number, pool in enumerate(pools):
            here = rows[:, 0] == number
            if here.any():
                out[here] = pool.gather("train", rows[here, 1])
        return out

    def counted(rows: Indices) -> int:
        return sum(int(pool.counted("train", rows[rows[:, 0] == number, 1]).sum()) for number, pool in enumerate(pools))

    return Batches(schedule(runs), gather, counted)


def load_model(store: Store, stage: StageIdentity, vocab_size: int, checks: bool) -> transformers.PreTrainedModel:
    """The model that a stage starts from: fresh, a checkpoint's, or its parent's."""
    fields = dict(stage.model)
    fingerprint = fields.pop("checkpoint", None)
    folder = store.model(fingerprint) if fingerprint else None
    config = build_config(fields, vocab_size, stage.sequence_length, folder)
    if folder and not stage.parent:
        return load_checkpoint(folder, config)
    model = build_model(config, stage.seed)
    if stage.parent:
        load_weights(model, store.weights_checked(stage.parent) if checks else store.weights(stage.parent))
    return model


def _keeper(store: Store, order: Order, world: World, background: ThreadPoolExecutor, lease: Lease | None) -> Keeper:
    """State is written by rank 0, in the background, every `checkpoint_steps`, and every `checkpoint_seconds` unless the
    last one is still being written. Where weights are sharded all workers must collect: they ask rank 0's clock every
    ASKED_STEPS."""
    stage, folder = order.stage.identity, store.states(order.stage.key)
    step = _from_rank_zero(newest_state(folder) if world.rank == 0 else 0, world)
    last, writing = time.monotonic(), None

    def is_due(step: int) -> bool:
        late = time.monotonic() - last >= order.checkpoint_seconds and (writing is None or writing.done())
        return late or (order.checkpoint_steps is not None and step % order.checkpoint_steps == 0)

    def save(step: int, collect: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]]) -> None:
        nonlocal last, writing
        if world.is_sharded:
            every = min(ASKED_STEPS, order.checkpoint_steps or ASKED_STEPS)
            if step % every or not _from_rank_zero(is_due(step), world):
                return
        elif world.rank or not is_due(step):
            return
        tensors, facts = collect()
        if world.rank == 0:
            if writing:
                writing.result()
            writing = background.submit(_write, store, order.stage.key, lease, step, tensors, facts)
            last = time.monotonic()

    start = load_file(store.file(stage.parent, OPTIMIZER)) if stage.parent and stage.course.begin else None
    return Keeper(start, read_state(folder, step) if step else None, save)


def _write(
    store: Store, key: str, lease: Lease | None, step: int, tensors: dict[str, Tensor], facts: dict[str, Any]
) -> None:
    if lease:
        lease.confirm()
    write_state(store.work(key), step, tensors, facts)
    store.share_states(key)


def _from_rank_zero(value: int, world: World) -> int:
    """What rank 0 has, on every worker."""
    if world.size == 1:
        return value
    box = torch.tensor([value], device=world.device)
    dist.broadcast(box, 0)
    return int(box)


def _watch(
    store: Store, stage: StageIdentity, model: nn.Module, windows: dict[str, NDArray[np.int64]], world: World
) -> Watch:
    """Early stopping watches held-out windows of D_post that L_im is not measured on; the curve those that it is."""

    def loss(windows: NDArray[np.int64]) -> float:
        return heldout_loss(model, windows, world.device, stage.precision)

    every = steps_between_looks(stage, {role: len(rows) for role, rows in windows.items()})

    def losses() -> dict[str, float]:
        return {role: loss(rows) for role, rows in windows.items()}

    if not stage.early_stopping:
        return Watch(heldout=losses, every=every)
    pool = _open(store, dict(stage.heldout)["post"])
    watched = pool.validation(stage.early_stopping["windows"], stage.heldout_windows)
    return Watch(lambda: loss(watched), losses, every)


def _handed_on(store: Store, stage: StageIdentity, trained: nn.Module, world: World, vocab_size: int) -> nn.Module:
    """The plain model, whole on every worker."""
    if not world.is_sharded:
        return merged(trained)
    again = adapt(load_model(store, stage, vocab_size, checks=False), stage.dropout, stage.lora)
    set_weights(again, weights_of(trained))
    return merged(again).to(world.device)


def _earlier_seconds(keeper: Keeper) -> float:
    """What the state that a stage goes on from took to train. Of what an attempt did after its last state nobody knows."""
    curve = keeper.saved[1]["curve"]["seconds"] if keeper.saved else []
    return float(curve[-1]) if curve else 0.0


def run_stage(store: Store, order: Order, world: World, report: Report, lease: Lease | None = None) -> bool:
    """Train, evaluate and publish one stage; True if this call published it.

    lease: rank 0's, on this stage. Who loses it writes nothing more.

    Raises:
        Diverged: training left the finite numbers.
        Superseded: another has taken the stage over.
    """
    try:
        return _run_stage(store, order, world, report, lease)
    except Superseded:
        store.journal(order.sweep, event="left to another", key=order.stage.key)
        raise


def _run_stage(store: Store, order: Order, world: World, report: Report, lease: Lease | None) -> bool:
    started = time.monotonic()
    stage = order.stage.identity
    pools = [_open(store, part.data) for part in stage.parts]
    model = load_model(store, stage, pools[0].vocab_size, checks=world.rank == 0)
    torch.manual_seed(stage.seed)  # adapters are drawn from it
    trained = adapt(model, stage.dropout, stage.lora).to(world.device)
    batches = batches_of(pools, stage)
    heldout = {role: _open(store, data).heldout(stage.heldout_windows) for role, data in stage.heldout}
    with ThreadPoolExecutor(1) as background:
        keeper = _keeper(store, order, world, background, lease)
        if world.rank == 0:
            resumed = keeper.saved[1]["step"] if keeper.saved else 0
            store.journal(order.sweep, event="begun", key=order.stage.key, step=resumed)
        training = time.monotonic()
        watch = _watch(store, stage, trained, heldout, world)
        at, optim = train(trained, batches, stage, world, order.micro_batch, report, watch, keeper)
    moments = optimizer_state(trained, optim) if stage.is_continued else None
    plain = _handed_on(store, stage, trained, world, pools[0].vocab_size)
    del model, trained, optim, watch  # what is sharded may need its room for the whole
    evaluating = time.monotonic()
    losses = {role: heldout_loss(plain, rows, world.device, stage.precision) for role, rows in heldout.items()}
    if not all(map(math.isfinite, losses.values())):
        raise Diverged(f"held-out losses {losses} after the last of {at.step} steps; the last losses were {[round(x, 4) for x in at.curve.loss[-5:]]}")  # fmt: skip
    trained_s = _earlier_seconds(keeper) + evaluating - training
    seconds = {"setup": training - started, "train": trained_s, "evaluate": time.monotonic() - evaluating}
    published = world.rank == 0 and publish(store, order, plain, moments, world, at, losses, seconds, lease)
    if world.rank == 0:
        store.journal(order.sweep, event="published" if published else "found published", key=order.stage.key)
    if world.size > 1:
        dist.barrier()
    return published
