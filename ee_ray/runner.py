"""Ray Train: long-lived slots that take stages from the board, train and publish them. The only file that knows Train.

One TorchTrainer.fit() costs about 13 s and 22 CPU-seconds on two warm cores, more than a short stage. So a fit is a
*slot*: a worker group of one shape that trains many stages of the kinds that ask for this shape. When a worker dies,
Train restarts the group, and the board gives it the same stage again.
"""

import contextlib
import os
import socket
import threading
import traceback
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import ray
import ray.train
import ray.train.torch
import ray.util
import torch
from ray.actor import ActorHandle
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from ee_ray.board import ATTEMPTS, Board, Order
from ee_ray.capacity import slots_that_fit
from ee_ray.cluster import NAMESPACE, capacity
from ee_ray.ending import ending, stuck
from ee_ray.errors import Diverged, Superseded, UserError, Withdrawn, common_cause
from ee_ray.lease import Lease, any_free, claim_next
from ee_ray.spec.execution import Execution, Shape
from ee_ray.spec.stages import Kind
from ee_ray.stage import run_stage
from ee_ray.store import Store
from ee_ray.world import World

IDLE_SECONDS = 0.1
ROOM_SECONDS = 1.0
LOST_SECONDS = 300.0  # a host that restarts is back sooner
RESIZE_SECONDS = 60.0
TOLD_SECONDS = 30.0  # trials look at the board four times a second
END_SECONDS = 60.0  # a slot ends about 2 s after its last report; starting ones must come up first
DEVICE = "EE_RAY_DEVICE"  # cpu: rehearse on a machine that announces GPUs to Ray and has none


def evidence_of(error: BaseException, rank: int, diverged: bool = False) -> dict[str, Any]:
    """What is known where a stage failed: the error, the last lines of its traceback, rank, host and process."""
    trace = "".join(traceback.format_exception(error)).splitlines()
    place = {"rank": rank, "host": socket.gethostname(), "pid": os.getpid()}
    return {"error": f"{type(error).__name__}: {error}", "diverged": diverged, **place, "log": trace[-15:]}


def _next(
    board: ActorHandle[Board], store: Store, config: dict[str, Any], rank: int, size: int
) -> tuple[Order, Lease | None] | None:
    """The slot's next stage, the same for every rank, and rank 0's lease on it; None when the board is closed, or has had
    no work for so long that others may need the slot's room more."""
    order, lease, asked = None, None, monotonic()
    while rank == 0 and monotonic() - asked < ray.get(board.patience.remote()):
        claimed = claim_next(
            store,
            ray.get(board.take.remote(config["slot"], config["kinds"])),
            f"{config['board']}/{config['slot']}",
            lambda key: ray.get(board.put_off.remote(key)),
            lambda key: ray.get(board.found.remote(key)),
        )
        if claimed:
            order, lease = claimed
            break
        sleep(min(ROOM_SECONDS, IDLE_SECONDS + (monotonic() - asked) / 10))  # who has waited long asks less often
    if size > 1:
        key = broadcast_from_rank_zero(order and order.stage.key)  # an order may be more than Train broadcasts, 1 kB
        order = order or (_look_up(board, key) if key else None)
    return (order, lease) if order else None


def _look_up(board: ActorHandle[Board], key: str) -> Order:
    """The order of a stage; a board that died a moment ago is told again by the trials."""
    end = monotonic() + TOLD_SECONDS
    while monotonic() < end:
        order: Order | None = ray.get(board.order.remote(key))
        if order:
            return order
        sleep(IDLE_SECONDS)
    raise RuntimeError(f"stage {key}: no trial asks for it any more")


def slot_worker(config: dict[str, Any]) -> None:
    """What each worker of a slot does: stages, one after another, until the board is closed."""
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    board, slot = ray.get_actor(config["board"], NAMESPACE), config["slot"]
    near = None
    try:
        if not ray.get(board.closed.remote()):
            store = Store(config["store"])
            near = store.root
            _work(board, slot, store, config, rank, size)
    except Exception as error:
        if not (cause := common_cause(error, near)):
            raise
        ray.get(board.close.remote(cause, withdraw=True))
        if size > 1:
            raise  # the other ranks may be waiting in a reduction


def _work(board: ActorHandle[Board], slot: str, store: Store, config: dict[str, Any], rank: int, size: int) -> None:
    torch.set_num_threads(config["threads"])
    world = World(_device(config), rank, size, config["parallel"])
    while claimed := _next(board, store, config, rank, size):
        (order, lease), key = claimed, claimed[0].stage.key

        def report(tokens: int, key: str = key, lease: Lease | None = lease) -> None:
            if lease:
                lease.check()
            if rank == 0 and not ray.get(board.progress.remote(key, tokens)):
                ending.set()
                raise Withdrawn(key)

        try:
            run_stage(store, order, world, report, lease)
        except Withdrawn:
            if size > 1:
                raise  # the other ranks wait in a reduction: Train ends the group, and its successor finds the board closed
            return
        except Superseded:
            ray.get(board.put_off.remote(key))
            if size > 1:
                raise
        except Diverged as error:
            if rank == 0:
                ray.get(board.fail.remote(key, evidence_of(error, rank, diverged=True)))
        except Exception as error:
            if not common_cause(error):
                ray.get(board.note.remote(key, evidence_of(error, rank)))
            raise  # the other ranks may be waiting in a reduction: Train restarts the whole group
        else:
            if rank == 0:
                ray.get(board.done.remote(slot, key))
        finally:
            if lease:
                lease.release()


def _device(config: dict[str, Any]) -> torch.device:
    """Where this worker trains. One that was given a part of a GPU may take that part of its memory and no more, so that
    it fails itself and not its neighbours.

    Raises:
        RuntimeError: Ray gave the worker a GPU that torch does not see.
    """
    if config["device"]:
        return torch.device(config["device"])
    device: torch.device = ray.train.torch.get_device()
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"Ray gave a GPU to this worker and torch {torch.__version__} sees none: install a build of torch with CUDA on every node")  # fmt: skip
    if device.type == "cuda" and config["gpus"] < 1:
        torch.cuda.set_per_process_memory_fraction(config["gpus"], device)
    return device


def _bundle(shape: Shape) -> dict[str, float]:
    asked = {"CPU": shape.cpus_per_worker, "GPU": shape.gpus_per_worker}
    return {name: count for name, count in asked.items() if count}


@dataclass(frozen=True)
class _Slot:
    """One slot of a run: its name, the kinds of stages that it trains, and what it takes."""

    name: str
    kinds: tuple[Kind, ...]
    shape: Shape


def _slots(execution: Execution, counts: Mapping[tuple[Kind, ...], int]) -> list[_Slot]:
    shapes = execution.slots
    names = {kinds: "slot" if len(counts) == 1 else "-".join(kinds) for kinds in counts}
    return [_Slot(f"{names[kinds]}{n}", kinds, shapes[kinds]) for kinds, count in counts.items() for n in range(count)]


def _room(slot: _Slot, board: ActorHandle[Board], field: str) -> bool:
    """Wait until the cluster has room for a slot; False if the board closed first, or others took the work meanwhile.

    An autoscaler adds nodes for a placement group that is pending, however long that takes. Train's own wait is a
    failure after RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S, and cannot be left when the sweep ends.

    Raises:
        UserError: nodes were lost, and for a while now none that is left or may come has had room.
    """
    group = ray.util.placement_group([_bundle(slot.shape)] * slot.shape.fewest_workers)
    held = monotonic()
    try:
        while not group.wait(ROOM_SECONDS):
            if ray.get(board.closed.remote()) or not ray.get(board.ready.remote(slot.kinds)):
                return False
            ray.get(board.await_room.remote(slot.name, slot.kinds))
            try:
                slots_that_fit(slot.shape, *capacity(), field)
                held = monotonic()
            except UserError:
                if monotonic() - held > LOST_SECONDS:
                    raise
    finally:
        ray.util.remove_placement_group(group)
        ray.get(board.await_room.remote(slot.name, ()))
    return not ray.get(board.closed.remote())


def _is_without_room(error: Exception) -> bool:
    """Another slot took the room between `_room` and the start, or a node was lost: waiting will do."""
    return isinstance(error, ControllerError) and isinstance(error.controller_failure, WorkerGroupStartupTimeoutError)


class SlotTrainer(TorchTrainer):  # type: ignore[misc]
    """A slot reads the store, so the actor that each Train run starts to hand out Ray Data sets has nothing to do: it would
    cost 1.5 CPU-seconds and 0.2 GB. The method is Ray's own and not public; should it go, slots only start more slowly."""

    def _create_default_callbacks(self) -> list[Any]:
        return [each for each in super()._create_default_callbacks() if type(each).__name__ != "DatasetsCallback"]


def _fit(name: str, slot: _Slot, board: str, store: Store, checkpoint_seconds: float, folder: Path) -> None:
    shape, device = slot.shape, os.environ.get(DEVICE)
    config = {
        "board": board,
        "slot": slot.name,
        "kinds": slot.kinds,
        "store": store.place,
        "threads": shape.cpus_per_worker,
        "gpus": shape.gpus_per_worker,
        "parallel": shape.parallel,
        "device": device,
    }
    SlotTrainer(
        slot_worker,
        train_loop_config=config,
        torch_config=TorchConfig(backend="gloo" if device == "cpu" else None),
        scaling_config=ScalingConfig(
            num_workers=tuple(shape.workers) if isinstance(shape.workers, list) else shape.workers,
            # Another size restarts the group, which costs what was trained since its last saved state.
            elastic_resize_monitor_interval_s=max(RESIZE_SECONDS, checkpoint_seconds),
            use_gpu=shape.gpus_per_worker > 0,
            resources_per_worker=_bundle(shape),
        ),
        run_config=RunConfig(
            name=f"{name}-{slot.name}-{uuid.uuid4().hex[:6]}",
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=ATTEMPTS, controller_failure_limit=0),
        ),
    ).fit()


def _keep(
    slot: _Slot,
    name: str,
    board: ActorHandle[Board],
    board_name: str,
    store: Store,
    execution: Execution,
    folder: Path,
    ended: threading.Event,
) -> Exception | None:
    """Start a slot whenever there is work for it, until the board closes; or why one got nowhere at all. Train ends a fit
    after ATTEMPTS deaths of its workers, however far they got: a stage that gets further each time goes on in the next."""
    false_starts = 0
    while not (ended.is_set() or ray.get(board.closed.remote())):
        if not any_free(store, ray.get(board.ready.remote(slot.kinds)), f"{board_name}/{slot.name}"):
            sleep(ROOM_SECONDS)  # what others train is waited for here, where nothing is held
            continue
        before = ray.get(board.advances.remote())
        try:
            if _room(slot, board, execution.field(slot.kinds)):
                _fit(name, slot, board_name, store, execution.checkpoint_seconds, folder)
        except Exception as error:
            ray.get(board.release.remote(slot.name))
            if common_cause(error):
                raise
            if _is_without_room(error):
                continue
            false_starts += isinstance(error, ControllerError)
            if isinstance(error, ControllerError) and false_starts <= ATTEMPTS:
                continue
            if ray.get(board.advances.remote()) == before:  # nor did a stage get further: do not insist
                return error
    return None


@contextlib.contextmanager
def running_slots(
    name: str,
    counts: Mapping[tuple[Kind, ...], int],
    board: ActorHandle[Board],
    board_name: str,
    store: Store,
    execution: Execution,
    folder: Path,
) -> Iterator[None]:
    """Slots, so many for each of `execution.slots`, work the board while the block runs. The board closes when none is left
    that could train some kind of stage.

    When the block ends the slots are waited for: a thread that is still in a call to Ray when Ray shuts down takes the
    whole process with it, silently, with exit status 1 (core_worker_process.cc, `EnsureInitialized`). A slot that hangs (in
    a store that does not answer) keeps Ray from being shut down (ending.py); what is Ray's ends with the process.
    """
    alive = Counter(dict(counts))
    ended = threading.Event()  # a board that dies forgets that it was closed

    def keep(slot: _Slot) -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # of the board: the cluster is gone, and launch.py says so
            try:
                why = _keep(slot, name, board, board_name, store, execution, folder, ended)
            except Exception as error:
                if not (cause := common_cause(error, store.root)):
                    raise
                ray.get(board.close.remote(cause, withdraw=True))
                return
            if why:
                alive[slot.kinds] -= 1
                if not alive[slot.kinds]:
                    ray.get(board.close.remote(f"no slot could work: {why}"))

    threads = [threading.Thread(target=keep, args=(slot,), daemon=True) for slot in _slots(execution, counts)]
    for thread in threads:
        thread.start()
    try:
        yield
        ray.get(board.close.remote("the sweep has ended"))
    except BaseException as error:
        with contextlib.suppress(ray.exceptions.RayError):  # the cluster may be what died
            ray.get(board.close.remote(f"the sweep was ended by {type(error).__name__}", withdraw=True))
        raise
    finally:
        ended.set()
        deadline = monotonic() + END_SECONDS
        try:
            for thread in threads:
                thread.join(max(0.0, deadline - monotonic()))
        finally:  # Ctrl-C once more
            stuck.extend(thread for thread in threads if thread.is_alive())
