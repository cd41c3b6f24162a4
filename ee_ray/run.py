"""Run or resume a sweep: on Ray, or in this process. What is published already is never trained again."""

import uuid
from collections.abc import Callable, Sequence
from functools import partial
from time import sleep
from typing import Any

import ray
import torch

from ee_ray.board import Board
from ee_ray.cluster import JOIN_SECONDS, NAMESPACE, ON_HEAD, capacity, slots_that_fit
from ee_ray.errors import Diverged, Unreachable, UserError
from ee_ray.interventions import adapt
from ee_ray.lease import claim_next
from ee_ray.ledger import Ledger
from ee_ray.model import build_config, build_model
from ee_ray.runner import IDLE_SECONDS, evidence_of, running_slots
from ee_ray.search import Job, open_search, search_in_process, search_on_ray
from ee_ray.stage import run_stage
from ee_ray.sweep import Sweep
from ee_ray.trackers import Tracked
from ee_ray.world import World

Watch = Callable[[Callable[[], dict[str, Any]]], Any]


def check_model(sweep: Sweep) -> None:
    """Build the model of every choice, without memory for its weights: a bad config is found before anything trains."""
    spec, packed = sweep.spec, sweep.packed("pre")
    assert packed is not None
    checkpoint = sweep.store.model(sweep.data["model"]) if "model" in sweep.data else None
    config = build_config(spec.model_config_fields, packed.vocab_size, spec.sequence_length, checkpoint)
    for choice in range(len(spec.choices)):
        with torch.device("meta"):
            model = build_model(config, 0)
            stage = spec.chosen(choice).stages.posttrain
            adapt(model, stage.dropout.model_dump(), stage.lora.model_dump() if stage.lora else None)


def _job(sweep: Sweep) -> Job:
    return Job(sweep.spec, sweep.data, sweep.store.place)


def run_in_process(sweep: Sweep, ledger: Ledger, watch: Watch) -> str | None:
    """Train what is outstanding here, one stage after another: for learning, tests and debugging. CPU or one GPU.

    Returns:
        the budget of time that ended the search, if one did.
    """
    execution = sweep.spec.execution
    if execution.fewest_workers > 1:
        raise UserError(f"{sweep.path}: execution.workers is {execution.workers}: --local has one process")
    if execution.gpus_per_worker and not torch.cuda.is_available():
        raise UserError(f"{sweep.path}: execution.gpus_per_worker is {execution.gpus_per_worker:g}: no GPU is visible here")  # fmt: skip
    check_model(sweep)
    torch.set_num_threads(execution.cpus_per_worker)
    world = World(torch.device("cuda" if execution.gpus_per_worker else "cpu"))
    board, holder = Board(), uuid.uuid4().hex

    def work() -> None:
        while not board.is_settled():
            if (claimed := claim_next(sweep.store, board.take("local"), holder, board.put_off, board.found)) is None:
                sleep(IDLE_SECONDS)
                continue
            (order, lease), key = claimed, claimed[0].stage.key
            try:
                run_stage(sweep.store, order, world, partial(board.progress, key))
                board.done("local", key)
            except Unreachable:
                raise
            except Exception as error:
                board.fail(key, evidence_of(error, 0, diverged=isinstance(error, Diverged)))
            finally:
                lease.release()

    job = _job(sweep)
    search = open_search(job, ledger)
    with watch(lambda: board.snapshot() | search.so_far()):
        search_in_process(job, search, board, work)
    return search.overran


def run_on_ray(
    sweep: Sweep, ledger: Ledger, watch: Watch, trackers: Sequence[str], say: Callable[[str], None]
) -> str | None:
    """Train what is outstanding under Ray Train slots, driven by Tune trials, on the cluster that is connected.

    trackers: who is told of trials besides (trackers.py); `say` hears of one that fails.

    Returns:
        the budget of time that ended the search, if one did.
    """
    check_model(sweep)
    execution, run = sweep.spec.execution, uuid.uuid4().hex[:8]
    folder = sweep.store.sweep(sweep.spec.name) / "ray" / run
    most = max(len(ledger.decision.outstanding), sweep.spec.search.runs_per_round)
    slots = min(slots_that_fit(execution, *capacity(JOIN_SECONDS)), most)
    name = f"board-{run}"
    board = ray.remote(num_cpus=0, resources=ON_HEAD)(Board).options(name=name, namespace=NAMESPACE).remote()
    job = _job(sweep)
    search = open_search(job, ledger)
    # One trial more than slots: while one drains its fan-out, the next one's pretraining starts.
    trials = slots + 1
    with (
        watch(lambda: ray.get(board.snapshot.remote()) | search.so_far()),
        running_slots(
            sweep.spec.name, slots, board, name, sweep.store, execution, folder / "train", search.first(trials)
        ),
    ):
        told = [Tracked(each, job, say) for each in trackers]
        search_on_ray(job, search, name, trials, folder / "tune", told)
    return search.overran
