"""What a cluster can hold: how many slots of each shape fit on its nodes, and on those that may come. No Ray in it.

What a cluster can hold is more than what it holds now where an autoscaler adds nodes. Ray keeps no public record of what
an autoscaler may add, so it is read where `ray up` leaves it: in the cluster's file on the head, where drivers run.
Elsewhere (KubeRay) the environment may say it: EE_RAY_NODE_TYPES.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ee_ray.errors import UserError
from ee_ray.spec.execution import Execution, Shape
from ee_ray.spec.stages import Kind

NODE_TYPES = "EE_RAY_NODE_TYPES"
BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")  # written by `ray up` (commands.py, `get_or_create_head_node`)
# What a slot (Train's controller and its actors) and a trial's driver keep on the head (docs/scale.md).
SLOT_BYTES, TRIAL_BYTES = 0.6e9, 0.4e9

Resources = Mapping[str, float]


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


def declared(environment: Mapping[str, str], bootstrap: Path) -> tuple[list[Resources], list[NodeType]]:
    """The cluster that this machine is the head of, or is told of, as far as it is known without asking Ray: the head, and
    what may be added. Nothing of either: it is not known what nodes there will be. The head counts as what its machine has,
    though it may be started without CPUs: what is refused is what surely cannot be.

    Raises:
        UserError: what the environment says cannot be read.
    """
    types = autoscaled(environment, bootstrap)
    if not types or not all(kind.resources for kind in types):
        return [], []
    if environment.get(NODE_TYPES) or not bootstrap.exists():
        return [], types
    config = yaml.safe_load(bootstrap.read_text())
    return [config["available_node_types"][config["head_node_type"]].get("resources", {})], types


def workers_on(shape: Shape, node: Resources) -> int:
    """How many of a stage's workers one node holds at once. A part of a GPU is a part of one GPU: 0.4 fits twice on each."""
    counts = [int(node.get("CPU", 0) // shape.cpus_per_worker)]
    gpus = shape.gpus_per_worker
    if 0 < gpus < 1:
        counts.append(int(node.get("GPU", 0)) * int(1 / gpus + 1e-9))
    elif gpus:
        counts.append(int(node.get("GPU", 0) // gpus))
    return min(counts)


def slots_that_fit(
    shape: Shape, nodes: Sequence[Resources], types: Sequence[NodeType] = (), field: str = "execution"
) -> int:
    """How many slots of the asked shape the cluster holds at once, with all that its autoscaler may add. A slot with a range
    of workers counts as its most, or if that never fits, the one slot there is as its fewest.

    Raises:
        UserError: not even one, now or ever; `field` is where the spec asks for it.
    """
    now = sum(workers_on(shape, node) for node in nodes)
    later = sum(workers_on(shape, kind.resources) * kind.at_most for kind in types)
    if count := max(now, later) // shape.most_workers:
        return count
    if max(now, later) >= shape.fewest_workers:
        return 1
    raise UserError(_misfit(shape, [*nodes, *(kind.resources for kind in types if kind.at_most)], bool(types), field))


def _misfit(shape: Shape, nodes: Sequence[Resources], scales: bool, field: str) -> str:
    workers = shape.fewest_workers
    cpus, gpus = workers * shape.cpus_per_worker, workers * shape.gpus_per_worker
    largest = sorted({(node.get("GPU", 0), node.get("CPU", 0)) for node in nodes}, reverse=True)[:3]
    have = ", ".join(f"{cpu:g} CPUs and {gpu:g} GPUs" for gpu, cpu in largest)
    each = f"{field}.workers: {shape.workers}, each on one node with {shape.cpus_per_worker} CPUs and {shape.gpus_per_worker:g} GPUs"
    return (
        f"{field}: a stage needs {cpus} CPUs and {gpus:g} GPUs ({each}), the largest nodes of the cluster have {have}"
        + ("" if scales else ", and no autoscaler is known here that could add others")
        + f": lower {field}.workers, cpus_per_worker or gpus_per_worker, or use a larger cluster"
    )


def slot_counts(
    execution: Execution, nodes: Sequence[Resources], types: Sequence[NodeType] = ()
) -> dict[tuple[Kind, ...], int]:
    """How many slots the cluster holds for stages of each kind (of each group of kinds that take the same), each as if it
    had the cluster for itself: who has its room when is for Ray and the board to settle.

    Raises:
        UserError: with each shape that no node can ever hold.
    """
    found, problems = {}, []
    for kinds, shape in execution.slots.items():
        try:
            found[kinds] = slots_that_fit(shape, nodes, types, execution.field(kinds))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    return found


def bounded(counts: Mapping[tuple[Kind, ...], int], memory: float) -> dict[tuple[Kind, ...], int]:
    """As many slots as a head of `memory` bytes bears, at least one for each kind: the most numerous give way."""
    counts = dict(counts)
    while sum(counts.values()) * (SLOT_BYTES + TRIAL_BYTES) + TRIAL_BYTES > memory:
        most = max(counts, key=lambda kinds: counts[kinds])
        if counts[most] == 1:
            break
        counts[most] -= 1
    return counts
