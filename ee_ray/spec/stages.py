"""The `stages:` part of a spec: how long and how fast each of the three stages trains."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from ee_ray.spec.strict import Positive, Rate, Strict


class _Training(Strict):
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


class Stages(Strict):
    pretrain: Pretrain
    posttrain: Posttrain
    finetune: Finetune
