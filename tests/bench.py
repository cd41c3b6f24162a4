"""Single stages on the tiny sweep's data, and small models, for tests of training."""

import torch

from ee_ray.board import Order
from ee_ray.model import build_config, build_model
from ee_ray.plan import Point, build_trial
from ee_ray.stage import run_stage
from ee_ray.sweep import open_sweep, prepare
from ee_ray.world import World

CPU = World(torch.device("cpu"))
NO_DROPOUT = {"embedding": 0.0, "attention": 0.0, "residual": 0.0, "mlp": 0.0}
LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "targets": ["o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]}


class Bench:
    """A store with the tiny sweep's data, on which single stages are run."""

    def __init__(self, write, **changes):
        self.path = write(**changes)
        self.sweep = open_sweep(self.path, self.path.parent / "store")
        prepare(self.sweep, lambda role, done: None)
        self.store = self.sweep.store

    def trial(self, level: int = 2, seed: int = 0, choice: int = 0):
        return build_trial(self.sweep.spec, self.sweep.data, Point(level, seed, choice))

    def run(self, stage, world: World = CPU, micro_batch: int | None = None, report=lambda tokens: None, every: float = 1e9, steps: int | None = None):  # fmt: skip
        run_stage(self.store, Order(stage, "tiny", micro_batch, every, steps), world, report)
        return self.store.record(stage.key)

    def run_all(self, stages):
        return [self.run(stage) for stage in stages]

    def weights(self, stage) -> bytes:
        return self.store.weights(stage.key).read_bytes()


def small(**fields):
    base = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}  # fmt: skip
    return build_model(build_config({**base, **fields}, 256, 32), 0)
