"""TensorBoard event files, written once when a stage is published, and the folder in which people find a sweep's stages.

    stages/<key>/events.out.tfevents.stage          the curve, published and hashed with the stage
    sweeps/<name>/tensorboard/<recipe>/<stage>-<key> a link to stages/<key>: `tensorboard --logdir` is pointed here

A stage belongs to every recipe that it is part of, and to every sweep; its key says nothing to a person. Hence links.
"""

import math
import os
from collections.abc import Container, Iterable, Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from ee_ray.metrics import Curve
from ee_ray.plan import Point, Trial
from ee_ray.store import Store

EVENTS = "events.out.tfevents.stage"  # TensorBoard knows event files by "tfevents" in their names
KEY_DIGITS = 8
TAGS = {
    "loss": "loss/train", "validation": "loss/early_stopping",
    "heldout_pre": "heldout/pre", "heldout_post": "heldout/post", "heldout_ft": "heldout/ft",
    "learning_rate": "optimizer/learning_rate", "grad_norm": "optimizer/grad_norm", "tokens": "progress/tokens",
    "tokens_per_s": "speed/tokens_per_s", "peak_share": "speed/share_of_peak", "memory": "speed/memory_bytes",
}  # fmt: skip


def write_events(path: Path, curve: Curve, losses: Mapping[str, float], steps: int, finished: float) -> None:
    """The curve by step, then the held-out losses of the weights that are handed on, which those of step `steps` were.

    Args:
        finished: seconds since the epoch when training ended; points stand as long before as the curve says.
    """
    with path.open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=finished - curve.seconds[-1], file_version="brain.Event:2").SerializeToString())
        for number, step in enumerate(curve.step):
            row = {tag: getattr(curve, name)[number] for name, tag in TAGS.items()}
            _write(writer, step, finished - curve.seconds[-1] + curve.seconds[number], row)
        _write(writer, steps, finished, {f"heldout/{role}": loss for role, loss in losses.items()})


def _write(writer: RecordWriter, step: int, at: float, row: Mapping[str, float]) -> None:
    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in row.items() if not math.isnan(value)]
    writer.write(Event(wall_time=at, step=step, summary=Summary(value=values)).SerializeToString())


def recipe_name(point: Point, ladder: int, choices: int) -> str:
    """What folders, processes and trackers call a recipe of one seed; names sort by lambda."""
    choice = f"-choice{point.choice:02d}" if choices > 1 else ""
    return f"lambda{point.level / ladder:.4f}-seed{point.seed}{choice}"


def stage_names(trial: Trial) -> dict[str, str]:
    """What each stage of a trial is called, by key: 1-pretrain, 2-posttrain, 3-finetune at a rate."""
    chain = trial.pretrains
    parts = [f"1-pretrain{f'.{number}' if len(chain) > 1 else ''}" for number in range(1, len(chain) + 1)]
    named = dict(zip((stage.key for stage in chain), parts, strict=True))
    if trial.posttrain:
        named[trial.posttrain.key] = "2-posttrain"
    return named | {stage.key: f"3-finetune-lr{rate:g}" for rate, stage in trial.finetunes}


def link_runs(
    store: Store, sweep: str, trials: Iterable[Trial], published: Container[str], ladder: int, choices: int
) -> Path:
    """Link what is `published` of `trials` under the sweep's TensorBoard folder; returns that folder."""
    folder = store.sweep(sweep) / "tensorboard"
    for trial in trials:
        here = folder / recipe_name(trial.point, ladder, choices)
        for key, name in stage_names(trial).items():
            link = here / f"{name}-{key[:KEY_DIGITS]}"
            if key in published and not link.is_symlink() and store.file(key, EVENTS).exists():
                here.mkdir(parents=True, exist_ok=True)
                _link(link, Path(os.path.relpath(store.stage(key), here)))
    return folder


def unlink_removed(store: Store, sweep: str) -> None:
    """Take away the links to stages that were removed from the store."""
    for link in (store.sweep(sweep) / "tensorboard").glob("*/*"):
        if not link.exists():
            link.unlink(missing_ok=True)


def _link(link: Path, target: Path) -> None:
    try:
        link.symlink_to(target, target_is_directory=True)
    except FileExistsError:
        return  # another run of the sweep was first
