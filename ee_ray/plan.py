"""From a sweep and one point of its search to the stages that must exist: integer windows, keys, cost. Pure."""

import dataclasses
import itertools
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ee_ray.identity import Course, Part, Stage, StageIdentity, key_of, stage_of
from ee_ray.spec.model import Checkpoint
from ee_ray.spec.stages import Exposure, Finetune, Kind, Lora, Posttrain, Pretrain
from ee_ray.spec.sweep import SweepSpec


@dataclass(frozen=True)
class Point:
    """One unit of search: a level of the ladder, a seed, and which of the sweep's choices. lambda = level / ladder."""

    level: int
    seed: int
    choice: int = 0


@dataclass(frozen=True)
class Trial:
    """One upstream recipe and its fan-out of fine-tuning learning rates. Pretraining is one stage, or a chain of them where
    D_post is mixed into a window of it."""

    point: Point
    pretrains: tuple[Stage, ...]
    posttrain: Stage | None
    finetunes: tuple[tuple[float, Stage], ...]

    @property
    def pretrain(self) -> Stage:
        return self.pretrains[-1]

    @property
    def upstream(self) -> Stage:
        """What fine-tuning starts from. At lambda = 1 there is no stage 2: theta_post = theta_pre (paper, 4.2)."""
        return self.posttrain or self.pretrain

    @property
    def stages(self) -> list[Stage]:
        head = [self.posttrain] if self.posttrain else []
        return [*self.pretrains, *head, *(stage for _, stage in self.finetunes)]


@dataclass(frozen=True)
class Allocation:
    """D_post's windows by stage, and what D_pre keeps. Compute-matched: exposed + post = the budget, always (paper, 4.2).
    Varying: post is the whole budget whatever was exposed (4.1)."""

    pre: int
    exposed: int
    post: int


def allocate(spec: SweepSpec, level: int) -> Allocation:
    """Split the budget of D_post at `level` of the ladder, in whole windows."""
    budget = spec.stages.posttrain.tokens // spec.sequence_length
    exposed = budget * level // spec.search.ladder
    pre = spec.stages.pretrain.tokens // spec.sequence_length
    if spec.stages.pretrain.mixing == "replace":
        pre -= exposed * spec.stages.pretrain.exposure.passes
    return Allocation(pre=pre, exposed=exposed, post=budget if spec.setting == "varying" else budget - exposed)


def warmup(asked: int, steps: int) -> int:
    """Warmup steps that a stage of `steps` steps can afford: at most a tenth of it, at least one."""
    return max(1, min(asked, steps // 10))


def _whole_course(windows: int, settings: Pretrain | Posttrain | Finetune) -> Course:
    batch = settings.global_batch_size
    return Course(0, windows, windows, min(windows, batch * warmup(settings.warmup_steps, -(-windows // batch))))


def segments(
    exposure: Exposure, total: int, batch: int, exposed: bool, starts: Iterable[float] = ()
) -> list[tuple[int, int, bool]]:
    """Pretraining's course of `total` windows cut where exposure begins and, if there is any, where it ends: (begin, end,
    whether D_post is mixed in). Cuts fall on whole global batches.

    Without exposure the cut stays, so that what precedes it is shared; `starts` are those of other recipes of the sweep.
    """

    def cut(edge: float) -> int:
        return int(edge * total) // batch * batch if edge < 1 else total

    begin, end = map(cut, exposure.window)
    shared = {cut(start) for start in starts if not exposed or cut(start) < begin}
    cuts = sorted({0, begin, end if exposed else total, total} | shared)
    return [(a, b, exposed and begin <= a < end) for a, b in itertools.pairwise(cuts)]


def _starts(spec: SweepSpec) -> set[float]:
    """Where exposure begins in any recipe that the sweep may choose."""
    if "pretrain.exposure" not in spec.search.choices:
        return set()
    return {spec.chosen(number).stages.pretrain.exposure.window[0] for number in range(len(spec.choices))}


def model_identity(spec: SweepSpec, data: Mapping[str, str]) -> dict[str, Any]:
    """The model by its config, or by the fingerprint of the checkpoint that it starts from: never by a path."""
    return {"checkpoint": data["model"]} if isinstance(spec.model, Checkpoint) else spec.model_config_fields


def _untied(model: Mapping[str, Any], lora: Lora | None) -> dict[str, Any]:
    return {**model, "tie_word_embeddings": False} if lora and "lm_head" in lora.targets else dict(model)


class _Chain:
    """Stages of one trial, each the child of the one before; `heldout` grows with the corpora that were seen."""

    def __init__(self, spec: SweepSpec, data: Mapping[str, str], seed: int):
        self.spec, self.data, self.seed = spec, data, seed
        self.model: Mapping[str, Any] = model_identity(spec, data)
        self.last: Stage | None = None
        self.seen = {"pre": data["pre"]}

    def part(self, role: str, start: int, stop: int, passes: int = 1) -> Part:
        return Part(role, self.data[role], start, stop, self.seed, passes)

    def stage(
        self,
        kind: Kind,
        settings: Pretrain | Posttrain | Finetune,
        rate: float,
        parts: list[Part],
        course: Course | None = None,
        **more: Any,
    ) -> Stage:
        kept = tuple(part for part in parts if part.windows)
        return stage_of(StageIdentity(
            kind=kind,
            parent=self.last.key if self.last else None,
            model=self.model,
            seed=self.seed,
            parts=kept,
            course=course or _whole_course(sum(part.windows for part in kept), settings),
            heldout=tuple(sorted(self.seen.items())),
            heldout_windows=self.spec.data.heldout_windows,
            sequence_length=self.spec.sequence_length,
            global_batch_size=settings.global_batch_size,
            learning_rate=rate,
            min_learning_rate=settings.min_learning_rate,
            weight_decay=settings.weight_decay,
            precision=self.spec.precision,
            **more,
        ))  # fmt: skip


def _pretrains(chain: _Chain, split: Allocation) -> tuple[Stage, ...]:
    settings = chain.spec.stages.pretrain
    exposure, stages, cursor = settings.exposure, [], 0
    mixed = split.exposed * exposure.passes
    total = split.pre + (mixed if settings.mixing == "replace" else 0)
    whole = _whole_course(total, settings)
    for begin, end, exposed in segments(exposure, total, settings.global_batch_size, mixed > 0, _starts(chain.spec)):
        pre = end - begin - (mixed if exposed and settings.mixing == "replace" else 0)
        parts = [chain.part("pre", cursor, cursor + pre)]
        if exposed:
            parts.append(chain.part("post", 0, split.exposed, exposure.passes))
            chain.seen["post"] = chain.data["post"]
        course = dataclasses.replace(whole, begin=begin, end=end)
        chain.last = chain.stage("pretrain", settings, settings.learning_rate, parts, course)
        stages.append(chain.last)
        cursor += pre
    return tuple(stages)


def _posttrain(chain: _Chain, split: Allocation) -> Stage | None:
    """Stage 2 on [first, budget) of D_post; None where nothing is left for it (lambda = 1, paper 4.2)."""
    spec, settings = chain.spec, chain.spec.stages.posttrain
    chain.seen["post"] = chain.data["post"]
    if not split.post:
        return None
    budget = settings.tokens // spec.sequence_length
    replayed = round(settings.replay * (spec.stages.pretrain.tokens // spec.sequence_length) * split.post / budget)
    parts = [
        chain.part("post", budget - split.post, budget, settings.passes),
        chain.part("pre", 0, replayed, settings.passes),
    ]
    dropout = settings.dropout.model_dump()
    stopping = settings.early_stopping
    chain.model = _untied(chain.model, settings.lora)
    return chain.stage(
        "posttrain", settings, settings.learning_rate, parts,
        early_stopping=stopping.model_dump() if stopping else None,
        dropout=dropout if any(dropout.values()) else None,
        lora=settings.lora.model_dump() if settings.lora else None,
    )  # fmt: skip


def build_trial(spec: SweepSpec, data: Mapping[str, str], point: Point) -> Trial:
    """The chained stages of one trial.

    A stage is evaluated on the corpora of its own lineage, so what lambda = 0 pretrains does not depend on D_post at
    all, and every D_post and D_ft of every sweep shares it. Each corpus has its own order, drawn with the trial's
    seed: replicates differ in initial weights and in order, and are paired over lambda.

    Args:
        data: fingerprint of each role's packed corpus, and under "model" of the checkpoint that it starts from, if any.
    """
    spec = spec.chosen(point.choice)
    chain = _Chain(spec, data, point.seed)
    split = allocate(spec, point.level)
    pretrains = _pretrains(chain, split)
    posttrain = _posttrain(chain, split)
    chain.last = posttrain or pretrains[-1]
    chain.seen["ft"] = data["ft"]
    settings, count = spec.stages.finetune, spec.stages.finetune.tokens // spec.sequence_length
    finetunes = tuple(
        (rate, chain.stage("finetune", settings, rate, [chain.part("ft", 0, count)]))
        for rate in settings.learning_rates
    )
    return Trial(point, pretrains, posttrain, finetunes)


def distinct(trials: list[Trial]) -> dict[str, Stage]:
    """Every stage of the trials once, parents before children."""
    return {stage.key: stage for trial in trials for stage in trial.stages}


def trialwise_tokens(trials: list[Trial]) -> int:
    """Tokens that one full path for each (trial, fine-tuning rate) would train, sharing nothing."""
    total = 0
    for trial in trials:
        path = sum(stage.identity.tokens for stage in (*trial.pretrains, trial.posttrain) if stage)
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
    if not spec.objective.losses:  # a field that came later: a sweep from before it stays the same search
        left_out["objective"] = {"losses"}
    return key_of({"spec": spec.model_dump(mode="json", exclude=left_out), "data": data})


class Prices:
    """What trials of a sweep would cost, in tokens: `__call__(point, had)` counts the stages of a point that are not among
    the keys `had`, which are those of points trained before it and `found`, what the store held beforehand."""

    def __init__(self, spec: SweepSpec, data: Mapping[str, str], found: frozenset[str]):
        self._spec, self._data, self.found = spec, data, found
        self._trials: dict[Point, Trial] = {}
        self._stages: dict[Point, dict[str, int]] = {}

    def trial(self, point: Point) -> Trial:
        """The stages that a point consists of, worked out once."""
        if point not in self._trials:
            self._trials[point] = build_trial(self._spec, self._data, point)
        return self._trials[point]

    def stages(self, point: Point) -> dict[str, int]:
        """Tokens of each distinct stage of a point, by key."""
        if point not in self._stages:
            self._stages[point] = {key: stage.identity.tokens for key, stage in distinct([self.trial(point)]).items()}
        return self._stages[point]

    def __call__(self, point: Point, had: Container[str]) -> int:
        return self.together([point], had)

    def had(self, trained: Iterable[Point]) -> set[str]:
        """Keys of the stages that need no training once these points are trained."""
        return set(self.found).union(*map(self.stages, trained))

    def together(self, points: Iterable[Point], had: Container[str]) -> int:
        """What several points cost one after another."""
        new = {key: tokens for each in points for key, tokens in self.stages(each).items() if key not in had}
        return sum(new.values())
