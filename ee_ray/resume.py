"""A stage's state half-way, so that a killed stage goes on as if nothing had happened: written whole, read only if whole.

    <folder>/00000123/   after step 123
        state.safetensors    model.*, optimizer moments by parameter name, best.* where early stopping keeps them
        state.json           step, curve, what early stopping knows, and the hash of the tensors

Random states need no saving: the order of windows is a function of the step, and masks of dropout are drawn anew from
(seed, step) in every step (train.py).
"""

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ee_ray.disk import STATES_KEPT, sha256
from ee_ray.world import laid_out_as, whole

TENSORS, FACTS = "state.safetensors", "state.json"
STEP = "step"
MOMENTS = ("exp_avg", "exp_avg_sq")
SCHEMA = 2  # of a state; those of another are not continued


def optimizer_state(model: nn.Module, optim: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's moments and step counts, whole, on the CPU, as `<moment>.<parameter>`: free of the optimizer's numbering."""
    return {
        f"{moment}.{name}": whole(optim.state[param][moment].detach()).cpu().clone()
        for name, param in model.named_parameters()
        if param in optim.state
        for moment in (*MOMENTS, STEP)
    }


def set_optimizer_state(model: nn.Module, optim: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Raises:
    KeyError: a parameter that is trained has no state.
    """
    for name, param in model.named_parameters():
        if param.requires_grad:
            moments = {moment: laid_out_as(state[f"{moment}.{name}"], param) for moment in MOMENTS}
            optim.state[param] = {**moments, STEP: state[f"{STEP}.{name}"].to(param.device)}


def write_state(folder: Path, step: int, tensors: dict[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write the state after `step` under `folder`, whole or not at all, and drop all but the newest STATES_KEPT."""
    draft = folder / f".{step:08d}.{uuid.uuid4().hex[:8]}.tmp"
    draft.mkdir(parents=True)
    try:
        save_file(tensors, draft / TENSORS)
        (draft / FACTS).write_text(
            json.dumps({**facts, "schema": SCHEMA, "step": step, "sha256": sha256(draft / TENSORS)})
        )
        os.rename(draft, folder / f"{step:08d}")
    except OSError:
        if not (folder / f"{step:08d}").exists():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    for old in _states(folder)[STATES_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def _states(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted(folder.glob("[0-9]*"), reverse=True) if folder.is_dir() else []


def newest_state(folder: Path) -> int:
    """The step of the newest state that is whole; 0 if there is none."""
    return next((int(state.name) for state in _states(folder) if _is_whole(state)), 0)


def _is_whole(state: Path) -> bool:
    try:
        facts = json.loads((state / FACTS).read_text())
        return bool(facts["schema"] == SCHEMA and facts["sha256"] == sha256(state / TENSORS))
    except (OSError, ValueError, KeyError):
        return False


def read_state(folder: Path, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and facts of the state after `step`."""
    state = folder / f"{step:08d}"
    return load_file(state / TENSORS), json.loads((state / FACTS).read_text())
