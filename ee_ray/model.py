"""Models are transformers' own classes, built from a config or a checkpoint; weights travel as full-precision safetensors."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_model, save_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ee_ray.errors import UserError

EMBEDDINGS = ("embed_tokens.weight", "lm_head.weight")
# Fields of configs by which a forward pass draws random numbers while it trains, and those of heads that no causal model has.
RANDOM, OTHER_HEADS = re.compile("drop|jitter"), ("classifier_dropout", "summary_")


def build_config(
    fields: Mapping[str, Any], vocab_size: int, sequence_length: int, checkpoint: Path | None = None
) -> PretrainedConfig:
    """The transformers config of a sweep's `model:` fields, or of a checkpoint with `fields` changed.

    Raises:
        UserError: unknown model type or field, values that the architecture refuses, or a checkpoint with a vocabulary
            smaller than the tokenizer's.
    """
    settings = dict(fields)
    try:
        if checkpoint:
            config: PretrainedConfig = AutoConfig.from_pretrained(
                checkpoint, trust_remote_code=False, use_cache=False, **settings
            )
            if config.vocab_size < vocab_size:
                raise UserError(f"model.checkpoint: its vocabulary of {config.vocab_size} is smaller than the tokenizer's {vocab_size}: use the checkpoint's own tokenizer")  # fmt: skip
            return config
        model_type = settings.pop("model_type")
        known = AutoConfig.for_model(model_type)
        unknown = [name for name in settings if not hasattr(known, name)]
        if unknown:
            raise UserError(f"model: transformers' {model_type} config has no {', '.join(unknown)}")
        sizes = {"vocab_size": vocab_size, "max_position_embeddings": sequence_length, "use_cache": False}
        return AutoConfig.for_model(model_type, **settings, **sizes)
    except (ValueError, TypeError, AttributeError, OSError, StrictDataclassError) as error:
        raise UserError(f"model: {' '.join(str(error).split())}") from None


def refuse_randomness(config: PretrainedConfig, checkpoint: str | None) -> None:
    """What a config itself would draw comes from one stream for all that a worker does, so that losses would depend on
    micro-batches, workers and interruptions, under one and the same key. (train.py draws the spec's own dropout by step.)

    checkpoint: the folder that the config came from, if it did.

    Raises:
        UserError: with every field that is not zero.
    """
    where = f"model.checkpoint: {checkpoint}/config.json: " if checkpoint else "model."
    cure = "there, in a copy" if checkpoint else "(dropout while stage 2 trains is stages.posttrain.dropout)"
    drawn = _random_fields(config.to_dict())
    if drawn:
        raise UserError(f"{where}{name} is {value:g}: it would make losses depend on micro-batches and workers: set it to 0.0 {cure}" for name, value in drawn.items())  # fmt: skip


def _random_fields(fields: Mapping[str, Any], where: str = "") -> dict[str, float]:
    """Those that are not zero, by dotted name."""
    found: dict[str, float] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            found |= _random_fields(value, f"{where}{name}.")
        elif (
            RANDOM.search(str(name)) and not str(name).startswith(OTHER_HEADS) and type(value) in (int, float) and value
        ):
            found[f"{where}{name}"] = value
    return found


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


def load_checkpoint(folder: Path, config: PretrainedConfig) -> PreTrainedModel:
    """The model of a checkpoint folder, in full precision. Only safetensors are read, never pickles, and no code."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, use_safetensors=True, local_files_only=True, trust_remote_code=False
    )
    return model


def save_weights(model: nn.Module, path: Path) -> None:
    save_model(model, str(path))


def load_weights(model: PreTrainedModel, path: Path) -> None:
    """Read `path` into the model. Of an embedding and a head that were tied one is on disk, and both start from it.

    Raises:
        ValueError: a tensor is missing or unknown.
    """
    missing, unexpected = map(set, load_model(model, path, strict=False))
    names = {name: param for name, param in model.named_parameters() if name.endswith(EMBEDDINGS)}
    if len(missing) == 1 and len(names) == 2 and missing < names.keys() and not unexpected:
        (gone,), (there,) = missing, names.keys() - missing
        with torch.no_grad():
            names[gone].copy_(names[there])
    elif missing or unexpected:
        raise ValueError(f"{path}: missing {sorted(missing)}, unknown {sorted(unexpected)}")
