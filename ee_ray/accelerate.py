"""What a stage does to use an accelerator well: blocks compiled where that pays, micro-batches as large as memory allows."""

import torch
from torch import Tensor, nn

from ee_ray.loss import summed_loss

# Compiling a block takes about half a minute; this is a minute and a half of an H100 at a third of its peak.
COMPILE_FLOPS = 3e16
RESERVE = 0.1  # of memory: fragments, and what libraries take


def compiling_pays(device: torch.device, parameters: int, tokens: int, has_masks: bool) -> bool:
    """A function of the stage and the kind of device alone, so that every worker and every retry decides the same.

    Compiled code draws other masks of dropout than eager code, so stages with masks stay eager.
    """
    return device.type == "cuda" and not has_masks and 6.0 * parameters * tokens >= COMPILE_FLOPS


def compile_blocks(model: nn.Module) -> int:
    """Compile each block of a transformer in place: one compilation serves them all. Names and weights stay.

    A block that cannot be compiled runs as it is, with torch's own warning. Returns the number of blocks.
    """
    torch._dynamo.config.suppress_errors = True
    kinds = getattr(model, "_no_split_modules", None) or ()
    blocks = [module for module in model.modules() if type(module).__name__ in kinds]
    for block in blocks:
        block.compile(dynamic=False)
    return len(blocks)


def largest(one: int, two: int, capacity: int, most: int) -> int:
    """Sequences that fit: the largest power of two, at most `most`, whose peak is within `capacity`, where one sequence
    peaks at `one` bytes and two at `two`, and memory grows in a line. At least 1."""
    each = max(two - one, 1)
    fits = 1
    while fits * 2 <= most and one + each * (fits * 2 - 1) <= capacity:
        fits *= 2
    return most if fits * 2 > most and one + each * (most - 1) <= capacity else fits


def micro_batch_that_fits(model: nn.Module, head: nn.Module | None, length: int, precision: str, most: int) -> int:
    """Measured on the model's CUDA device by training steps of one and of two sequences, whose gradients are dropped."""
    device = next(model.parameters()).device
    trained = sum(param.numel() * 4 for param in model.parameters() if param.requires_grad)
    free, _ = torch.cuda.mem_get_info(device)
    capacity = int((free + torch.cuda.memory_reserved(device)) * (1 - RESERVE))
    # AdamW's two moments come with the first step, and many workers reduce gradients in buckets as large as they are.
    return largest(_peak(model, head, length, precision, 1), _peak(model, head, length, precision, 2), capacity - 3 * trained, most)  # fmt: skip


def _peak(model: nn.Module, head: nn.Module | None, length: int, precision: str, sequences: int) -> int:
    device = next(model.parameters()).device
    torch.cuda.reset_peak_memory_stats(device)
    windows: Tensor = torch.zeros((sequences, length + 1), dtype=torch.int64, device=device)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        loss = summed_loss(model, windows, head)
    loss.backward()  # type: ignore[no-untyped-call]
    model.zero_grad(set_to_none=True)
    return torch.cuda.max_memory_allocated(device)
