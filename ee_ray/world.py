"""Where a worker stands among its peers, and how a model is spread over them: replicated (DDP) or sharded (FSDP2).

Neither changes what is computed, but for the order in which gradients are added. What is written (weights, moments) is
whole tensors by parameter name whatever the layout, so what one layout wrote another reads.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

Parallel = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class World:
    """This worker's place: rank of size, its device, and how the model is spread. More than one need a process group."""

    device: torch.device
    rank: int = 0
    size: int = 1
    parallel: Parallel = "ddp"

    @property
    def is_sharded(self) -> bool:
        """Parameters are in pieces: each forward pass and each look at a whole tensor is an act of all workers."""
        return self.size > 1 and self.parallel == "fsdp"

    def spread(self, model: nn.Module) -> nn.Module:
        """The model as this worker trains it, gradients averaged over workers. With FSDP `model` itself is changed."""
        if self.size == 1:
            return model
        if self.is_sharded:
            _shard(model, self.device, self.size)
            return model
        return DistributedDataParallel(model, device_ids=[self.device] if self.device.type == "cuda" else None)


def _shard(model: nn.Module, device: torch.device, size: int) -> None:
    """Cut every parameter along its first dimension. One unit for each block that transformers never splits, and one for
    the rest, so that an embedding and a head that are tied stay together."""
    mesh = init_device_mesh(device.type, (size,))
    blocks = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    for module in list(model.modules()):
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """A parameter, moment or norm in one piece; where it is sharded, every worker must ask."""
    full: Any = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full  # type: ignore[no-any-return]


def laid_out_as(tensor: Tensor, param: Tensor) -> Tensor:
    """A whole tensor, equal on every worker, in the layout and on the device of `param`: the reverse of `whole`."""
    here = tensor.detach().to(param.device)
    if isinstance(param, DTensor):
        return distribute_tensor(here, param.device_mesh, param.placements, src_data_rank=None)
    return here
