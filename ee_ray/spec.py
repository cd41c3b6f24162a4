"""A sweep is a file: what to train, on what, how finely to split it, and how sure to be.

`load_sweep` reads the YAML strictly and reports every problem at once. Fields that can change a number and fields that
only say where and how fast to run are separate types: everything under `execution:` stays out of every stage's key.
"""

import re
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ee_ray.errors import UserError

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, lt=1)]
ROLES = ("pre", "post", "ft")

# Parameters are counted for these by `parameters`; any other config of transformers' causal models can be written out.
PRESETS: dict[str, dict[str, Any]] = {
    "nano": {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True, "initializer_range": 0.06,
    },
}  # fmt: skip


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _is_source(text: str) -> str:
    kind, _, rest = text.partition(":")
    if kind not in ("builtin", "file") or not rest:
        raise ValueError("must be builtin:web|music|chemistry|instructions or file:PATH (.txt, .jsonl or .parquet)")
    return text


class Source(_Strict):
    """One corpus. `size` (bytes of text) is how much of a builtin corpus to generate; `field` names the text column."""

    source: Annotated[str, AfterValidator(_is_source)]
    size: Positive | None = None
    field: str = "text"
    strict: bool = Field(False, description="refuse a token budget beyond the pool instead of repeating it")

    @model_validator(mode="after")
    def _size_belongs_to_builtin(self) -> "Source":
        if self.source.startswith("builtin:") != (self.size is not None):
            raise ValueError("size is needed for builtin: sources, and only there")
        return self


class Data(_Strict):
    """The three corpora (paper, section 3), and how the held-out split is drawn: by document, before packing."""

    pre: Source
    post: Source
    ft: Source
    heldout_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    heldout_windows: Positive = 64


class _Training(_Strict):
    tokens: Positive
    global_batch_size: Annotated[int, Field(gt=0, description="sequences per step")]
    min_learning_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = 0.1

    def _lowest_peak(self) -> float:
        raise NotImplementedError

    @model_validator(mode="after")
    def _cosine_goes_down(self) -> Self:
        if self.min_learning_rate > (peak := self._lowest_peak()):
            raise ValueError(f"min_learning_rate {self.min_learning_rate:g} is above the peak {peak:g}: it would rise")
        return self


class Posttrain(_Training):
    """Stage 2. `tokens` is the whole budget of D_post, which the allocation splits between stages 1 and 2."""

    learning_rate: Rate

    def _lowest_peak(self) -> float:
        return self.learning_rate


class Pretrain(Posttrain):
    """Stage 1. `tokens` is the budget of D_pre; `mixing` says whether D_post comes on top of it or in its place."""

    mixing: Literal["add", "replace"] = "add"


class Finetune(_Training):
    """Stage 3, once for each learning rate: what others will do to the model later."""

    learning_rates: Annotated[list[Rate], Field(min_length=1)]

    def _lowest_peak(self) -> float:
        return min(self.learning_rates)

    @field_validator("learning_rates")
    @classmethod
    def _distinct(cls, rates: list[float]) -> list[float]:
        if len(set(rates)) != len(rates):
            raise ValueError("learning_rates repeats a value")
        return rates


class Stages(_Strict):
    pretrain: Pretrain
    posttrain: Posttrain
    finetune: Finetune


class Search(_Strict):
    """Where to look. `ladder` steps make ladder + 1 levels of lambda; anchors are tried first, with the first
    `anchor_seeds` of the seeds.

    After the anchors, rounds of `runs_per_round` (level, seed) runs are chosen where they teach most about the best
    level, until its 95% interval is no wider than `ci_width`, or a budget is spent: `max_trials` runs, `max_tokens`
    trained, `max_hours` of one command's wall time, `max_gpu_hours`. Rounds are fixed by the spec, not by the machine,
    so that any number of workers makes the same choices: a cluster asks for as many runs a round as it can train.
    """

    ladder: Annotated[int, Field(ge=2, le=256)] = 16
    anchors: Annotated[list[float], Field(min_length=3)] = [0.0, 0.5, 1.0]
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0, 1, 2, 3, 4, 5, 6, 7]
    anchor_seeds: Positive = 2
    runs_per_round: Positive = 2
    max_trials: Positive = 40
    max_tokens: Positive | None = None
    max_hours: Annotated[float, Field(gt=0)] | None = None
    max_gpu_hours: Annotated[float, Field(gt=0)] | None = None
    ci_width: Annotated[float, Field(gt=0, le=1)] = 0.25

    @field_validator("anchors")
    @classmethod
    def _inside(cls, anchors: list[float]) -> list[float]:
        if outside := [a for a in anchors if not 0 <= a <= 1]:
            raise ValueError(f"lambda must lie in [0, 1], got {', '.join(f'{a:g}' for a in outside)}")
        return anchors

    @model_validator(mode="after")
    def _consistent(self) -> "Search":
        off = [a for a in self.anchors if (Fraction(str(a)) * self.ladder).denominator != 1]
        if off:
            raise ValueError(f"anchors {off} are not multiples of 1/{self.ladder}, the ladder's step")
        if len(set(self.anchors)) != len(self.anchors) or len(set(self.seeds)) != len(self.seeds):
            raise ValueError("anchors and seeds must not repeat a value")
        if not {0.0, 1.0} <= set(self.anchors):
            raise ValueError("anchors must hold 0 and 1: the gain over both extremes is part of the answer")
        need = len(self.anchors) * len(self.seeds[: self.anchor_seeds])
        if self.max_trials < need:
            raise ValueError(f"max_trials {self.max_trials} is less than anchors x anchor_seeds = {need}")
        return self

    @property
    def anchor_levels(self) -> list[int]:
        return [int(Fraction(str(a)) * self.ladder) for a in self.anchors]


class Objective(_Strict):
    """What lambda* minimises, in nats. Differences below `practical` do not matter to the user.

    L_ret           retained loss after fine-tuning at `finetune_lr`
    L_im            immediate loss, before fine-tuning
    L_ret_matched   retained loss where fine-tuning has come down to `finetune_loss`, between a recipe's own rates
    weighted        the sum of `weights` times L_ret, L_ft, L_pre and L_im, fine-tuned at `finetune_lr`
    """

    loss: Literal["L_ret", "L_im", "L_ret_matched", "weighted"] = "L_ret"
    finetune_lr: float
    finetune_loss: Annotated[float, Field(gt=0)] | None = None
    weights: dict[Literal["L_ret", "L_ft", "L_pre", "L_im"], float] | None = None
    practical: Annotated[float, Field(gt=0)] = 0.01

    @model_validator(mode="after")
    def _complete(self) -> "Objective":
        for loss, name in (("L_ret_matched", "finetune_loss"), ("weighted", "weights")):
            if (self.loss == loss) != bool(getattr(self, name)):
                raise ValueError(f"{name} goes with loss: {loss}, and loss: {loss} needs it")
        return self


class Execution(_Strict):
    """Where and how fast, never what: no field here can change a key. `micro_batch` is sequences per forward pass."""

    workers: Positive = 1
    cpus_per_worker: Positive = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    micro_batch: Positive | None = None


class SweepSpec(_Strict):
    schema_version: Annotated[Literal[1], Field(alias="schema")]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=80)]
    setting: Literal["compute_matched"] = "compute_matched"
    model: dict[str, Any] | Literal["nano"]
    tokenizer: Literal["bytes"] = "bytes"
    sequence_length: Annotated[int, Field(ge=8)]
    precision: Literal["fp32", "bf16"] = "fp32"
    data: Data
    stages: Stages
    search: Search = Search()
    objective: Objective
    execution: Execution = Execution()

    @property
    def model_config_fields(self) -> dict[str, Any]:
        return dict(PRESETS[self.model]) if isinstance(self.model, str) else dict(self.model)

    @model_validator(mode="after")
    def _budgets_divide(self) -> "SweepSpec":
        problems = []
        for name in ("pretrain", "posttrain", "finetune"):
            stage = getattr(self.stages, name)
            if stage.global_batch_size % self.execution.workers:
                problems.append(f"stages.{name}.global_batch_size {stage.global_batch_size} is not divided by execution.workers {self.execution.workers}")  # fmt: skip
            if stage.tokens % self.sequence_length:
                problems.append(f"stages.{name}.tokens {stage.tokens} is not a multiple of sequence_length {self.sequence_length}")  # fmt: skip
        step = self.sequence_length * self.search.ladder
        if self.stages.posttrain.tokens % step:
            low = self.stages.posttrain.tokens // step * step
            problems.append(
                f"stages.posttrain.tokens {self.stages.posttrain.tokens} is not divided by a ladder of {self.search.ladder}"
                f" steps of whole windows: use a multiple of {step}, such as {low or step} or {low + step}"
            )
        if self.stages.pretrain.mixing == "replace" and self.stages.posttrain.tokens > self.stages.pretrain.tokens:
            problems.append("mixing: replace needs a pretraining budget at least as large as that of D_post")
        if self.objective.finetune_lr not in self.stages.finetune.learning_rates:
            problems.append(f"objective.finetune_lr {self.objective.finetune_lr:g} is not one of stages.finetune.learning_rates {self.stages.finetune.learning_rates}")  # fmt: skip
        if isinstance(self.model, dict) and not isinstance(self.model.get("model_type"), str):
            problems.append("model.model_type is missing: name a causal model of transformers, such as llama")
        if isinstance(self.model, dict) and "vocab_size" in self.model:
            problems.append("model.vocab_size follows from the tokenizer: leave it out")
        if problems:
            raise ValueError("\n".join(problems))
        return self


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 3e-4 is a number, as it is in YAML 1.2, and a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _lines(path: Path, error: ValidationError) -> list[str]:
    """One line for each problem: file, field, what was got, what would do."""
    lines = []
    for item in error.errors():
        # A union reports each branch with the branch's type as the last element of loc: not a field of the user's.
        where = ".".join(str(part) for part in item["loc"] if not str(part).startswith(("dict[", "literal[")))
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "missing":
            message = "is missing"
        elif item["type"] == "extra_forbidden":
            message = "is not a field here"
        elif item["type"] != "value_error":
            message = f"{message[0].lower()}{message[1:]}, got {item['input']!r}"
        for line in message.split("\n"):
            lines.append(f"{path}: {where}: {line}" if where else f"{path}: {line}")
    return lines


def load_sweep(path: Path | str) -> SweepSpec:
    """Read and check a sweep file.

    Raises:
        UserError: the file cannot be read, or holds anything that is unknown, missing, of the wrong type or
            inconsistent; one line for each problem.
    """
    path = Path(path)
    try:
        raw = yaml.load(path.read_text(), _Loader)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: must be a mapping of fields, got {type(raw).__name__}")
    try:
        return SweepSpec.model_validate(raw)
    except ValidationError as error:
        raise UserError(_lines(path, error)) from None
