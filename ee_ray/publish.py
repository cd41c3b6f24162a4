"""What of a trained stage goes into the store: weights, optimizer where another stage goes on, curve, events, record."""

import platform
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from ee_ray.board import Order
from ee_ray.events import EVENTS, write_events
from ee_ray.lease import Lease
from ee_ray.model import save_weights
from ee_ray.store import METRICS, OPTIMIZER, WEIGHTS, Store
from ee_ray.train import Progress
from ee_ray.world import World


def publish(
    store: Store,
    order: Order,
    model: nn.Module,
    moments: dict[str, Tensor] | None,
    world: World,
    at: Progress,
    losses: Mapping[str, float],
    seconds: Mapping[str, float],
    lease: Lease | None = None,
) -> bool:
    """Draft everything, then move it into place at once; True if this call published it.

    Args:
        model:   whole, on any device, adapters merged.
        moments: the optimizer's state, of a stage that is continued.
        losses:  held-out, nats per token, by role, of exactly this model.
        seconds: what the stage's time went to; training before an interruption included.

    Raises:
        Superseded: another has taken the stage over.
    """
    with store.draft(order.stage.key) as draft:
        save_weights(model, draft / WEIGHTS)
        if moments is not None:
            save_file(moments, draft / OPTIMIZER)
        parquet.write_table(pa.table(asdict(at.curve)), draft / METRICS)
        write_events(draft / EVENTS, at.curve, losses, at.best_step or at.step, time.time() - seconds["evaluate"])
        if lease:
            lease.confirm()
        return store.publish(order.stage.key, draft, _record(order, model, world, at, losses, seconds))


def _record(
    order: Order,
    model: nn.Module,
    world: World,
    at: Progress,
    losses: Mapping[str, float],
    seconds: Mapping[str, float],
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
        "losses": dict(losses),
        "train_loss": at.curve.loss[-1],
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "tokens_per_s": round(tokens / trained_seconds, 1),
        "memory_bytes": at.curve.memory[-1],
        "workers": world.size,
        "parallel": world.parallel if world.size > 1 else None,
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
