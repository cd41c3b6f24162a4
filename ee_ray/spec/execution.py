"""The `execution:` part of a spec: where and how fast, never what. No field here can change a key."""

from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from ee_ray.spec.stages import KINDS, Kind
from ee_ray.spec.strict import Positive, Seconds, Sequences, Steps, Strict

Gpu = Literal["B200", "GH200", "H200", "H100", "A100", "L40S", "L40", "L4", "A10G", "A40", "A6000", "RTX 4090", "V100"]
Parallel = Literal["ddp", "fsdp"]
Workers = Positive | Annotated[list[Positive], Field(min_length=2, max_length=2)]
Gpus = Annotated[float, Field(ge=0)]


class Own(Strict):
    """What stages of one kind take, where that differs from the rest; a field that is not given is as in `execution`.

    `{gpus_per_worker: 0.25}` for fine-tuning lets four fine-tunes share a GPU.
    """

    workers: Workers | None = None
    """how many share a stage of this kind: a number, or a range"""
    parallel: Parallel | None = None
    """each worker with the whole model (ddp), or with a part of it (fsdp)"""
    cpus_per_worker: Positive | None = None
    """CPUs, and threads, of each worker"""
    gpus_per_worker: Gpus | None = None
    """GPUs of each worker: whole ones, or for a stage of one worker a part of one"""
    micro_batch: Sequences | None = None
    """of one forward pass"""


class Shape(Strict):
    """What one stage takes: its workers, and what each of them has."""

    workers: Workers = 1
    """how many share a stage, and divide its batches: a number, or a range [fewest, most] of which as many work as the
    cluster has room for, more or fewer as nodes come and go"""
    parallel: Parallel = "ddp"
    """each worker with the whole model (ddp), or with a part of weights, gradients and optimizer (fsdp: FSDP2), for models
    that do not fit otherwise"""
    cpus_per_worker: Positive = 1
    """CPUs, and threads, of each worker"""
    gpus_per_worker: Gpus = 0.0
    """GPUs of each worker: whole ones, or for stages of one worker a part of one; 0 trains on CPUs"""

    @field_validator("workers")
    @classmethod
    def _rising(cls, workers: int | list[int]) -> int | list[int]:
        if isinstance(workers, list) and workers[0] >= workers[1]:
            raise ValueError(f"a range goes up, as [1, 8] does, got {workers}")
        return workers

    @model_validator(mode="after")
    def _gpus_can_be_given(self) -> "Shape":
        gpus = self.gpus_per_worker
        if gpus > 1 and gpus % 1:
            raise ValueError(f"gpus_per_worker {gpus:g}: more than one GPU is a whole number of them")
        if 0 < gpus < 1 and self.most_workers > 1:
            raise ValueError(f"gpus_per_worker {gpus:g}: a part of a GPU is for stages of one worker, got workers {self.workers}: NCCL takes no two of its workers on one GPU")  # fmt: skip
        return self

    @property
    def fewest_workers(self) -> int:
        return self.workers[0] if isinstance(self.workers, list) else self.workers

    @property
    def most_workers(self) -> int:
        return self.workers[1] if isinstance(self.workers, list) else self.workers


class Execution(Shape):
    """Where and how fast, never what: no field here can change a key. `workers` to `micro_batch` hold for stages of every
    kind; `pretrain`, `posttrain` and `finetune` may each ask for something else."""

    gpu: Gpu = "H100"
    """what `plan` reckons with until a stage was measured"""
    micro_batch: Sequences | None = None
    """of one forward pass; without it as many as fit on a GPU, on a CPU a worker's share of the batch; with dropout always 8"""
    checkpoint_seconds: Seconds = 300.0
    """how often a stage's state is saved: what a crash can cost"""
    checkpoint_steps: Steps | None = None
    """if given, also after every so many steps"""
    pretrain: Own | None = None
    """what pretraining takes, where that differs"""
    posttrain: Own | None = None
    """what post-training takes, where that differs"""
    finetune: Own | None = None
    """what fine-tuning takes, where that differs"""

    @model_validator(mode="after")
    def _kinds_can_be_placed(self) -> "Execution":
        problems = []
        for kind in KINDS:
            try:
                self.shape(kind)
            except ValidationError as error:
                problems += [f"{kind}: {item['msg'].removeprefix('Value error, ')}" for item in error.errors()]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def own(self, kind: Kind) -> Own:
        """What the spec says of one kind of stage alone."""
        found: Own | None = getattr(self, kind)
        return found or Own()

    def shape(self, kind: Kind) -> Shape:
        """What a stage of this kind takes.

        Raises:
            ValidationError: nothing has it.
        """
        asked = self.model_dump(include=set(Shape.model_fields))
        return Shape(**asked | self.own(kind).model_dump(include=set(Shape.model_fields), exclude_none=True))

    def micro_batch_of(self, kind: Kind) -> int | None:
        return self.own(kind).micro_batch or self.micro_batch

    @property
    def slots(self) -> dict[tuple[Kind, ...], Shape]:
        """Kinds of stages by what they take: those that take the same can follow one another in one slot."""
        kinds: list[tuple[Shape, list[Kind]]] = []
        for kind in KINDS:
            shape = self.shape(kind)
            same = next((of for other, of in kinds if other == shape), None)
            if same is None:
                kinds.append((shape, [kind]))
            else:
                same.append(kind)
        return {tuple(of): shape for shape, of in kinds}

    def field(self, kinds: tuple[Kind, ...]) -> str:
        """Where a spec says what these kinds take, for messages."""
        return next((f"execution.{kind}" for kind in kinds if getattr(self, kind)), "execution")
