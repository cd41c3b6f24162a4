"""The `stages:` part of a spec: how long and how fast each of the three stages trains, and what is done to stage 2."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from ee_ray.spec.strict import Positive, Rate, Strict

Share = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]


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


class EarlyStopping(Strict):
    """Stage 2 is evaluated every `every_steps` on `windows` held-out windows of D_post that L_im is not measured on; it
    ends after `patience` evaluations without a new best, and hands on the best weights (paper, 4.1)."""

    every_steps: Positive
    patience: Positive = 3
    windows: Positive = 64


class Dropout(Strict):
    """Dropout while stage 2 trains (paper, 4.4): after the token embedding, on attention probabilities, on what each
    attention and MLP block adds to the residual stream, and on the hidden activation of the MLP."""

    embedding: Probability = 0.0
    attention: Probability = 0.0
    residual: Probability = 0.0
    mlp: Probability = 0.0


class Lora(Strict):
    """Stage 2 trains low-rank adapters of `targets` only, merged into the weights at hand-over (paper, table 9).

    With the head among the targets a model with tied embeddings is untied first: merging would move its embedding too.
    """

    rank: Positive = 64
    alpha: Annotated[float, Field(gt=0)] = 128.0
    dropout: Probability = 0.0
    targets: Annotated[list[str], Field(min_length=1)] = ["o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]


class Posttrain(_Training):
    """Stage 2. `tokens` is the whole budget of D_post, which the allocation splits between stages 1 and 2.

    `passes` over its share of D_post: one in the paper's compute-matched setting; in the varying setting the most that
    early stopping allows. `replay` mixes that fraction of D_pre's budget into each pass over the whole of D_post; a pass
    over a share of D_post brings that share of it.
    """

    learning_rate: Rate
    passes: Positive = 1
    early_stopping: EarlyStopping | None = None
    replay: Share = 0.0
    dropout: Dropout = Dropout()
    lora: Lora | None = None

    def _lowest_peak(self) -> float:
        return self.learning_rate


class Exposure(Strict):
    """Where in pretraining D_post's share is mixed in: evenly over `window`, given as fractions of D_pre's course, and
    `passes` times (the paper makes one pass at most, and names this as a limitation)."""

    window: Annotated[list[Share], Field(min_length=2, max_length=2)] = [0.0, 1.0]
    passes: Positive = 1

    @field_validator("window")
    @classmethod
    def _forward(cls, window: list[float]) -> list[float]:
        if window[0] >= window[1]:
            raise ValueError(f"window must go forward, as [0.5, 1] does, got [{window[0]:g}, {window[1]:g}]")
        return window


class Pretrain(_Training):
    """Stage 1. `tokens` is the budget of D_pre; `mixing` says whether D_post comes on top of it or in its place."""

    learning_rate: Rate
    mixing: Literal["add", "replace"] = "add"
    exposure: Exposure = Exposure()

    def _lowest_peak(self) -> float:
        return self.learning_rate


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
