"""What makes two stages the same stage: every field that can change its numbers, its parent's key, and nothing else.

What cannot change the numbers (workers, micro-batch, paths, the sweep's name) never reaches this module.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ee_ray.spec.stages import Kind

# Part of every key: bump it when training or evaluation changes in a way that changes numbers.
STAGE_VERSION = 3
KEY_DIGITS = 16


@dataclass(frozen=True)
class Part:
    """Windows [start, stop) of one corpus, by cursor through its seeded order, `passes` times (see data/order.py)."""

    role: str
    data: str
    start: int
    stop: int
    order_seed: int
    passes: int = 1

    @property
    def windows(self) -> int:
        return (self.stop - self.start) * self.passes


@dataclass(frozen=True)
class Course:
    """Where a stage lies on its learning-rate schedule, in windows: from `begin` to `end` of `total`, after a warmup of
    `warmup`. A stage that ends before its total is continued, with its optimizer's state, by the one that begins there.

    Pretraining's course is D_pre's (or, where D_post replaces some of it, both together), so that every lambda has the
    same learning rate at the same point of D_pre, and what precedes exposure to D_post is the same stage for all.
    """

    begin: int
    end: int
    total: int
    warmup: int


@dataclass(frozen=True)
class StageIdentity:
    """Every field that can change a stage's numbers, and no other. Losses are evaluated on `heldout` (role, data)."""

    kind: Kind
    parent: str | None
    model: Mapping[str, Any]
    seed: int
    parts: tuple[Part, ...]
    course: Course
    heldout: tuple[tuple[str, str], ...]
    heldout_windows: int
    sequence_length: int
    global_batch_size: int
    learning_rate: float
    min_learning_rate: float
    weight_decay: float
    precision: str
    early_stopping: Mapping[str, int] | None = None
    dropout: Mapping[str, float] | None = None
    lora: Mapping[str, Any] | None = None
    version: int = STAGE_VERSION

    def payload(self) -> dict[str, Any]:
        """Every field as plain values. (`dataclasses.asdict` copies each mapping to its depth: half of a large ledger's time.)"""
        return vars(self) | {"parts": tuple(map(vars, self.parts)), "course": vars(self.course)}

    @property
    def windows(self) -> int:
        return sum(part.windows for part in self.parts)

    @property
    def tokens(self) -> int:
        """What the stage trains, or with early stopping the most that it may."""
        return self.windows * self.sequence_length

    @property
    def steps(self) -> int:
        return -(-self.windows // self.global_batch_size)

    @property
    def warmup_steps(self) -> int:
        return max(0, self.course.warmup - self.course.begin) // self.global_batch_size

    @property
    def is_continued(self) -> bool:
        """Another stage goes on from this one's optimizer, so that its state is published too."""
        return self.course.end < self.course.total


def encode(value: Any, where: str = "payload") -> Any:
    """A canonical JSON-ready copy of a payload.

    Raises:
        TypeError: for anything whose text is not its identity: callables, arbitrary objects, NaN, and floats where
            allocations are counted (`start`, `stop`).
    """
    if isinstance(value, Mapping):
        return {str(key): encode(item, f"{where}.{key}") for key, item in sorted(value.items())}
    if isinstance(value, (list, tuple)):
        return [encode(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, bool) or value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, float) and value == value and abs(value) != float("inf"):
        if where.rsplit(".", 1)[-1] in ("start", "stop"):
            raise TypeError(f"{where}: allocations are integers of windows, got {value!r}")
        return value
    raise TypeError(f"{where}: {type(value).__name__} cannot be part of an identity")


def _text(value: Any) -> bytes:
    return json.dumps(encode(value), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def key_of(payload: Mapping[str, Any]) -> str:
    """16 hex digits of SHA-256 over the canonical JSON of the payload."""
    return hashlib.sha256(_text(payload)).hexdigest()[:KEY_DIGITS]


class ListKey:
    """`key_of({name: items})` of a list that grows: what was added before is not encoded again."""

    def __init__(self, name: str):
        self._digest, self._between = hashlib.sha256(b"{%b:[" % _text(name)), b""

    def add(self, item: Any) -> None:
        self._digest.update(self._between + _text(item))
        self._between = b","

    def key(self) -> str:
        whole = self._digest.copy()
        whole.update(b"]}")
        return whole.hexdigest()[:KEY_DIGITS]


@dataclass(frozen=True)
class Stage:
    """One node of the tree: an identity and its key."""

    identity: StageIdentity
    key: str

    @property
    def kind(self) -> Kind:
        return self.identity.kind

    @property
    def parent(self) -> str | None:
        return self.identity.parent


def stage_of(identity: StageIdentity) -> Stage:
    return Stage(identity, key_of(identity.payload()))


def differences(a: Any, b: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    """Leaves that differ between two JSON values: (path, left, right); a side that lacks the leaf has None."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [*a, *(key for key in b if key not in a)]
        return [row for key in keys for row in differences(a.get(key), b.get(key), f"{where}.{key}".lstrip("."))]
    if isinstance(a, list) and isinstance(b, list):
        longest = range(max(len(a), len(b)))

        def side(values: list[Any], i: int) -> Any:
            return values[i] if i < len(values) else None

        return [row for i in longest for row in differences(side(a, i), side(b, i), f"{where}[{i}]")]
    return [] if a == b else [(where, a, b)]
