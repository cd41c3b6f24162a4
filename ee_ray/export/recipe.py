"""The winning recipe as a sweep file for a larger budget: its lambda against both extremes, and nothing else to search."""

import os
from pathlib import Path
from typing import Any

import yaml

from ee_ray.ledger import Ledger
from ee_ray.plan import Trial
from ee_ray.spec.data import ROLES
from ee_ray.spec.stages import KINDS, Stages
from ee_ray.spec.sweep import SweepSpec
from ee_ray.sweep import Sweep

STOPS = ("max_tokens", "max_hours", "max_gpu_hours", "choices")


def _moved(path: str, start: Path, folder: Path) -> str:
    """A path relative to `start`, relative to `folder` instead; absolute ones and buckets stay."""
    if "://" in path or os.path.isabs(path):
        return path
    return os.path.relpath(start / path, folder)


def _move_paths(fields: dict[str, Any], start: Path, folder: Path) -> None:
    for role in ROLES:
        kind, _, rest = fields["data"][role]["source"].partition(":")
        if kind == "file":
            fields["data"][role]["source"] = f"file:{_moved(rest, start, folder)}"
    for part, name in (("tokenizer", "folder"), ("model", "checkpoint")):
        place = fields.get(part)
        if isinstance(place, dict) and isinstance(place.get(name), str):
            place[name] = _moved(place[name], start, folder)


def _enlarged(fields: dict[str, Any], times: int) -> None:
    for stage in KINDS:
        fields["stages"][stage]["tokens"] *= times
    for role in ROLES:
        if "size" in fields["data"][role]:
            fields["data"][role]["size"] *= times


def _narrowed(spec: SweepSpec, level: int, choice: int) -> dict[str, Any]:
    """The fields of the sweep with one choice made and lambda at 0, `level` and 1 only."""
    chosen = spec.chosen(choice)
    fields = chosen.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    # `chosen` builds its stages from whole values: what is written is what differs from the defaults.
    fields["stages"] = Stages.model_validate(chosen.stages.model_dump()).model_dump(mode="json", exclude_defaults=True)
    steps = sorted({0, level, spec.search.ladder})
    search = {name: value for name, value in fields.get("search", {}).items() if name not in STOPS}
    seeds = spec.search.seeds[: spec.search.anchor_seeds]
    anchors = [step / spec.search.ladder for step in steps]
    fields["search"] = search | {"ladder": spec.search.ladder, "anchors": anchors, "max_trials": len(anchors) * len(seeds)}  # fmt: skip
    return fields


def recipe(sweep: Sweep, ledger: Ledger, trial: Trial, folder: Path, times: int) -> str:
    """A sweep file for `folder`: the trial's lambda and choice, every budget `times` as large, the controls 0 and 1 beside it."""
    spec = sweep.spec
    fields = _narrowed(spec, trial.point.level, trial.point.choice)
    fields["name"] = f"{spec.name[:70]}-x{times}"
    _enlarged(fields, times)
    _move_paths(fields, sweep.folder, folder.resolve())
    level = trial.point.level / spec.search.ladder
    head = (
        f"# The recipe that won the sweep {spec.name}, lambda = {level:g}, at {times} times its budgets of tokens, with the\n"
        f"# controls 0 and 1 beside it: whether lambda* stays where it was at a larger budget is what running this will tell.\n"
        f"# Before: ee-ray plan; sources of text may be smaller than these budgets, which then means several epochs.\n"
        f"# Paths start from this file's folder. Budgets of D_post must stay multiples of {spec.sequence_length * spec.search.ladder} tokens.\n"
    )
    return head + yaml.safe_dump(fields, sort_keys=False, width=110)
