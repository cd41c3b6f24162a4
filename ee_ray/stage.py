"""Run one stage from the store to the store: parent's weights, data, training, held-out losses, publication.

The same function runs in process, on one machine and on a cluster; what differs between them is the `World`.
"""

import platform
import time
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import torch
import torch.distributed as dist
import transformers
from numpy.typing import NDArray

from ee_ray.board import Order
from ee_ray.data.order import Indices, Run, schedule
from ee_ray.data.pack import Packed, open_packed
from ee_ray.evaluate import heldout_loss
from ee_ray.model import build_config, build_model, load_weights, save_weights
from ee_ray.plan import StageIdentity
from ee_ray.store import METRICS, WEIGHTS, Store
from ee_ray.train import Report, World, train


def _open(store: Store, fingerprint: str) -> Packed:
    packed = open_packed(store.data(fingerprint))
    if packed is None:
        raise FileNotFoundError(f"prepared data {fingerprint} is not in {store.root}")
    return packed


def _gather(pools: list[Packed], rows: Indices) -> NDArray[np.int64]:
    """Windows of rows (part, window), in the rows' order."""
    out = np.empty((len(rows), pools[0].sequence_length + 1), np.int64)
    for number, pool in enumerate(pools):
        here = rows[:, 0] == number
        if here.any():
            out[here] = pool.gather("train", rows[here, 1])
    return out


def _load(store: Store, stage: StageIdentity) -> torch.nn.Module:
    config = build_config(stage.model, _open(store, stage.parts[0].data).vocab_size, stage.sequence_length)
    model = build_model(config, stage.seed)
    if stage.parent:
        load_weights(model, store.weights(stage.parent))
    return model


def run_stage(store: Store, order: Order, world: World, report: Report) -> bool:
    """Train, evaluate and publish one stage; True if this call published it.

    Raises:
        Diverged: training left the finite numbers.
    """
    started = time.monotonic()
    stage = order.stage.identity
    torch.manual_seed(stage.seed)
    model = _load(store, stage).to(world.device)
    pools = [_open(store, part.data) for part in stage.parts]
    runs = [
        Run(pool.train_windows, part.start, part.stop, part.order_seed)
        for pool, part in zip(pools, stage.parts, strict=True)
    ]
    training = time.monotonic()
    curve = train(model, schedule(runs), lambda rows: _gather(pools, rows), stage, world, order.micro_batch, report)
    evaluating = time.monotonic()
    losses = {
        role: heldout_loss(model, _open(store, data).heldout(stage.heldout_windows), world.device, stage.precision)
        for role, data in stage.heldout
    }
    done = time.monotonic()
    published = False
    if world.rank == 0:
        with store.draft(order.stage.key) as draft:
            save_weights(model, draft / WEIGHTS)
            parquet.write_table(pa.table(asdict(curve)), draft / METRICS)
            published = store.publish(order.stage.key, draft, {
                "kind": stage.kind,
                "parent": stage.parent,
                "sweep": order.sweep,
                "tokens": stage.tokens,
                "steps": stage.steps,
                "losses": losses,
                "train_loss": curve.loss[-1],
                "parameters": sum(p.numel() for p in model.parameters()),
                "seconds": {
                    "setup": round(training - started, 4),
                    "train": round(evaluating - training, 4),
                    "evaluate": round(done - evaluating, 4),
                },
                "tokens_per_s": round(stage.tokens / (evaluating - training), 1),
                "workers": world.size,
                "device": str(world.device) if world.device.type == "cpu" else torch.cuda.get_device_name(),
                "host": platform.node(),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version()},
                "payload": stage.payload(),
            })  # fmt: skip
    if dist.is_initialized() and world.size > 1:
        dist.barrier()
    return published
