"""Take samples: how published stages go on with held-out text. On this machine's CPU; each stage once, for the store keeps it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
SMALL = 10_000_000  # parameters
END_MARK = "\u25aa"  # where a document ends


def decoder(encoding: Encoding) -> Callable[[NDArray[np.int64]], str]:
    """Tokens to text; those that are only read (their complements) too. Bytes that are no UTF-8 are shown as such."""
    tokenizer = Tokenizer.from_file(encoding.path) if encoding.path else None

    def words(tokens: NDArray[np.int64]) -> str:
        if tokenizer is None:
            return bytes(tokens.tolist()).decode(errors="replace")
        return str(tokenizer.decode(tokens.tolist(), skip_special_tokens=False))

    def decode(tokens: NDArray[np.int64]) -> str:
        plain = np.where(tokens < 0, ~tokens, tokens)
        documents = np.split(plain, np.flatnonzero(plain == encoding.end) + 1)
        return END_MARK.join(words(piece[piece != encoding.end]) for piece in documents)

    return decode


def _windows(packed: Packed, heldout: int) -> NDArray[np.int64]:
    """Held-out windows of a corpus, cut to a prompt and what follows it."""
    count = min(TEXTS, heldout)
    prompt = _prompt(packed.sequence_length)
    return packed.heldout(heldout)[np.arange(count) * heldout // count][:, : prompt + min(LENGTH, prompt)]


def _prompt(sequence_length: int) -> int:
    return min(PROMPT, sequence_length // 2)


@torch.inference_mode()
def _go_on(model: PreTrainedModel, windows: NDArray[np.int64], prompt: int) -> list[tuple[NDArray[np.int64], float]]:
    """After each prompt the most probable tokens, and the loss of the true ones, nats per token."""
    plain = torch.from_numpy(np.where(windows < 0, ~windows, windows))
    losses = token_losses(model, plain)[:, prompt - 1 :].mean(dim=1)
    given = plain[:, :prompt]
    asked: dict[str, Any] = {"max_new_tokens": plain.shape[1] - prompt, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, "use_cache": True}  # fmt: skip
    said = model.generate(given, attention_mask=torch.ones_like(given), **asked)  # type: ignore[operator]
    return list(zip(said[:, prompt:].numpy(), losses.tolist(), strict=True))


@contextmanager
def _few_threads(parameters: int) -> Iterator[None]:
    """One thread for a small model: several would wait for each other at every token, above all beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if parameters <= SMALL else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def take_samples(sweep: Sweep, ledger: Ledger, most_parameters: float = float("inf")) -> int:
    """Samples of the stages that the report shows, and that have none yet; how many stages that were. A stage whose weights
    are gone, or which has more parameters than asked for, is left out.

    Raises:
        UserError: the corpora are not there.
    """
    kept, store, heldout = taken(sweep), sweep.store, sweep.spec.data.heldout_windows
    records = {each.stage.key: ledger.records[each.stage.key] for each in shown(sweep, ledger, answers(sweep, ledger))}
    wanted = [r for key, r in records.items() if key not in kept["stages"] and r["parameters"] <= most_parameters and store.weights(key).exists()]  # fmt: skip
    if not wanted:
        return 0
    encoding = known(sweep.spec, sweep.tokenizer)
    packed = {role: pool for role in ROLES if (pool := open_packed(store.corpus(sweep.data[role])))}
    if encoding is None or len(packed) < len(ROLES):
        raise UserError(f"{sweep.path}: its corpora are no longer in {store.place}: ee-ray prepare brings them back")
    prompt, decode = _prompt(sweep.spec.sequence_length), decoder(encoding)
    windows = np.concatenate([_windows(pool, heldout) for pool in packed.values()])
    texts = [{"prompt": decode(row[:prompt]), "truth": decode(row[prompt:])} for row in windows]
    kept["texts"] = _by_role(texts)
    for record in wanted:
        model = load_stage(store, record, encoding.vocab_size).eval()  # type: ignore[no-untyped-call]
        with _few_threads(record["parameters"]):
            said = _go_on(model, windows, prompt)
        kept["stages"][record["key"]] = _by_role([{"text": decode(row), "loss": round(loss, 4)} for row, loss in said])
    store.write_sweep(sweep.spec.name, FILE, kept)
    return len(wanted)


def _by_role(items: list[Any]) -> dict[str, list[Any]]:
    """Items of all corpora, as many of each, by role."""
    count = len(items) // len(ROLES)
    return {role: items[number * count : (number + 1) * count] for number, role in enumerate(ROLES)}
