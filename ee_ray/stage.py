"""Run one stage from the store to the store: parent's weights, data, training, held-out losses, publication.

The same function runs in process, on one machine and on a cluster; what differs between them is the `World`.
"""

import math
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import torch
import torch.distributed as dist
import transformers
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ee_ray.board import Order
from ee_ray.data.order import Indices, Run, schedule
from ee_ray.data.pack import Packed, open_packed
from ee_ray.evaluate import heldout_loss
from ee_ray.identity import StageIdentity
from ee_ray.interventions import adapt, merged
from ee_ray.model import build_config, build_model, load_checkpoint, load_weights, save_weights
from ee_ray.resume import newest_state, optimizer_state, read_state, write_state
from ee_ray.store import METRICS, OPTIMIZER, WEIGHTS, Store
from ee_ray.train import Batches, Keeper, Progress, Report, World, train


def _open(store: Store, fingerprint: str) -> Packed:
    packed = open_packed(store.data(fingerprint))
    if packed is None:
        raise FileNotFoundError(f"prepared data {fingerprint} is not in {store.root}")
    return packed


def _batches(pools: list[Packed], stage: StageIdentity) -> Batches:
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


def _load(store: Store, stage: StageIdentity, vocab_size: int, checks: bool) -> transformers.PreTrainedModel:
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


def _keeper(store: Store, order: Order, world: World, background: ThreadPoolExecutor) -> Keeper:
    """State is saved by rank 0, in the background, every `checkpoint_seconds`; one save at a time."""
    stage, folder = order.stage.identity, store.work(order.stage.key)
    step = newest_state(folder) if world.rank == 0 else 0
    if world.size > 1:
        box = [step]
        dist.broadcast_object_list(box)
        step = box[0]
    last, writing = time.monotonic(), None

    def save(step: int, collect: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]]) -> None:
        nonlocal last, writing
        if world.rank or time.monotonic() - last < order.checkpoint_seconds or (writing and not writing.done()):
            return
        if writing:
            writing.result()
        tensors, facts = collect()
        writing = background.submit(write_state, folder, step, tensors, facts)
        last = time.monotonic()

    start = load_file(store.stage(stage.parent) / OPTIMIZER) if stage.parent and stage.course.begin else None
    return Keeper(start, read_state(folder, step) if step else None, save)


def _validation(store: Store, stage: StageIdentity, model: nn.Module, world: World) -> Callable[[], float]:
    """The loss that early stopping watches: on held-out windows of D_post that L_im is not measured on."""
    if not stage.early_stopping:
        return lambda: math.nan
    pool = _open(store, dict(stage.heldout)["post"])
    windows = pool.validation(stage.early_stopping["windows"], stage.heldout_windows)
    return lambda: heldout_loss(model, windows, world.device, stage.precision)


def run_stage(store: Store, order: Order, world: World, report: Report) -> bool:
    """Train, evaluate and publish one stage; True if this call published it.

    Raises:
        Diverged: training left the finite numbers.
    """
    started = time.monotonic()
    stage = order.stage.identity
    pools = [_open(store, part.data) for part in stage.parts]
    model = _load(store, stage, pools[0].vocab_size, checks=world.rank == 0)
    torch.manual_seed(stage.seed)  # adapters are drawn from it
    trained = adapt(model, stage.dropout, stage.lora).to(world.device)
    batches = _batches(pools, stage)
    with ThreadPoolExecutor(1) as background:
        keeper = _keeper(store, order, world, background)
        if world.rank == 0:
            resumed = keeper.saved[1]["step"] if keeper.saved else 0
            store.journal(order.sweep, event="begun", key=order.stage.key, step=resumed)
        training = time.monotonic()
        validation = _validation(store, stage, trained, world)
        at, optim = train(trained, batches, stage, world, order.micro_batch, report, validation, keeper)
    plain = merged(trained)
    evaluating = time.monotonic()
    losses = {
        role: heldout_loss(plain, _open(store, data).heldout(stage.heldout_windows), world.device, stage.precision)
        for role, data in stage.heldout
    }
    seconds = {"setup": training - started, "train": evaluating - training, "evaluate": time.monotonic() - evaluating}
    published = False
    if world.rank == 0:
        with store.draft(order.stage.key) as draft:
            save_weights(plain, draft / WEIGHTS)
            if stage.is_continued:
                save_file(optimizer_state(plain, optim), draft / OPTIMIZER)
            parquet.write_table(pa.table(asdict(at.curve)), draft / METRICS)
            record = _record(order, plain, world, at, losses, seconds)
            published = store.publish(order.stage.key, draft, record)
            store.journal(order.sweep, event="published" if published else "found published", key=order.stage.key)
    if dist.is_initialized() and world.size > 1:
        dist.barrier()
    return published


def _record(
    order: Order, model: nn.Module, world: World, at: Progress, losses: dict[str, float], seconds: dict[str, float]
) -> dict[str, Any]:
    stage = order.stage.identity
    tokens = at.curve.tokens[-1]
    trained_seconds = at.curve.seconds[-1]  # also what was trained before an interruption
    return {
        "kind": stage.kind,
        "parent": stage.parent,
        "sweep": order.sweep,
        "tokens": tokens,
        "steps": at.step,
        "best_step": at.best_step or None,
        "losses": losses,
        "train_loss": at.curve.loss[-1],
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "tokens_per_s": round(tokens / trained_seconds, 1),
        "workers": world.size,
        "device": str(world.device) if world.device.type == "cpu" else torch.cuda.get_device_name(),
        "host": platform.node(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "payload": stage.payload(),
    }
