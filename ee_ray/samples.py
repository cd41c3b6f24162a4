"""Take samples: how published stages go on with held-out text. On this machine's CPU; each stage once, for the store keeps it."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from ee_ray.data.pack import Packed, open_packed
from ee_ray.data.tokenizer import known
from ee_ray.data.tokens import Encoding
from ee_ray.errors import UserError
from ee_ray.export.folder import load_stage
from ee_ray.ledger import Ledger
from ee_ray.loss import token_losses
from ee_ray.report.answers import answers
from ee_ray.report.samples import FILE, shown, taken
from ee_ray.spec.data import ROLES
from ee_ray.sweep import Sweep

TEXTS = 2  # of each corpus
PROMPT, LENGTH = 96, 64  # tokens, at most, and at most half of a window each
END_MARK = "\u25aa"  # where a document ends


def decode(encoding: Encoding, tokens: NDArray[np.int64]) -> str:
    """Tokens as text; those that are only read (their complements) too. Bytes that are no UTF-8 are shown as such."""
    plain = np.where(tokens < 0, ~tokens, tokens)
    tokenizer = Tokenizer.from_file(encoding.path) if encoding.path else None
    parts = []
    for piece in np.split(plain, np.flatnonzero(plain == encoding.end) + 1):
        body = piece[piece != encoding.end]
        parts.append(tokenizer.decode(body.tolist(), skip_special_tokens=False) if tokenizer else bytes(body.tolist()).decode(errors="replace"))  # fmt: skip
    return END_MARK.join(parts)


def _windows(packed: Packed, heldout: int) -> tuple[NDArray[np.int64], int]:
    """Held-out windows of a corpus, cut to a prompt and what follows it, and the length of the prompt."""
    prompt = min(PROMPT, packed.sequence_length // 2)
    count = min(TEXTS, heldout)
    return packed.heldout(heldout)[np.arange(count) * heldout // count][:, : prompt + min(LENGTH, prompt)], prompt


@torch.inference_mode()
def _go_on(model: PreTrainedModel, windows: NDArray[np.int64], prompt: int) -> tuple[NDArray[np.int64], list[float]]:
    """The most probable tokens after each prompt, and the loss of the true ones, nats per token."""
    tokens = torch.from_numpy(windows)
    plain = torch.where(tokens < 0, ~tokens, tokens)
    losses = token_losses(model, plain)[:, prompt - 1 :].mean(dim=1)
    given = plain[:, :prompt]
    asked: dict[str, Any] = {"max_new_tokens": plain.shape[1] - prompt, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, "use_cache": True}  # fmt: skip
    said = model.generate(given, attention_mask=torch.ones_like(given), **asked)  # type: ignore[operator]
    return said[:, prompt:].numpy(), [round(float(loss), 4) for loss in losses]


def take_samples(sweep: Sweep, ledger: Ledger, most_parameters: float = float("inf")) -> int:
    """Samples of the stages that the report shows, and that have none yet; how many stages that were. A stage whose weights
    are gone, or which has more parameters than asked for, is left out.

    Raises:
        UserError: the corpora are not there.
    """
    kept, store, spec = taken(sweep), sweep.store, sweep.spec
    encoding = known(spec, sweep.tokenizer)
    packed = {role: pool for role in ROLES if (pool := open_packed(store.corpus(sweep.data[role])))}
    if encoding is None or len(packed) < len(ROLES):
        raise UserError(f"{sweep.path}: its corpora are no longer in {store.place}: ee-ray prepare brings them back")
    new = 0
    for each in shown(sweep, ledger, answers(sweep, ledger)):
        key, record = each.stage.key, ledger.records[each.stage.key]
        if key in kept["stages"] or not store.weights(key).exists() or record["parameters"] > most_parameters:
            continue
        kept["stages"][key] = {}
        model = load_stage(store, record, encoding.vocab_size).eval()  # type: ignore[no-untyped-call]
        for role, pool in packed.items():
            windows, prompt = _windows(pool, spec.data.heldout_windows)
            kept["texts"][role] = [{"prompt": decode(encoding, row[:prompt]), "truth": decode(encoding, row[prompt:])} for row in windows]  # fmt: skip
            said, losses = _go_on(model, windows, prompt)
            kept["stages"][key][role] = [{"text": decode(encoding, row), "loss": loss} for row, loss in zip(said, losses, strict=True)]  # fmt: skip
        new += 1
    if new:
        store.write_sweep(spec.name, FILE, kept)
    return new
