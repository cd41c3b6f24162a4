"""What is done to a model while stage 2 trains: dropout where the paper has it, low-rank adapters (paper, 4.4 and table 9)."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from ee_ray.errors import UserError

# The last projection of each block, by the names of Llama and its kin: what leaves it is added to the residual stream.
ATTENTION_OUT, MLP_OUT = "o_proj", "down_proj"
Module = TypeVar("Module", bound=nn.Module)


def adapt(model: PreTrainedModel, dropout: Mapping[str, float] | None, lora: Mapping[str, Any] | None) -> nn.Module:
    """The model as stage 2 trains it. Adapters come first, so that dropout acts on what they add as well.

    Raises:
        UserError: the architecture has no module by a name that is needed.
    """
    trained: nn.Module = _with_lora(model, lora) if lora else model
    if dropout:
        _add_dropout(trained, dropout)
    return trained


def merged(trained: nn.Module) -> nn.Module:
    """The plain model again, adapters added into its weights."""
    return trained.merge_and_unload() if isinstance(trained, PeftModel) else trained


def _with_lora(model: PreTrainedModel, lora: Mapping[str, Any]) -> nn.Module:
    config = LoraConfig(
        r=lora["rank"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=list(lora["targets"]),
        task_type="CAUSAL_LM",
    )
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    if lost := [target for target in lora["targets"] if target not in names]:
        raise UserError(f"stages.posttrain.lora.targets: this model has no {', '.join(lost)}")
    return get_peft_model(model, config)


def _named(model: nn.Module, *names: str) -> list[nn.Module]:
    return [module for name, module in model.named_modules() if name.rsplit(".", 1)[-1] in names]


def _add_dropout(model: nn.Module, dropout: Mapping[str, float]) -> None:
    embedding = [model.get_input_embeddings()]  # type: ignore[operator]
    _drop_output(embedding, dropout["embedding"], "embedding")
    _drop_output(_named(model, ATTENTION_OUT, MLP_OUT), dropout["residual"], "residual")
    _drop_input(_named(model, MLP_OUT), dropout["mlp"], "mlp")
    if rate := dropout["attention"]:
        blocks = [module for module in model.modules() if hasattr(module, "attention_dropout")]
        _there(blocks, "attention")
        for block in blocks:  # read at each forward pass, and only in training
            block.attention_dropout = rate  # type: ignore[assignment]


def _there(modules: list[nn.Module], kind: str) -> None:
    if not modules:
        raise UserError(
            f"stages.posttrain.dropout.{kind}: this architecture names no such place (Llama and its kin do)"
        )


def _drop_output(modules: list[nn.Module], rate: float, kind: str) -> None:
    if not rate:
        return
    _there(modules, kind)
    for module in modules:
        drop = _child(module, "output_dropout", nn.Dropout(rate))
        module.register_forward_hook(_after(drop))


def _drop_input(modules: list[nn.Module], rate: float, kind: str) -> None:
    if not rate:
        return
    _there(modules, kind)
    for module in modules:
        drop = _child(module, "input_dropout", nn.Dropout(rate))
        module.register_forward_pre_hook(_before(drop))


def _child(module: nn.Module, name: str, drop: Module) -> Module:
    """A real submodule, so that train() and eval() reach it; it has no parameters, so the checkpoint stays the same."""
    module.add_module(name, drop)
    return drop


def _after(drop: nn.Dropout) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return torch.as_tensor(drop(output))

    return hook


def _before(drop: nn.Dropout) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (drop(inputs[0]), *inputs[1:])

    return hook
