"""Run or resume a sweep: on Ray, or in this process. What is published already is never trained again."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import sleep
from typing import Any

import ray
import torch

from ee_ray.board import Board
from ee_ray.capacity import bounded, slot_counts
from ee_ray.cluster import JOIN_SECONDS, NAMESPACE, ON_HEAD, capacity, head_memory
from ee_ray.errors import Diverged, Superseded, UserError, common_cause
from ee_ray.interventions import adapt
from ee_ray.lease import claim_next
from ee_ray.ledger import Ledger
from ee_ray.model import build_config, build_model, refuse_randomness
from ee_ray.runner import IDLE_SECONDS, evidence_of, running_slots
from ee_ray.search import Job, open_search, search_in_process, search_on_ray
from ee_ray.spec.model import Checkpoint
from ee_ray.spec.stages import Kind
from ee_ray.spec.sweep import SweepSpec
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
    refuse_randomness(config, spec.model.checkpoint if isinstance(spec.model, Checkpoint) else None)
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
    shapes = {kind: shape for kinds, shape in execution.slots.items() for kind in kinds}
    for kinds, shape in execution.slots.items():
        field = execution.field(kinds)
        if shape.fewest_workers > 1:
            raise UserError(f"{sweep.path}: {field}.workers is {shape.workers}: --local has one process")
        if shape.gpus_per_worker and not torch.cuda.is_available():
            raise UserError(f"{sweep.path}: {field}.gpus_per_worker is {shape.gpus_per_worker:g}: no GPU is visible here")  # fmt: skip
    check_model(sweep)
    board, holder = Board(), uuid.uuid4().hex

    def work() -> None:
        while not board.is_settled():
            if (claimed := claim_next(sweep.store, board.take("local"), holder, board.put_off, board.found)) is None:
                sleep(IDLE_SECONDS)
                continue
            (order, lease), key = claimed, claimed[0].stage.key
            shape = shapes[order.stage.kind]
            torch.set_num_threads(shape.cpus_per_worker)
            world = World(torch.device("cuda" if shape.gpus_per_worker else "cpu"))
            try:
                run_stage(sweep.store, order, world, partial(board.progress, key), lease)
                board.done("local", key)
            except Superseded:
                board.put_off(key)
            except Exception as error:
                if cause := common_cause(error, sweep.store.root):
                    raise cause from error
                board.fail(key, evidence_of(error, 0, diverged=isinstance(error, Diverged)))
            finally:
                lease.release()

    job = _job(sweep)
    search = open_search(job, ledger)
    with watch(lambda: board.snapshot() | search.so_far()):
        search_in_process(job, search, board, work)
    return search.overran


def _useful(spec: SweepSpec, counts: Mapping[tuple[Kind, ...], int], trials: int) -> dict[tuple[Kind, ...], int]:
    """No more slots than `trials` trials at once have stages for: one each, but all rates of a fine-tuning fan-out."""
    fan = len(spec.stages.finetune.learning_rates)
    return {kinds: min(count, trials * (fan if kinds == ("finetune",) else 1)) for kinds, count in counts.items()}


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
    trials = max(len(ledger.decision.outstanding), sweep.spec.search.runs_per_round)
    counts = _useful(sweep.spec, slot_counts(execution, *capacity(JOIN_SECONDS)), trials)
    counts = bounded(counts, head_memory())
    name = f"board-{run}"
    lives_on = {"max_restarts": -1, "max_task_retries": -1}  # empty, and is told again by those who asked (board.py)
    board = ray.remote(num_cpus=0, resources=ON_HEAD, **lives_on)(Board).options(name=name, namespace=NAMESPACE).remote()  # fmt: skip
    job = _job(sweep)
    search = open_search(job, ledger)
    with (
        watch(lambda: ray.get(board.snapshot.remote()) | search.so_far()),
        running_slots(sweep.spec.name, counts, board, name, sweep.store, execution, folder / "train"),
    ):
        # One trial more than slots: while one drains its fan-out, the next one's pretraining starts.
        told = [Tracked(each, job, say) for each in trackers]
        search_on_ray(job, search, name, min(sum(counts.values()), trials) + 1, folder / "tune", told)
        if search.cut and (reason := ray.get(board.closed.remote())):
            if isinstance(reason, Exception):
                raise reason
            say(f"the sweep ended early: {reason}")
    return search.overran
