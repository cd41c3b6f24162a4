"""Models are transformers' own classes, built from a config; weights travel as full-precision safetensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_model, save_model
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ee_ray.errors import UserError


def build_config(fields: Mapping[str, Any], vocab_size: int, sequence_length: int) -> PretrainedConfig:
    """The transformers config of a sweep's `model:` fields.

    Raises:
        UserError: unknown model type or field, or values that the architecture refuses.
    """
    settings = {**fields, "vocab_size": vocab_size, "max_position_embeddings": sequence_length, "use_cache": False}
    model_type = settings.pop("model_type")
    try:
        known = AutoConfig.for_model(model_type)
        unknown = [name for name in fields if not hasattr(known, name)]
        if unknown:
            raise UserError(f"model: transformers' {model_type} config has no {', '.join(unknown)}")
        return AutoConfig.for_model(model_type, **settings)
    except (ValueError, TypeError, AttributeError, StrictDataclassError) as error:
        raise UserError(f"model: {' '.join(str(error).split())}") from None


def build_model(config: PretrainedConfig, seed: int) -> PreTrainedModel:
    """A freshly initialised model, the same weights for the same seed; the caller's random state is left alone.

    Raises:
        UserError: the config describes no causal model, or one whose shapes do not fit.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
            return model
    except (ValueError, RuntimeError) as error:
        raise UserError(f"model: cannot be built: {' '.join(str(error).split())}") from None


def save_weights(model: torch.nn.Module, path: Path) -> None:
    save_model(model, str(path))


def load_weights(model: torch.nn.Module, path: Path) -> None:
    load_model(model, path, strict=True)
