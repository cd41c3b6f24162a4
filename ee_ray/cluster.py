"""Join a Ray cluster, or start one on this machine for the length of a run; what it can hold.

What a cluster can hold is more than what it holds now where an autoscaler adds nodes. Ray keeps no public record of what
an autoscaler may add, so it is read where `ray up` leaves it: in the cluster's file on the head, where drivers run.
Elsewhere (KubeRay) the environment may say it: EE_RAY_NODE_TYPES.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.exceptions import AuthenticationError

from ee_ray.errors import UserError
from ee_ray.liveness import Port
from ee_ray.spec.sweep import Execution

NAMESPACE = "ee_ray"
HEAD = "node:__internal_head__"
ON_HEAD = {HEAD: 0.001}  # the head is not preempted, and lives as long as the driver
NODE_TYPES = "EE_RAY_NODE_TYPES"
BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")  # written by `ray up` (commands.py, `get_or_create_head_node`)
JOIN_SECONDS = 120.0  # `ray up` returns about 30 s before hosts of one's own have joined

Resources = Mapping[str, float]


@contextmanager
def connected(address: str | None) -> Iterator[str | None]:
    """A connection to the cluster at `address`, or to one that lives as long as the block; gives Ray's dashboard, if it has one.

    Raises:
        UserError: no cluster answers at `address`.
    """
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "namespace": NAMESPACE}
    if address:
        try:
            context = ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError, AuthenticationError) as error:
            mode = os.environ.get("RAY_AUTH_MODE", "not set")
            raise UserError(
                f"--address {address}: no cluster could be joined: {error} (RAY_AUTH_MODE is {mode}; "
                "a cluster that asks for a token is joined with RAY_AUTH_MODE=token and its token in ~/.ray/auth_token)"
            ) from None
    else:
        # Nothing large goes through the object store (weights and data go through files): the least that Ray accepts.
        context = ray.init(address="local", include_dashboard=True, object_store_memory=100 * 2**20, **quiet)
    try:
        yield f"http://{context.dashboard_url}" if context.dashboard_url else None
    finally:
        ray.shutdown()


def ports() -> list[Port]:
    """What a driver cannot do without: the head's control store, and the raylet of its own node."""
    context = ray.get_runtime_context()
    host, _, number = context.gcs_address.rpartition(":")
    here = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    return [
        Port("the cluster's control store (gcs) on its head", host, int(number)),
        Port("the raylet of this node", here["NodeManagerAddress"], here["NodeManagerPort"]),
    ]


@dataclass(frozen=True)
class NodeType:
    """Nodes that an autoscaler may keep, and how many. Without resources: nobody knows what one has before it joins."""

    resources: Resources
    at_least: int
    at_most: int


def node_types(config: Mapping[str, Any]) -> list[NodeType]:
    """The worker types of a cluster's file, as `ray up` leaves it on the head: with every default filled in.

    The file's bound on all workers is shared out in the order of the types.
    """
    types, left = [], config["max_workers"]
    for kind in config["available_node_types"].values():
        at_most = min(kind.get("max_workers", 0), left)
        left -= at_most
        types.append(NodeType(kind.get("resources", {}), kind.get("min_workers", 0), at_most))
    return [kind for kind in types if kind.at_most]


def autoscaled(environment: Mapping[str, str], bootstrap: Path | None) -> list[NodeType]:
    """What an autoscaler may add to this cluster, as far as it is known here; empty: nothing.

    Args:
        bootstrap: the cluster's file, if this is its head.

    Raises:
        UserError: what the environment says cannot be read.
    """
    if text := environment.get(NODE_TYPES):
        try:
            return [NodeType(kind["resources"], 0, kind["max_workers"]) for kind in yaml.safe_load(text)]
        except (yaml.YAMLError, KeyError, TypeError):
            raise UserError(f"{NODE_TYPES}: got {text!r}, what would do: '[{{\"resources\": {{\"CPU\": 8, \"GPU\": 1}}, \"max_workers\": 4}}]'") from None  # fmt: skip
    if bootstrap is None or not bootstrap.exists():
        return []
    return node_types(yaml.safe_load(bootstrap.read_text()))


def workers_on(execution: Execution, node: Resources) -> int:
    """How many of a stage's workers one node holds at once."""
    asked = {"CPU": execution.cpus_per_worker, "GPU": execution.gpus_per_worker}
    return min(int(node.get(name, 0) / count + 1e-9) for name, count in asked.items() if count)


def slots_that_fit(execution: Execution, nodes: Sequence[Resources], types: Sequence[NodeType] = ()) -> int:
    """How many slots of the asked shape the cluster holds at once, with all that its autoscaler may add. A slot with a range
    of workers counts as its most, or if that never fits, the one slot there is as its fewest.

    Raises:
        UserError: not even one, now or ever.
    """
    now = sum(workers_on(execution, node) for node in nodes)
    later = sum(workers_on(execution, kind.resources) * kind.at_most for kind in types)
    if count := max(now, later) // execution.most_workers:
        return count
    if max(now, later) >= execution.fewest_workers:
        return 1
    raise UserError(_misfit(execution, [*nodes, *(kind.resources for kind in types if kind.at_most)], bool(types)))


def _misfit(execution: Execution, nodes: Sequence[Resources], scales: bool) -> str:
    workers = execution.fewest_workers
    cpus, gpus = workers * execution.cpus_per_worker, workers * execution.gpus_per_worker
    largest = sorted({(node.get("GPU", 0), node.get("CPU", 0)) for node in nodes}, reverse=True)[:3]
    have = ", ".join(f"{cpu:g} CPUs and {gpu:g} GPUs" for gpu, cpu in largest)
    each = f"execution.workers: {execution.workers}, each on one node with {execution.cpus_per_worker} CPUs and {execution.gpus_per_worker:g} GPUs"
    return (
        f"execution: a stage needs {cpus} CPUs and {gpus:g} GPUs ({each}), the largest nodes of the cluster have {have}"
        + ("" if scales else ", and no autoscaler is known here that could add others")
        + ": lower execution.workers, cpus_per_worker or gpus_per_worker, or use a larger cluster"
    )


def _is_head() -> bool:
    here = ray.get_runtime_context().get_node_id()
    return any(node["NodeID"] == here and HEAD in node["Resources"] for node in ray.nodes())


def _alive() -> list[Resources]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def capacity(patience: float = 0.0) -> tuple[list[Resources], list[NodeType]]:
    """The nodes of the connected cluster, and what may be added to them.

    Nodes that are known only once they join, as hosts of one's own are, are waited for, up to `patience` seconds.
    """
    types = autoscaled(os.environ, BOOTSTRAP.expanduser() if _is_head() else None)
    awaited = 1 + sum(kind.at_least for kind in types if not kind.resources)
    end = time.monotonic() + patience
    while len(_alive()) < awaited and time.monotonic() < end:
        time.sleep(0.5)
    return _alive(), types
