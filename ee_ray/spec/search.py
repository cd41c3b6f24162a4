"""The `search:` and `objective:` parts of a spec: where to look, what to minimise, and when to stop."""

import math
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ee_ray.spec.stages import Posttrain, Pretrain
from ee_ray.spec.strict import GpuHours, Hours, Nats, Positive, Strict, Tokens


class Search(Strict):
    """Where to look. `ladder` steps make ladder + 1 levels of lambda; anchors are tried first, with the first
    `anchor_seeds` of the seeds.

    With two anchors only, and no trials but those, a sweep draws frontiers and seeks no lambda*.

    After the anchors, rounds of `runs_per_round` (level, seed) runs are chosen where they teach most about the best
    level, until its 95% interval is no wider than `ci_width`, or a budget is spent: `max_trials` runs, `max_tokens`
    trained, `max_hours` of one command's wall time, `max_gpu_hours`. Rounds are fixed by the spec, not by the machine,
    so that any number of workers makes the same choices: a cluster asks for as many runs a round as it can train.

    `choices` are other things to choose with lambda: lists of values for fields of pretrain and posttrain, by dotted
    name. Every combination is tried at every anchor; after that each run goes to the lambda and the choice where it teaches
    most, and lambda* is where the best choice at each lambda is best.
    """

    ladder: Annotated[int, Field(ge=2, le=256)] = 16
    """steps of the ladder of lambda, which has one level more; posttrain.tokens must divide into as many whole windows"""
    anchors: Annotated[list[float], Field(min_length=2)] = [0.0, 0.5, 1.0]
    """levels of lambda that are tried first; 0 and 1 among them"""
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0, 1, 2, 3, 4, 5, 6, 7]
    """replicates that may be used: a seed is one initialisation and one order of the data, at every lambda"""
    anchor_seeds: Positive = 2
    """how many of the seeds the anchors are tried with"""
    runs_per_round: Positive = 2
    """runs that are chosen at once: as many as the cluster trains at once"""
    max_trials: Positive = 40
    """budget of runs, anchors included"""
    max_tokens: Tokens | None = None
    """budget of tokens to train, what the store held before not counted; it is never exceeded"""
    max_hours: Hours | None = None
    """budget of one command's wall time; runs that have begun are finished"""
    max_gpu_hours: GpuHours | None = None
    """budget of GPU time: no run begins that would exceed it, by what a token has taken so far; the first ones are not known"""
    ci_width: Annotated[float, Field(gt=0, le=1)] = 0.25
    """the search ends when the 95% interval of lambda* is no wider; not asked of a frontier (objective.loss: pareto)"""
    choices: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """other fields to choose with lambda: lists of values by dotted name, such as posttrain.learning_rate"""

    @field_validator("choices")
    @classmethod
    def _choosable(cls, choices: dict[str, list[Any]]) -> dict[str, list[Any]]:
        fields = {"pretrain": Pretrain.model_fields, "posttrain": Posttrain.model_fields}
        for path in choices:
            stage, _, field = path.partition(".")
            if field not in fields.get(stage, {}) or field == "tokens":
                raise ValueError(f"{path} is no field of pretrain or posttrain that can be chosen, such as posttrain.learning_rate")  # fmt: skip
        return choices

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
        need = len(self.anchors) * len(self.seeds[: self.anchor_seeds]) * math.prod(map(len, self.choices.values()))
        if len(self.anchors) == 2 and self.max_trials != need:
            raise ValueError(f"two anchors locate no optimum: add a third, or set max_trials to {need} for their frontiers alone")  # fmt: skip
        if self.max_trials < need:
            by_choice = " x choices" if self.choices else ""
            raise ValueError(f"max_trials {self.max_trials} is less than anchors x anchor_seeds{by_choice} = {need}")
        return self

    @property
    def anchor_levels(self) -> list[int]:
        return [int(Fraction(str(a)) * self.ladder) for a in self.anchors]


class Objective(Strict):
    """What lambda* minimises, in nats. Differences below `practical` do not matter to the user.

    - `L_ret`: retained loss after fine-tuning at `finetune_lr`
    - `L_im`: immediate loss, before fine-tuning
    - `L_ret_matched`: retained loss where fine-tuning has come down to `finetune_loss`, between a recipe's own rates
    - `weighted`: the sum of `weights` times L_ret, L_ft, L_pre and L_im, fine-tuned at `finetune_lr`
    - `pareto`: none of its own, but the Pareto frontier of `losses`, fine-tuned at `finetune_lr`: which levels and choices lie
      on it, to within `practical` nats. There is no lambda* then
    """

    loss: Literal["L_ret", "L_im", "L_ret_matched", "weighted", "pareto"] = "L_ret"
    """which loss lambda* minimises"""
    finetune_lr: float
    """the fine-tuning rate at which it is read: one of stages.finetune.learning_rates"""
    finetune_loss: Nats | None = None
    """the fine-tuning loss to compare at, for loss: L_ret_matched"""
    weights: dict[Literal["L_ret", "L_ft", "L_pre", "L_im"], float] | None = None
    """of the losses, for loss: weighted"""
    losses: Annotated[list[Literal["L_ret", "L_ft", "L_pre", "L_im"]], Field(min_length=2)] | None = None
    """that all matter, two or more, for loss: pareto"""
    practical: Nats = 0.01
    """differences below this do not matter"""

    @model_validator(mode="after")
    def _complete(self) -> "Objective":
        for loss, name in (("L_ret_matched", "finetune_loss"), ("weighted", "weights"), ("pareto", "losses")):
            if (self.loss == loss) != bool(getattr(self, name)):
                raise ValueError(f"{name} goes with loss: {loss}, and loss: {loss} needs it")
        if self.losses and len(set(self.losses)) < len(self.losses):
            raise ValueError(f"losses must not repeat one, got {', '.join(self.losses)}")
        return self
