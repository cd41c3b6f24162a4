"""Tokenizers as files that transformers loads, which cut text exactly as training did.

Training reads text as text (a mark such as <|endoftext|> in a document is only characters) and adds nothing to it; so do
these. What ends a document is their eos token.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from ee_ray.data.tokens import END_BYTE, Encoding

END = "<|endoftext|>"


def _letters() -> dict[int, str]:
    """The printable character that stands for each byte in byte-level models (GPT-2's table): the byte's own where it has
    one, and those from U+0100 on for the rest."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in own]
    return {byte: chr(byte) for byte in own} | {byte: chr(0x100 + number) for number, byte in enumerate(rest)}


def bytes_tokenizer() -> Tokenizer:
    """The bytes tokenizer as a byte-level model without merges: 256 tokens, ids are byte values.

    The end of a document is byte 0. Its token has a name of its own, and a byte 0 in text, unknown by that name, becomes
    the unknown token, which is the same one: the ids are those of training for every text.
    """
    vocab = {END if byte == END_BYTE else letter: byte for byte, letter in _letters().items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=END))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    return tokenizer


def _bare(path: str) -> Tokenizer:
    """The tokenizer of a file without what it adds to texts, shortens or fills up."""
    fields: dict[str, Any] = json.loads(Path(path).read_text())
    return Tokenizer.from_str(json.dumps({**fields, "post_processor": None, "truncation": None, "padding": None}))


def write_tokenizer(folder: Path, encoding: Encoding, longest: int) -> Tokenizer:
    """Write tokenizer.json and tokenizer_config.json; `longest` is the model's context in tokens."""
    tokenizer = bytes_tokenizer() if encoding.path is None else _bare(encoding.path)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": tokenizer.id_to_token(encoding.end),
        "model_max_length": longest,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
    return tokenizer
