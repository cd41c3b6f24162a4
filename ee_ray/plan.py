"""From a sweep and one (lambda level, seed) to the stages that must exist: integer windows, keys, cost. Pure.

A stage's key is a hash of everything that can change its numbers, its parent's key included, and of nothing else.
What cannot change them (workers, micro-batch, paths, the sweep's name) never reaches this module's identities.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ee_ray.spec.stages import Finetune, Posttrain, Pretrain
from ee_ray.spec.sweep import SweepSpec

# Part of every key: bump it when training or evaluation changes in a way that changes numbers.
STAGE_VERSION = 1
Kind = Literal["pretrain", "posttrain", "finetune"]


@dataclass(frozen=True)
class Part:
    """Windows [start, stop) of one corpus, by cursor through its seeded order (see data/order.py)."""

    role: str
    data: str
    start: int
    stop: int
    order_seed: int


@dataclass(frozen=True)
class StageIdentity:
    """Every field that can change a stage's numbers, and no other. Losses are evaluated on `heldout` (role, data)."""

    kind: Kind
    parent: str | None
    model: Mapping[str, Any]
    seed: int
    parts: tuple[Part, ...]
    heldout: tuple[tuple[str, str], ...]
    heldout_windows: int
    sequence_length: int
    global_batch_size: int
    learning_rate: float
    min_learning_rate: float
    warmup_steps: int
    weight_decay: float
    precision: str
    version: int = STAGE_VERSION

    def payload(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def windows(self) -> int:
        return sum(part.stop - part.start for part in self.parts)

    @property
    def tokens(self) -> int:
        return self.windows * self.sequence_length

    @property
    def steps(self) -> int:
        return -(-self.windows // self.global_batch_size)


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


def key_of(payload: Mapping[str, Any]) -> str:
    """16 hex digits of SHA-256 over the canonical JSON of the payload."""
    text = json.dumps(encode(payload), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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


def _stage(identity: StageIdentity) -> Stage:
    return Stage(identity, key_of(identity.payload()))


@dataclass(frozen=True)
class Point:
    """One unit of search: a level of the ladder and a seed. lambda = level / ladder."""

    level: int
    seed: int


@dataclass(frozen=True)
class Trial:
    """One upstream recipe and its fan-out of fine-tuning learning rates."""

    point: Point
    pretrain: Stage
    posttrain: Stage | None
    finetunes: tuple[tuple[float, Stage], ...]

    @property
    def upstream(self) -> Stage:
        """What fine-tuning starts from. At lambda = 1 there is no stage 2: theta_post = theta_pre (paper, 4.2)."""
        return self.posttrain or self.pretrain

    @property
    def stages(self) -> list[Stage]:
        head = [self.pretrain, self.posttrain] if self.posttrain else [self.pretrain]
        return [*head, *(stage for _, stage in self.finetunes)]


@dataclass(frozen=True)
class Allocation:
    """D_post's windows by stage, and what D_pre keeps: exposed + post = the budget, always."""

    pre: int
    exposed: int
    post: int


def allocate(spec: SweepSpec, level: int) -> Allocation:
    """Split the budget of D_post at `level` of the ladder, in whole windows (paper, section 4.2)."""
    budget = spec.stages.posttrain.tokens // spec.sequence_length
    exposed = budget * level // spec.search.ladder
    pre = spec.stages.pretrain.tokens // spec.sequence_length
    if spec.stages.pretrain.mixing == "replace":
        pre -= exposed
    return Allocation(pre=pre, exposed=exposed, post=budget - exposed)


def warmup(asked: int, steps: int) -> int:
    """Warmup steps that a stage of `steps` steps can afford: at most a tenth of it, at least one."""
    return max(1, min(asked, steps // 10))


def _identity(
    spec: SweepSpec,
    kind: Kind,
    settings: Pretrain | Posttrain | Finetune,
    learning_rate: float,
    parent: Stage | None,
    parts: list[Part],
    heldout: dict[str, str],
    seed: int,
) -> StageIdentity:
    kept = tuple(part for part in parts if part.stop > part.start)
    steps = -(-sum(part.stop - part.start for part in kept) // settings.global_batch_size)
    return StageIdentity(
        kind=kind,
        parent=parent.key if parent else None,
        model=spec.model_config_fields,
        seed=seed,
        parts=kept,
        heldout=tuple(sorted(heldout.items())),
        heldout_windows=spec.data.heldout_windows,
        sequence_length=spec.sequence_length,
        global_batch_size=settings.global_batch_size,
        learning_rate=learning_rate,
        min_learning_rate=settings.min_learning_rate,
        warmup_steps=warmup(settings.warmup_steps, steps),
        weight_decay=settings.weight_decay,
        precision=spec.precision,
    )


def build_trial(spec: SweepSpec, data: Mapping[str, str], point: Point) -> Trial:
    """The chained stages of one trial.

    A stage is evaluated on the corpora of its own lineage, so what lambda = 0 pretrains does not depend on D_post at
    all, and every D_post and D_ft of every sweep shares it. Each corpus has its own order, drawn with the trial's
    seed: replicates differ in initial weights and in order, and are paired over lambda.

    Args:
        data: fingerprint of each role's packed corpus.
    """
    split, seed, stages = allocate(spec, point.level), point.seed, spec.stages

    def part(role: str, start: int, stop: int) -> Part:
        return Part(role, data[role], start, stop, seed)

    seen = {"pre": data["pre"]} | ({"post": data["post"]} if split.exposed else {})
    pretrain = _stage(_identity(
        spec, "pretrain", stages.pretrain, stages.pretrain.learning_rate, None,
        [part("pre", 0, split.pre), part("post", 0, split.exposed)], seen, seed,
    ))  # fmt: skip
    posttrain = None
    seen["post"] = data["post"]
    if split.post:
        posttrain = _stage(_identity(
            spec, "posttrain", stages.posttrain, stages.posttrain.learning_rate, pretrain,
            [part("post", split.exposed, split.exposed + split.post)], seen, seed,
        ))  # fmt: skip
    seen["ft"] = data["ft"]
    count = stages.finetune.tokens // spec.sequence_length
    finetunes = tuple(
        (rate, _stage(_identity(
            spec, "finetune", stages.finetune, rate, posttrain or pretrain, [part("ft", 0, count)], seen, seed,
        )))
        for rate in stages.finetune.learning_rates
    )  # fmt: skip
    return Trial(point, pretrain, posttrain, finetunes)


def distinct(trials: list[Trial]) -> dict[str, Stage]:
    """Every stage of the trials once, parents before children."""
    return {stage.key: stage for trial in trials for stage in trial.stages}


def trialwise_tokens(trials: list[Trial]) -> int:
    """Tokens that one full path for each (trial, fine-tuning rate) would train, sharing nothing."""
    total = 0
    for trial in trials:
        path = sum(stage.identity.tokens for stage in (trial.pretrain, trial.posttrain) if stage)
        total += sum(path + stage.identity.tokens for _, stage in trial.finetunes)
    return total


def budgets(spec: SweepSpec) -> dict[str, int]:
    """Windows of each corpus that the sweep's budgets ask for."""
    length = spec.sequence_length
    return {
        "pre": spec.stages.pretrain.tokens // length,
        "post": spec.stages.posttrain.tokens // length,
        "ft": spec.stages.finetune.tokens // length,
    }


def parameters(config: Mapping[str, Any], vocab_size: int) -> int | None:
    """Parameters of a Llama-style model, without importing torch; None for other architectures."""
    if (
        config["model_type"] != "llama"
        or "head_dim" in config
        or config.get("attention_bias")
        or config.get("mlp_bias")
    ):
        return None
    try:
        hidden, layers, mlp = config["hidden_size"], config["num_hidden_layers"], config["intermediate_size"]
        heads = config["num_attention_heads"]
    except KeyError:
        return None
    kv = config.get("num_key_value_heads", heads) * (hidden // heads)
    block = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * mlp + 2 * hidden
    embeddings = vocab_size * hidden * (1 if config.get("tie_word_embeddings", False) else 2)
    return int(embeddings + layers * block + hidden)


def sweep_key(spec: SweepSpec, data: Mapping[str, str]) -> str:
    """What two runs of a sweep must have in common to be the same search: everything but names, execution, and what
    only says when to stop, for a search that goes on longer is the same as far as both go."""
    stops = {"max_trials", "max_tokens", "max_hours", "max_gpu_hours", "ci_width"}
    left_out: Any = {"name": True, "execution": True, "data": True, "search": stops}
    return key_of({"spec": spec.model_dump(mode="json", exclude=left_out), "data": data})


class Prices:
    """What trials of a sweep would cost, in tokens: `__call__(point, trained)` counts the stages of a point that the
    points trained before it have not trained, and that are not among `found`, keys that the store held beforehand."""

    def __init__(self, spec: SweepSpec, data: Mapping[str, str], found: frozenset[str]):
        self._spec, self._data, self.found = spec, data, found
        self._stages: dict[Point, dict[str, int]] = {}

    def stages(self, point: Point) -> dict[str, int]:
        """Tokens of each distinct stage of a point, by key."""
        if point not in self._stages:
            trial = build_trial(self._spec, self._data, point)
            self._stages[point] = {key: stage.identity.tokens for key, stage in distinct([trial]).items()}
        return self._stages[point]

    def __call__(self, point: Point, trained: list[Point]) -> int:
        had = self.found.union(*(self.stages(other) for other in trained))
        return sum(tokens for key, tokens in self.stages(point).items() if key not in had)
