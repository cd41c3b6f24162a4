"""A whole sweep: its parts, and what must hold between them.

Fields that can change a number and fields that only say where and how fast to run are separate types: everything under
`execution:` stays out of every stage's key.
"""

import itertools
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from ee_ray.spec.data import Data
from ee_ray.spec.execution import Execution
from ee_ray.spec.model import PRESETS, Checkpoint, ModelField
from ee_ray.spec.search import Objective, Search
from ee_ray.spec.stages import KINDS, Stages
from ee_ray.spec.strict import ContextTokens, Strict
from ee_ray.spec.tokenizer import Tokenizer


def _of_choices(error: ValidationError) -> list[str]:
    return [f"search.choices: {'.'.join(map(str, item['loc']))}: {item['msg'].removeprefix('Value error, ')}, got {item['input']!r}" for item in error.errors()]  # fmt: skip


class SweepSpec(Strict):
    schema_version: Annotated[Literal[1], Field(alias="schema")]
    """of this file: 1"""
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=80)]
    """of the sweep, its reports and its notes in the store: lower-case letters, digits, dots, dashes"""
    setting: Literal["compute_matched", "varying"] = "compute_matched"
    """divide one pass over D_post (paper, 4.2), or post-train on all of it whatever was mixed in (4.1)"""
    model: ModelField
    """a preset, `{checkpoint: FOLDER}`, or the fields of any causal model's config in transformers, vocab_size left out"""
    tokenizer: Tokenizer = Tokenizer(raw_bytes=True)
    """one for all corpora"""
    sequence_length: ContextTokens
    """of a window, which is also the model's context"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """of training's matrix products; weights are always fp32"""
    data: Data
    """three corpora"""
    stages: Stages
    """how long and how fast each stage trains"""
    search: Search = Search()
    """where to look and when to stop"""
    objective: Objective
    """what lambda* minimises"""
    execution: Execution = Execution()
    """where and how fast: nothing here changes a number"""

    @property
    def model_config_fields(self) -> dict[str, Any]:
        """The fields of transformers' config; empty for a checkpoint, which brings its own."""
        if isinstance(self.model, Checkpoint):
            return {}
        return dict(PRESETS[self.model]) if isinstance(self.model, str) else dict(self.model)

    @property
    def choices(self) -> list[dict[str, Any]]:
        """Every combination of `search.choices`, each a mapping of dotted fields to values; one empty one without."""
        names = list(self.search.choices)
        return [dict(zip(names, values, strict=True)) for values in itertools.product(*self.search.choices.values())]

    def chosen(self, choice: int) -> "SweepSpec":
        """The sweep with the stages that a choice asks for.

        Raises:
            ValidationError: a value that its field refuses.
        """
        if not self.search.choices:
            return self
        changed: dict[str, dict[str, Any]] = {}
        for path, value in self.choices[choice].items():
            stage, _, field = path.partition(".")
            changed.setdefault(stage, getattr(self.stages, stage).model_dump())[field] = value
        stages = Stages.model_validate({**{name: dict(getattr(self.stages, name)) for name in KINDS}, **changed})
        return self.model_copy(update={"stages": stages})

    @model_validator(mode="after")
    def _budgets_divide(self) -> "SweepSpec":
        try:
            variants = [self.chosen(number) for number in range(len(self.choices))]
        except ValidationError as error:
            raise ValueError("\n".join(_of_choices(error))) from None
        problems = [problem for variant in variants for problem in variant._problems()]
        if problems:
            raise ValueError("\n".join(dict.fromkeys(problems)))
        return self

    def _problems(self) -> list[str]:
        problems = self._setting_problems()
        for name in KINDS:
            stage, shape = getattr(self.stages, name), self.execution.shape(name)
            if stage.global_batch_size < shape.most_workers:
                where = "execution" if self.execution.own(name).workers is None else f"execution.{name}"
                problems.append(f"stages.{name}.global_batch_size {stage.global_batch_size} leaves some of {where}.workers {shape.workers} without a sequence: use fewer workers")  # fmt: skip
            if stage.tokens % self.sequence_length:
                problems.append(f"stages.{name}.tokens {stage.tokens} is not a multiple of sequence_length {self.sequence_length}")  # fmt: skip
        step = self.sequence_length * self.search.ladder
        if self.stages.posttrain.tokens % step:
            low = self.stages.posttrain.tokens // step * step
            problems.append(
                f"stages.posttrain.tokens {self.stages.posttrain.tokens} is not divided by a ladder of {self.search.ladder}"
                f" steps of whole windows: use a multiple of {step}, such as {low or step} or {low + step}"
            )
        if self.objective.finetune_lr not in self.stages.finetune.learning_rates:
            problems.append(f"objective.finetune_lr {self.objective.finetune_lr:g} is not one of stages.finetune.learning_rates {self.stages.finetune.learning_rates}")  # fmt: skip
        if isinstance(self.model, dict) and not isinstance(self.model.get("model_type"), str):
            problems.append("model.model_type is missing: name a causal model of transformers, such as llama, or give checkpoint: a folder")  # fmt: skip
        if isinstance(self.model, dict) and "vocab_size" in self.model:
            problems.append("model.vocab_size follows from the tokenizer: leave it out")
        return problems

    def _setting_problems(self) -> list[str]:
        """What allocations cannot be made."""
        problems = []
        pretrain, posttrain = self.stages.pretrain, self.stages.posttrain
        (begin, end), passes = pretrain.exposure.window, pretrain.exposure.passes
        budget = pretrain.tokens // self.sequence_length
        batch = pretrain.global_batch_size
        room = (int(end * budget) // batch - int(begin * budget) // batch) * batch
        if room < batch:
            problems.append(f"stages.pretrain.exposure.window [{begin:g}, {end:g}] holds less than one global batch of {batch} windows: D_pre has {budget}")  # fmt: skip
        elif pretrain.mixing == "replace" and posttrain.tokens * passes > room * self.sequence_length:
            problems.append(f"mixing: replace needs room for D_post: {posttrain.tokens:,} tokens, {passes} passes, in {room * self.sequence_length:,} of the exposure window")  # fmt: skip
        if (self.setting == "varying") != (posttrain.early_stopping is not None):
            problems.append("stages.posttrain.early_stopping goes with setting: varying, and setting: varying needs it")
        return problems
