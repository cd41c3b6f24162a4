"""Groups of real worker processes over gloo, without Ray: each is started once and works many stages."""

import contextlib
import multiprocessing
import os
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from conftest import tiny

import ee_ray.train
from ee_ray.board import Order
from ee_ray.evaluate import heldout_loss
from ee_ray.identity import Stage
from ee_ray.model import build_config, build_model, load_weights
from ee_ray.stage import run_stage
from ee_ray.store import Store
from ee_ray.world import World

SECONDS = 240  # a bound for a machine that is busy: the first answer waits for imports


class Interrupted(Exception):
    """Every worker stops after the same step."""


def run(world: World, root: Path, stage: Stage, stop_after: int | None = None, **order: Any) -> dict[str, Any]:
    """Run a stage, or as much of it as `stop_after` steps; its record, and after which step this run had its first word."""
    told: list[int] = []
    batch = stage.identity.global_batch_size * stage.identity.sequence_length

    def report(tokens: int) -> None:
        told.append(tokens // batch)
        if stop_after and told[-1] >= stop_after:
            raise Interrupted

    store = Store(root)
    ee_ray.train.REPORT_SECONDS = 0.0
    with contextlib.suppress(Interrupted):
        run_stage(store, Order(stage, "tiny", order.pop("micro_batch", None), 1e9, **order), world, report)
    return {"record": store.record(stage.key), "first": told[0]}


def evaluate(world: World, windows: np.ndarray, spread: bool, weights: Path | None = None) -> float:
    """Held-out loss of a model that every group builds alike, as it is while it trains (`spread`) or whole."""
    model = build_model(build_config(tiny()["model"], 256, 32), 0)
    if weights:
        load_weights(model, weights)
    if spread:
        world.spread(model)
    return heldout_loss(model, windows, world.device, "fp32")


def pid(world: World) -> int:
    return os.getpid()


JOBS = {job.__name__: job for job in (run, evaluate, pid)}


def _work(rank: int, size: int, meeting: str, orders: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    while job := orders.recv():
        name, parallel, arguments = job
        world = World(torch.device("cpu"), rank, size, parallel)
        try:
            orders.send((True, JOBS[name](world, **arguments)))
        except BaseException:
            orders.send((False, traceback.format_exc()))
    dist.destroy_process_group()


class Group:
    """`size` processes that do the same job at once. Parents import torch once and fork: 6 s instead of 6 s for each."""

    def __init__(self, size: int, folder: Path):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["ee_ray.stage"])  # found by path, as `workers` would not be
        self.size = size
        self.pipes, self.processes = [], []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(rank, size, str(folder / f"meeting{size}"), theirs), daemon=True
            )
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def __call__(self, job: str, parallel: str = "ddp", **arguments: Any) -> list[Any]:
        """What each rank returned."""
        for pipe in self.pipes:
            pipe.send((job, parallel, arguments))
        end, answers = time.monotonic() + SECONDS, []
        for rank, pipe in enumerate(self.pipes):
            assert pipe.poll(max(0.0, end - time.monotonic())), f"rank {rank} of {self.size} gave no answer to {job}"
            answers.append(pipe.recv())
        assert all(fine for fine, _ in answers), "\n".join(str(answer) for fine, answer in answers if not fine)
        return [answer for _, answer in answers]

    def end(self) -> None:
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join(30)
            process.kill()


@contextlib.contextmanager
def groups(sizes: list[int], folder: Path) -> Iterator[dict[int, Group]]:
    started = {size: Group(size, folder) for size in sizes}
    try:
        yield started
    finally:
        for group in started.values():
            group.end()
