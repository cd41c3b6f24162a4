"""A model that somebody already has: a folder that transformers saved, known by its content and kept in the store."""

import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from pyarrow.fs import LocalFileSystem

from ee_ray.data.digests import sha256
from ee_ray.data.files import File
from ee_ray.identity import key_of

CONFIG = "config.json"


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _file(path: Path) -> File:
    facts = path.stat()
    return File(LocalFileSystem(), str(path.resolve()), str(path), facts.st_size, facts.st_mtime_ns)


def check(folder: Path) -> str | None:
    """What is wrong with the folder as far as a look at its files tells, or None."""
    if not folder.is_dir():
        return f"{folder}: no such folder (a relative path starts from the sweep file's folder)"
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError) as error:
        return f"{folder}: {CONFIG} cannot be read: {error}"
    if not isinstance(config, dict) or "model_type" not in config:
        return f"{folder / CONFIG}: has no model_type: is it a model that transformers saved?"
    if not _weights(folder):
        return f"{folder}: has no *.safetensors; pickled weights are not loaded: save it with save_pretrained()"
    if "auto_map" in config:
        return (
            f"{folder / CONFIG}: brings code of its own (auto_map), which is not run: use a model that transformers has"
        )
    return _misled(folder)


def _misled(folder: Path) -> str | None:
    """An index that names files other than those beside it."""
    names = {path.name for path in _weights(folder)}
    for index in folder.glob("*.safetensors.index.json"):
        try:
            named = set(json.loads(index.read_text())["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{index}: cannot be read: {error!r}"
        if foreign := sorted(named - names):
            return f"{index}: names {foreign[0]}, which is not a file of weights beside it"
    return None


def fingerprint(folder: Path, sha256: Callable[[File], str] = sha256) -> str:
    """16 hex digits for the config and every file of weights, hashed by `sha256`."""
    hashes = {path.name: sha256(_file(path)) for path in _weights(folder)}
    return key_of({"config": json.loads((folder / CONFIG).read_text()), "weights": hashes})


def adopt(folder: Path, place: Path) -> None:
    """Copy config and weights to the store's `place`, whole or not at all: every worker reads them there."""
    if place.exists():
        return
    draft = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.tmp")
    draft.mkdir(parents=True)
    try:
        for path in [folder / CONFIG, *_weights(folder), *folder.glob("*.safetensors.index.json")]:
            shutil.copyfile(path, draft / path.name)
        os.rename(draft, place)
    except OSError:
        if not place.exists():  # else another process was first
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def size(folder: Path) -> int:
    """Bytes of weights."""
    return sum(path.stat().st_size for path in _weights(folder))
