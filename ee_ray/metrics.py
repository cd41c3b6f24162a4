"""The curve of a stage's training, as metrics.parquet has it. Imports no torch."""

import math
from dataclasses import dataclass, field


@dataclass
class Curve:
    """One list a column; loss in nats, NaN where nobody looked.

    loss:       of this step's global batch.
    validation: what early stopping watches.
    heldout_*:  of the weights after this step, on the windows that the record's losses are measured on.
    seconds:    since the stage began, evaluation and what was trained before an interruption included.
    tokens_per_s: since the point before, evaluation left out.
    peak_share: of that, as a share of the workers' bf16 peak; NaN where the device's is not known.
    memory:     bytes, the most since the stage began: of rank 0's GPU, or on a CPU of its process since it began.
    """

    step: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    heldout_pre: list[float] = field(default_factory=list)
    heldout_post: list[float] = field(default_factory=list)
    heldout_ft: list[float] = field(default_factory=list)
    tokens_per_s: list[float] = field(default_factory=list)
    peak_share: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)

    def add(self, **point: float) -> None:
        """One value for each column; NaN for those that are left out."""
        for name, column in vars(self).items():
            column.append(point.get(name, math.nan))
