"""Join a Ray cluster, or start one on this machine for the length of a run; the nodes that it has."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray
import ray._raylet
from ray.exceptions import AuthenticationError

from ee_ray.capacity import BOOTSTRAP, NodeType, Resources, autoscaled
from ee_ray.ending import stuck
from ee_ray.errors import UserError
from ee_ray.liveness import Port, ask

NAMESPACE = "ee_ray"
HEAD = "node:__internal_head__"
ON_HEAD = {HEAD: 0.001}  # the head is not preempted, and lives as long as the driver
JOIN_SECONDS = 120.0  # `ray up` returns about 30 s before hosts of one's own have joined


def call_process(what: str) -> None:
    """Call this process of Ray so in Ray's dashboard (Cluster) and in `top`, until its next task. Ray's own way to do so is
    private, and an actor's name and repr are fixed when it starts, while Tune gives it one trial after another."""
    set_title = getattr(ray._raylet, "setproctitle", None)
    if set_title:
        set_title(f"ray::{what}")  # `ray stop` knows its processes by the prefix


@contextmanager
def connected(address: str | None) -> Iterator[str | None]:
    """A connection to the cluster at `address`, or to one that lives as long as the block; gives Ray's dashboard, if it has one.

    Raises:
        UserError: no cluster answers at `address`, or an earlier run of this process has not ended yet.
    """
    _end_earlier()
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "namespace": NAMESPACE}
    if address:
        host, _, number = address.rpartition(":")
        # Ray itself would try for minutes, in silence.
        if "/" not in address and number.isdigit() and ask(Port("the head", host, int(number))) != "open":
            raise UserError(f"--address {address}: nothing answers there; give HOST:PORT as `ray start --head` or `ray up` says it, or auto on a host of the cluster")  # fmt: skip
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
        if not stuck:
            ray.shutdown()


def _end_earlier() -> None:
    """Shut down what an earlier run of this process, a notebook's, had to leave.

    Raises:
        UserError: it has not ended yet.
    """
    if any(thread.is_alive() for thread in stuck):
        raise UserError("an earlier run of this process has not ended yet: it waits for a server or a node that does not answer; run this again in some minutes, or start Python anew")  # fmt: skip
    if stuck:
        ray.shutdown()
        stuck.clear()


def ports() -> list[Port]:
    """What a driver cannot do without: the head's control store, and the raylet of its own node."""
    context = ray.get_runtime_context()
    host, _, number = context.gcs_address.rpartition(":")
    here = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    return [
        Port("the cluster's control store (gcs) on its head", host, int(number)),
        Port("the raylet of this node", here["NodeManagerAddress"], here["NodeManagerPort"]),
    ]


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


def head_memory() -> float:
    """Memory that Ray gives out on the head, bytes."""
    return max((node["Resources"].get("memory", 0.0) for node in ray.nodes() if HEAD in node["Resources"]), default=0.0)
