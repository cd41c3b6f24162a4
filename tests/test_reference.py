"""The reference of the spec is what the types say, and the schema for editors takes every sweep and refuses what is wrong."""

import json

import pytest
import yaml
from conftest import ROOT, tiny
from jsonschema import Draft202012Validator

from ee_ray.spec.load import _Loader
from ee_ray.spec.reference import PAGE, SCHEMA, write

SWEEPS = sorted((ROOT / "sweeps").rglob("*.yaml"))
VALIDATOR = Draft202012Validator(json.loads((ROOT / "docs" / SCHEMA).read_text()))


def test_page_and_schema_are_up_to_date(tmp_path):
    write(tmp_path)
    for name in (PAGE, SCHEMA):
        assert (tmp_path / name).read_text() == (ROOT / "docs" / name).read_text(), (
            f"docs/{name} is stale: python -m ee_ray.spec.reference docs"
        )


def test_the_schema_is_one():
    Draft202012Validator.check_schema(VALIDATOR.schema)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_editors_take_every_sweep_of_the_project_and_find_the_schema(path):
    VALIDATOR.validate(yaml.load(path.read_text(), _Loader))
    first = path.read_text().splitlines()[0]
    assert (path.parent / first.removeprefix("# yaml-language-server: $schema=")).resolve() == ROOT / "docs" / SCHEMA


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer": "bytes"},
        {"tokenizer": {"folder": "t", "end": "</s>"}},
        {"tokenizer": {"train": {"vocab_size": 300, "on": "pre"}}},
        {"tokenizer": {"train": {"vocab_size": 300, "on": ["pre", "ft"]}}},
        {"model": {"checkpoint": "m"}},
        {"data__pre": {"source": "hf:a/b", "revision": "0" * 40}},
        {"search__max_hours": None},
    ],
)
def test_editors_take_what_plan_takes(changes):
    VALIDATOR.validate(tiny(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"sequnce_length": 32},
        {"stages__pretrain__tokens": "many"},
        {"stages__pretrain__tokens": 0},
        {"stages__pretrain": {}},
        {"search__ladder": 1},
        {"search__max_hours": 0},
        {"model": "gpt-9"},
        {"model": {"hidden_size": 3}},
        {"model": {"model_type": "llama", "vocab_size": 300}},
        {"tokenizer": "words"},
        {"tokenizer": {"raw_bytes": True}},
        {"tokenizer": {"train": {"vocab_size": 200, "on": "pre"}}},
        {"data__pre": {"source": "ftp://x"}},
        {"data__pre": {"source": "hf:a/b", "revision": "main"}},
        {"schema": 2},
    ],
)
def test_editors_refuse_what_is_wrong_in_one_field(changes):
    assert not VALIDATOR.is_valid(tiny(**changes))
