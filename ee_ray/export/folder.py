"""Write a published stage as a folder that transformers loads: weights, config, tokenizer, card."""

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from ee_ray.data.pack import Packed, open_packed
from ee_ray.data.portable import write_tokenizer
from ee_ray.data.tokens import BYTES, Encoding
from ee_ray.errors import UserError
from ee_ray.export.card import Facts, card
from ee_ray.export.choice import Chosen, winner
from ee_ray.export.recipe import recipe
from ee_ray.identity import key_of
from ee_ray.ledger import Ledger
from ee_ray.model import build_config, build_model, load_weights
from ee_ray.report.summary import summarize, verdict_sentence
from ee_ray.spec.data import ROLES
from ee_ray.store import Store
from ee_ray.sweep import Sweep

# What an export writes, and so what one that overwrites removes first.
OURS = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json", "tokenizer_config.json", "README.md", "recipe.yaml")  # fmt: skip


def check_folder(folder: Path, overwrite: bool) -> None:
    """Raises UserError: the folder is a file, or holds something and is not to be overwritten."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file: name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise UserError(f"{folder}: is not empty: name another folder, or --overwrite what an export wrote there")


def _chain(store: Store, key: str) -> list[dict[str, Any]]:
    """Records from the first ancestor to the stage."""
    records: list[dict[str, Any]] = []
    at: str | None = key
    while at:
        record = store.record(at)
        if record is None:
            raise UserError(f"stage {at}: an ancestor of {key}, is not in {store.place}: ee-ray verify says what else")
        records.insert(0, record)
        at = record["parent"]
    return records


def _manifests(sweep: Sweep, chain: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The manifest of each corpus that the chain was trained or measured on, by role; sources of this sweep as it names them."""
    store = sweep.store
    used = {role: data for record in chain for role, data in record["payload"]["heldout"]}
    used |= {part["role"]: part["data"] for record in chain for part in record["payload"]["parts"]}
    found = {}
    for role in (role for role in ROLES if role in used):
        fingerprint = used[role]
        path = store.data(fingerprint) / "manifest.json"
        if not path.exists():
            raise UserError(f"data.{role}: {fingerprint} is no longer in {store.place}: ee-ray prepare brings it back")
        manifest = json.loads(path.read_text())
        mine = sweep.data[role] == fingerprint
        said = sweep.source(role).source if mine else json.dumps(manifest["identity"]["source"], sort_keys=True)
        found[role] = {**manifest, "fingerprint": fingerprint, "said": said}
    return found


def _encoding(store: Store, identity: Any, packed: Packed) -> Encoding:
    if identity == "bytes":
        return BYTES
    place = store.tokenizer(key_of({"tokenizer": identity}))
    try:
        end = json.loads((place / "encoding.json").read_text())["end"]
    except FileNotFoundError:
        raise UserError(
            f"tokenizer {place.name} is no longer in {store.place}: ee-ray prepare brings it back"
        ) from None
    return Encoding(str(place / "tokenizer.json"), end, packed.vocab_size)


def load_stage(store: Store, record: dict[str, Any], vocab_size: int) -> PreTrainedModel:
    """The model of a published stage, in full precision."""
    payload = record["payload"]
    fields = dict(payload["model"])
    checkpoint = fields.pop("checkpoint", None)
    folder = store.model(checkpoint) if checkpoint else None
    model = build_model(build_config(fields, vocab_size, payload["sequence_length"], folder), payload["seed"])
    load_weights(model, store.weights(record["key"]))
    return model


def _write_model(model: PreTrainedModel, end: int, folder: Path) -> None:
    """Training had no begin, padding or cache; whoever generates wants the cache, and an end at the end of a document."""
    model.config.use_cache = True
    model.config.eos_token_id = end
    if model.config.bos_token_id is not None and model.config.bos_token_id != end:
        model.config.bos_token_id = None
    model.generation_config = GenerationConfig.from_model_config(model.config)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)


def _later(sweep: Sweep, ledger: Ledger, key: str) -> list[dict[str, Any]]:
    """Rows of the ledger in which fine-tuning started from the stage."""
    upstream = {trial.point for trial in ledger.trials if trial.upstream.key == key}
    places = {(point.level / sweep.spec.search.ladder, point.seed, point.choice) for point in upstream}
    rows = [{str(name): value for name, value in row.items()} for row in ledger.rows.to_dict("records")]
    return [row for row in rows if (row["lambda"], row["seed"], row["choice"]) in places]


def export(sweep: Sweep, ledger: Ledger, chosen: Chosen, folder: Path, times: int, overwrite: bool = False) -> list[str]:  # fmt: skip
    """Write the chosen stage into `folder`, all of it or nothing; names of the files.

    `times`: how much larger the budgets of recipe.yaml are, which is written where the sweep has a lambda*.

    Raises:
        UserError: the folder is in use, the stage is damaged, or its data or tokenizer left the store.
    """
    check_folder(folder, overwrite)
    store = sweep.store
    if damage := store.damage(chosen.key):
        raise UserError(damage)
    chain = _chain(store, chosen.key)
    data = _manifests(sweep, chain)
    first = chain[0]["payload"]["parts"][0]
    packed = open_packed(store.data(first["data"]))
    assert packed is not None
    tokenizer = data[first["role"]]["identity"]["tokenizer"]
    encoding = _encoding(store, tokenizer, packed)
    verdict, later = verdict_sentence(summarize(sweep, ledger)), _later(sweep, ledger, chosen.key)
    facts = Facts(sweep.spec.name, chosen, verdict, chain, data, later, tokenizer, encoding.end)
    best = winner(sweep, ledger)
    draft = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        draft.mkdir(parents=True)
        _write_model(load_stage(store, chain[-1], packed.vocab_size), encoding.end, draft)
        write_tokenizer(draft, encoding, chain[-1]["payload"]["sequence_length"])
        (draft / "README.md").write_text(card(facts))
        if best:
            (draft / "recipe.yaml").write_text(recipe(sweep, ledger, best, folder, times))
        names = sorted(path.name for path in draft.iterdir())
        _move(draft, folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return names


def _move(draft: Path, folder: Path) -> None:
    if not folder.exists() or not any(folder.iterdir()):
        if folder.exists():
            folder.rmdir()
        os.rename(draft, folder)
        return
    for pattern in OURS:
        for old in folder.glob(pattern):
            old.unlink()
    for path in draft.iterdir():
        os.replace(path, folder / path.name)
