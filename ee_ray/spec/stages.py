"""The `stages:` part of a spec: how long and how fast each of the three stages trains, and what is done to stage 2."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from ee_ray.spec.strict import Positive, Rate, Sequences, Steps, StepsFromZero, Strict, Tokens, Windows

Kind = Literal["pretrain", "posttrain", "finetune"]
KINDS: tuple[Kind, ...] = ("pretrain", "posttrain", "finetune")
Share = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]


class _Training(Strict):
    tokens: Tokens
    """the budget; a multiple of sequence_length"""
    global_batch_size: Sequences
    """of one step, whatever the workers"""
    min_learning_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """where the cosine ends; below the peak"""
    warmup_steps: StepsFromZero = 100
    """linear warmup, a tenth of the stage at most"""
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """of AdamW"""

    @model_validator(mode="after")
    def _cosine_goes_down(self) -> Self:
        fields = dict(self)  # of one peak, or of several
        peak = min(fields.get("learning_rates") or [fields["learning_rate"]])
        if self.min_learning_rate > peak:
            raise ValueError(f"min_learning_rate {self.min_learning_rate:g} is above the peak {peak:g}: it would rise")
        return self


class EarlyStopping(Strict):
    """Stage 2 is evaluated every `every_steps` on `windows` held-out windows of D_post that L_im is not measured on; it
    ends after `patience` evaluations without a new best, and hands on the best weights (paper, 4.1)."""

    every_steps: Steps
    """how often it is evaluated"""
    patience: Positive = 3
    """evaluations without a new best after which stage 2 ends"""
    windows: Windows = 64
    """held-out windows of D_post to evaluate on, none of them among those of L_im"""


class Dropout(Strict):
    """Dropout while stage 2 trains (paper, 4.4): after the token embedding, on attention probabilities, on what each
    attention and MLP block adds to the residual stream, and on the hidden activation of the MLP."""

    embedding: Probability = 0.0
    """after the token embedding"""
    attention: Probability = 0.0
    """on attention probabilities"""
    residual: Probability = 0.0
    """on what each block adds to the residual stream"""
    mlp: Probability = 0.0
    """on the hidden activation of the MLP"""


class Lora(Strict):
    """Stage 2 trains low-rank adapters of `targets` only, merged into the weights at hand-over (paper, table 9).

    With the head among the targets a model with tied embeddings is untied first: merging would move its embedding too.
    """

    rank: Positive = 64
    """of each adapter"""
    alpha: Annotated[float, Field(gt=0)] = 128.0
    """adapters are scaled by alpha / rank"""
    dropout: Probability = 0.0
    """on what goes into an adapter"""
    targets: Annotated[list[str], Field(min_length=1)] = ["o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
    """names of the linear layers that get one"""


class Posttrain(_Training):
    """Stage 2. `tokens` is the whole budget of D_post, which the allocation splits between stages 1 and 2.

    `passes` over its share of D_post: one in the paper's compute-matched setting; in the varying setting the most that
    early stopping allows. `replay` mixes that fraction of D_pre's budget into each pass over the whole of D_post; a pass
    over a share of D_post brings that share of it.
    """

    learning_rate: Rate
    """the peak"""
    passes: Positive = 1
    """over stage 2's share of D_post; in the varying setting the most that early stopping allows"""
    early_stopping: EarlyStopping | None = None
    """for setting: varying, which needs it"""
    replay: Share = 0.0
    """the fraction of D_pre's budget that is mixed into a pass over the whole of D_post"""
    dropout: Dropout = Dropout()
    """while stage 2 trains"""
    lora: Lora | None = None
    """train adapters instead of all weights, and merge them at hand-over"""


class Exposure(Strict):
    """Where in pretraining D_post's share is mixed in: evenly over `window`, given as fractions of D_pre's course, and
    `passes` times (the paper makes one pass at most, and names this as a limitation)."""

    window: Annotated[list[Share], Field(min_length=2, max_length=2)] = [0.0, 1.0]
    """begin and end, as fractions of pretraining's course"""
    passes: Positive = 1
    """how often D_post's share is read in pretraining"""

    @field_validator("window")
    @classmethod
    def _forward(cls, window: list[float]) -> list[float]:
        if window[0] >= window[1]:
            raise ValueError(f"window must go forward, as [0.5, 1] does, got [{window[0]:g}, {window[1]:g}]")
        return window


class Pretrain(_Training):
    """Stage 1. `tokens` is the budget of D_pre; `mixing` says whether D_post comes on top of it or in its place."""

    learning_rate: Rate
    """the peak"""
    mixing: Literal["add", "replace"] = "add"
    """whether D_post comes on top of D_pre's tokens or in the place of some"""
    exposure: Exposure = Exposure()
    """where in pretraining D_post's share is mixed in"""


class Finetune(_Training):
    """Stage 3, once for each learning rate: what others will do to the model later."""

    learning_rates: Annotated[list[Rate], Field(min_length=1)]
    """peaks; stage 3 is trained once for each"""

    @field_validator("learning_rates")
    @classmethod
    def _distinct(cls, rates: list[float]) -> list[float]:
        if len(set(rates)) != len(rates):
            raise ValueError("learning_rates repeats a value")
        return rates


class Stages(Strict):
    """The three stages of a recipe: pretraining, post-training, and what others do later."""

    pretrain: Pretrain
    """stage 1, on D_pre and a lambda-fraction of D_post"""
    posttrain: Posttrain
    """stage 2, on the rest of D_post"""
    finetune: Finetune
    """stage 3, on D_ft"""
