"""A whole sweep: its parts, and what must hold between them.

Fields that can change a number and fields that only say where and how fast to run are separate types: everything under
`execution:` stays out of every stage's key.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ee_ray.spec.data import Data
from ee_ray.spec.model import PRESETS
from ee_ray.spec.search import Objective, Search
from ee_ray.spec.stages import Stages
from ee_ray.spec.strict import Positive, Strict
from ee_ray.spec.tokenizer import Tokenizer


class Execution(Strict):
    """Where and how fast, never what: no field here can change a key. `micro_batch` is sequences per forward pass."""

    workers: Positive = 1
    cpus_per_worker: Positive = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    micro_batch: Positive | None = None


class SweepSpec(Strict):
    schema_version: Annotated[Literal[1], Field(alias="schema")]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=80)]
    setting: Literal["compute_matched"] = "compute_matched"
    model: dict[str, Any] | Literal["nano"]
    tokenizer: Tokenizer = Tokenizer(raw_bytes=True)
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
