"""Tokenizers by what the spec says: what makes two the same, and how one comes into the store.

In the store a tokenizer is a folder: tokenizer.json, and encoding.json with its end of a document and its size.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ee_ray.data import sources
from ee_ray.data.shards import is_heldout
from ee_ray.data.tokens import BYTES, Encoding
from ee_ray.errors import UserError
from ee_ray.spec.sweep import SweepSpec
from ee_ray.spec.tokenizer import Tokenizer as Wanted

# Part of every fingerprint of a trained tokenizer: bump it when training gives other merges.
TRAIN_VERSION = 1
SAMPLE_BYTES = 16_000_000  # of text to train on, in equal parts of each corpus; 10 to 20 s on one core
END = "<|endoftext|>"


def _files(folder: Path, wanted: Wanted) -> dict[str, Path]:
    """The files of a local tokenizer: tokenizer.json, and tokenizer_config.json if there is one."""
    assert wanted.folder
    place = (folder / wanted.folder).resolve()
    named = {"tokenizer.json": place} if place.is_file() else {"tokenizer.json": place / "tokenizer.json"}
    if not named["tokenizer.json"].is_file():
        raise UserError(f"tokenizer.folder: {place}: holds no tokenizer.json (a relative path starts from the sweep file's folder)")  # fmt: skip
    config = named["tokenizer.json"].with_name("tokenizer_config.json")
    return named | ({config.name: config} if config.is_file() else {})


def _end(wanted: Wanted, files: Mapping[str, Path], where: str) -> str:
    """The token that ends a document: the spec's, or the eos token of tokenizer_config.json."""
    if wanted.end is not None:
        return wanted.end
    try:
        config = json.loads(files["tokenizer_config.json"].read_text()) if "tokenizer_config.json" in files else {}
        token = config.get("eos_token")
    except (ValueError, AttributeError):
        raise UserError(f"{where}: its tokenizer_config.json is not a JSON object") from None
    token = token.get("content") if isinstance(token, dict) else token
    if not isinstance(token, str):
        raise UserError(f"{where}: its tokenizer_config.json names no eos_token: set tokenizer.end to the token that ends a document")  # fmt: skip
    return token


def identity(spec: SweepSpec, folder: Path, documents: Mapping[str, Any]) -> Any:
    """What tokens depend on beside text; `documents` has each corpus's identity.

    Raises:
        UserError: a local tokenizer that is not there, or that names no end of a document.
    """
    wanted = spec.tokenizer
    if wanted.raw_bytes:
        return "bytes"
    if wanted.hub:
        return {"hub": wanted.hub, "revision": wanted.revision, "end": wanted.end}
    if wanted.train:
        return {
            "trained": {role: documents[role] for role in wanted.train.on},
            "vocab_size": wanted.train.vocab_size,
            "heldout_fraction": spec.data.heldout_fraction,
            "version": TRAIN_VERSION,
        }
    files = _files(folder, wanted)
    digest = hashlib.sha256(files["tokenizer.json"].read_bytes()).hexdigest()
    return {"sha256": digest, "end": _end(wanted, files, f"tokenizer.folder: {wanted.folder}")}


def known(spec: SweepSpec, place: Path) -> Encoding | None:
    """The tokenizer, if it is bytes or was brought into the store's folder `place`."""
    if spec.tokenizer.raw_bytes:
        return BYTES
    try:
        found = json.loads((place / "encoding.json").read_text())
    except FileNotFoundError:
        return None
    return Encoding(str(place / "tokenizer.json"), found["end"], found["vocab_size"])


def bring(spec: SweepSpec, folder: Path, place: Path) -> Encoding:
    """The tokenizer, after bringing it into `place` if it is not there: copied, fetched or trained.

    Raises:
        UserError: it cannot be fetched or read, or has no such end of a document.
    """
    if (encoding := known(spec, place)) is not None:
        return encoding
    tokenizer, end = _made(spec, folder)
    number = tokenizer.token_to_id(end)
    if number is None:
        raise UserError(f"tokenizer: '{end}' is not one of its tokens: set tokenizer.end to one that ends a document")
    size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1  # ids may have gaps
    draft = place.with_name(f"{place.name}.{uuid.uuid4().hex[:8]}.tmp")
    draft.mkdir(parents=True)
    try:
        tokenizer.save(str(draft / "tokenizer.json"))
        (draft / "encoding.json").write_text(json.dumps({"schema": 1, "end": number, "vocab_size": size}))
        os.rename(draft, place)
    except OSError:
        if not place.exists():  # else another process has brought the same one first
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Encoding(str(place / "tokenizer.json"), number, size)


def _made(spec: SweepSpec, folder: Path) -> tuple[Tokenizer, str]:
    """The tokenizer that the spec asks for, and its end of a document."""
    wanted = spec.tokenizer
    if wanted.train:
        return train(_sample(spec, folder), wanted.train.vocab_size), END
    if wanted.hub:
        assert wanted.revision
        where = f"tokenizer.hub: {wanted.hub}"
        names = ["tokenizer.json", "tokenizer_config.json"]
        files = import_module("ee_ray.data.hub").download(wanted.hub, wanted.revision, names)
        if "tokenizer.json" not in files:
            raise UserError(f"{where}: has no tokenizer.json at revision {wanted.revision}: choose a repository with a fast tokenizer")  # fmt: skip
    else:
        where, files = f"tokenizer.folder: {wanted.folder}", _files(folder, wanted)
    try:
        tokenizer = Tokenizer.from_file(str(files["tokenizer.json"]))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{where}: tokenizer.json cannot be read: {' '.join(str(error).split())}") from None
    return tokenizer, _end(wanted, files, where)


def train(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` tokens: the 256 bytes, END, and merges. The same for the same texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _sample(spec: SweepSpec, folder: Path) -> Iterator[str]:
    """The first training documents of each corpus; held-out text shapes nothing."""
    assert spec.tokenizer.train
    roles = spec.tokenizer.train.on
    for role in roles:
        taken = 0
        texts = (text for text, _, _ in sources.documents(getattr(spec.data, role), folder))
        seen = (text for text in texts if not is_heldout(text, spec.data.heldout_fraction))
        for text in seen:
            if taken >= SAMPLE_BYTES // len(roles):
                break
            yield text
            taken += len(text.encode())


def vocab_size(spec: SweepSpec, folder: Path, place: Path) -> int | None:
    """Tokens of the tokenizer, as far as it is here: a trained one's may turn out fewer; None for the hub's."""
    if (encoding := known(spec, place)) is not None:
        return encoding.vocab_size
    if spec.tokenizer.train:
        return spec.tokenizer.train.vocab_size
    if spec.tokenizer.hub:
        return None
    return max(_made(spec, folder)[0].get_vocab(with_added_tokens=True).values()) + 1
