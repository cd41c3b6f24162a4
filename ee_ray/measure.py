"""How fast this machine trains a sweep's own model: a few seconds of its own pretraining, of which nothing is kept."""

import time

import torch
from torch import nn

from ee_ray.data.pack import open_packed
from ee_ray.errors import UserError
from ee_ray.ledger import Ledger
from ee_ray.plan import distinct
from ee_ray.stage import batches_of, load_model
from ee_ray.sweep import Sweep
from ee_ray.train import train
from ee_ray.world import World


class _Enough(Exception):
    """The time is up."""


def tokens_per_second(sweep: Sweep, ledger: Ledger, seconds: float) -> float:
    """Tokens per second of one worker: real batches of the sweep's first pretraining stage, forward, backward and step.

    The first half is warming up (caches, memory, compiled kernels) and does not count.

    Raises:
        UserError: the data is not prepared, or a GPU is asked for and none is here.
    """
    shape = sweep.spec.execution.shape("pretrain")
    if missing := [role for role in ("pre", "post") if sweep.packed(role) is None]:
        raise UserError(f"{sweep.path}: --measure trains on prepared data: ee-ray prepare {sweep.path} ({', '.join(missing)} not prepared yet)")  # fmt: skip
    if shape.gpus_per_worker and not torch.cuda.is_available():
        raise UserError(f"{sweep.path}: execution.gpus_per_worker is {shape.gpus_per_worker:g}: --measure needs such a GPU here, and none is visible")  # fmt: skip
    torch.set_num_threads(shape.cpus_per_worker)
    device = torch.device("cuda" if shape.gpus_per_worker else "cpu")
    stage = next(stage for stage in distinct(ledger.trials).values() if stage.kind == "pretrain").identity
    pools = [pool for part in stage.parts if (pool := open_packed(sweep.store.corpus(part.data)))]
    model: nn.Module = load_model(sweep.store, stage, pools[0].vocab_size, checks=True)
    model.to(device)
    began = time.monotonic()
    marks: list[tuple[float, int]] = []

    def report(tokens: int) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()
        marks.append((time.monotonic() - began, tokens))
        if marks[-1][0] >= seconds:
            raise _Enough

    try:
        done, _ = train(
            model,
            batches_of(pools, stage),
            stage,
            World(device),
            sweep.spec.execution.micro_batch_of("pretrain"),
            report,
        )
    except _Enough:
        pass
    else:
        marks.append((time.monotonic() - began, done.curve.tokens[-1]))  # the stage is shorter than the time
    late = [mark for mark in marks if mark[0] >= marks[-1][0] / 2]
    (start, before), (end, after) = (late[0], late[-1]) if len(late) > 1 else ((0.0, 0), marks[-1])
    return (after - before) / (end - start)
