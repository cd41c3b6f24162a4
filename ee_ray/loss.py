"""Cross-entropy of the next token, without ever holding the logits of a whole batch.

fp32 logits over 49,152 tokens are four fifths of the memory that SmolLM2-135M trains with. So where they would be many, the
model's head is given a forward of its own while the model runs: it takes the last hidden states some tokens at a time,
and returns losses in the place of logits, with the gradients found on the way. All else stays the model's own forward, so
wrappers (DDP, FSDP, adapters) see what they always see. A model that does more to its logits than the head does
(soft-capping, scaling) is recognised by running it once, and keeps whole logits.
"""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

NO_LOSS = -100
# Logits held at a time, fixed because the shape of a product decides its last bits: 16 MB of fp32 on a CPU, and 1 GB
# on an accelerator; but not fewer tokens than make reading the head's weight worth while.
CHUNK_LOGITS = {"cpu": 1 << 22}
CHUNK_LOGITS_ELSEWHERE = 1 << 28
CHUNK_TOKENS_LEAST = 256

Forward = Callable[[Tensor], Tensor]


@torch.no_grad()
def separable_head(model: nn.Module) -> nn.Module | None:
    """The linear head whose output is what the model returns as logits; None if something happens to them after it."""
    causal = cast(Any, model)
    head = causal.get_output_embeddings()
    if not hasattr(head, "out_features"):
        return None
    seen: list[Tensor] = []
    hook = head.register_forward_hook(lambda module, inputs, output: seen.append(output))
    training = model.training
    model.eval()
    try:
        logits = causal(input_ids=torch.zeros((1, 2), dtype=torch.int64, device=head.weight.device)).logits
    finally:
        hook.remove()
        model.train(training)
    return head if len(seen) == 1 and seen[0] is logits else None


def tokens_at_a_time(head: nn.Module, device: torch.device) -> int:
    logits = CHUNK_LOGITS.get(device.type, CHUNK_LOGITS_ELSEWHERE)
    return int(max(CHUNK_TOKENS_LEAST, logits // cast(Any, head).out_features))


def token_losses(model: nn.Module, windows: Tensor, head: nn.Module | None = None) -> Tensor:
    """Cross-entropy in nats of each next token. windows: (n, length + 1) int64; returns (n, length) fp32.

    A token that is read but carries no loss is stored as its complement, ~t, and has loss 0.

    Args:
        head: the model's `separable_head`. With it, and where no gradient is asked for, logits are made in pieces.
    """
    inputs, targets = _split(windows)
    if head is None or torch.is_grad_enabled() or targets.numel() <= tokens_at_a_time(head, windows.device):
        logits = model(input_ids=inputs).logits
        return _cross_entropy(logits.flatten(0, 1), targets.flatten()).view(targets.shape)
    with _forward_of(head, partial(_in_pieces, targets=targets.flatten(), step=tokens_at_a_time(head, windows.device))):
        return cast(Tensor, model(input_ids=inputs).logits.view(targets.shape))


def summed_loss(model: nn.Module, windows: Tensor, head: nn.Module | None) -> Tensor:
    """The sum of `token_losses`, for training: a scalar whose gradient needs no logits. `model` may be wrapped."""
    inputs, targets = _split(windows)
    if head is None or targets.numel() <= tokens_at_a_time(head, windows.device):
        return token_losses(model, windows).sum()
    if windows.is_cuda and type(head) is nn.Linear and (fused := _liger()):
        act: Callable[[Forward, Tensor], Tensor] = partial(_fused, fused, head, targets.flatten())
    else:
        act = partial(_summed, head, targets.flatten(), tokens_at_a_time(head, windows.device))
    with _forward_of(head, act):
        return cast(Tensor, model(input_ids=inputs).logits)


def _split(windows: Tensor) -> tuple[Tensor, Tensor]:
    inputs, targets = windows[:, :-1], windows[:, 1:]
    return torch.where(inputs < 0, ~inputs, inputs), targets.masked_fill(targets < 0, NO_LOSS)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), targets, reduction="none", ignore_index=NO_LOSS)


@contextlib.contextmanager
def _forward_of(head: nn.Module, act: Callable[[Forward, Tensor], Tensor]) -> Iterator[None]:
    """While the block runs, the head answers `act(its own forward, hidden states)`."""
    own = head.__dict__.get("forward")
    head.forward = partial(act, head.forward)
    try:
        yield
    finally:
        del head.forward
        if own:
            head.forward = own


def _in_pieces(forward: Forward, hidden: Tensor, targets: Tensor, step: int) -> Tensor:
    flat, starts = hidden.flatten(0, -2), range(0, len(targets), step)
    return torch.cat([_cross_entropy(forward(flat[at : at + step]), targets[at : at + step]) for at in starts])


def _summed(head: nn.Module, targets: Tensor, step: int, forward: Forward, hidden: Tensor) -> Tensor:
    # Asked for here, inside the head's own call: sharded weights are whole only now.
    params = [param for param in head.parameters() if param.requires_grad]
    return cast(Tensor, _SummedCrossEntropy.apply(forward, targets, step, hidden, *params))  # type: ignore[no-untyped-call]


class _SummedCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies of `forward(hidden)`. The gradients are taken piece by piece with the loss and kept: as large
    as the hidden states and the head, instead of as large as the logits."""

    @staticmethod
    def forward(ctx: Any, forward: Forward, targets: Tensor, step: int, hidden: Tensor, *params: Tensor) -> Tensor:
        flat = hidden.detach().flatten(0, -2)
        total = torch.zeros((), device=hidden.device)
        of_hidden, of_params = torch.empty_like(flat), [torch.zeros_like(param) for param in params]
        for start in range(0, len(flat), step):
            piece = flat[start : start + step].requires_grad_()
            with torch.enable_grad():
                loss = _cross_entropy(forward(piece), targets[start : start + step]).sum()
            of_hidden[start : start + step], *found = torch.autograd.grad(loss, (piece, *params))
            for gradient, more in zip(of_params, found, strict=True):
                gradient += more
            total += loss.detach()
        ctx.gradients = [of_hidden.view(hidden.shape), *of_params]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        return (None, None, None, *(gradient.mul_(outer) for gradient in gradients))


@cache
def _liger() -> Callable[..., Tensor] | None:
    """Liger's fused head and loss, if the extra `gpu` is installed. It needs Triton, so it is imported on CUDA only."""
    if importlib.util.find_spec("liger_kernel") is None:
        return None
    functional = importlib.import_module("liger_kernel.transformers.functional")
    return cast(Callable[..., Tensor], functional.liger_fused_linear_cross_entropy)


def _fused(fused: Callable[..., Tensor], head: nn.Linear, targets: Tensor, forward: Forward, hidden: Tensor) -> Tensor:
    return fused(hidden.flatten(0, -2), head.weight, targets, bias=head.bias, ignore_index=NO_LOSS, reduction="sum")
