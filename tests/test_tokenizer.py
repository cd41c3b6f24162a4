"""A tokenizer is its content; a trained one is the same everywhere; documents cannot forge their own end."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer

from ee_ray.data import sources, tokenizer
from ee_ray.data.shards import is_heldout
from ee_ray.data.tokens import Encoding, dtype_of, encode
from ee_ray.errors import UserError
from ee_ray.spec.load import load_sweep
from ee_ray.sweep import open_sweep, prepare, prepare_if_quick

TRAINED = {"train": {"vocab_size": 400, "on": "pre"}}
LENGTH = 32


def quiet(*_):
    return None


def prepared(path, store):
    sweep = open_sweep(path, store)
    prepare(sweep, quiet)
    return sweep


def folder_of(sweep, place, **config):
    """The sweep's tokenizer as people keep one: a folder with tokenizer.json and tokenizer_config.json."""
    place.mkdir()
    (place / "tokenizer.json").write_bytes((sweep.tokenizer / "tokenizer.json").read_bytes())
    if config:
        (place / "tokenizer_config.json").write_text(json.dumps(config))
    return place


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The tiny sweep prepared with a tokenizer trained on its general text. To be read, not changed."""
    import yaml
    from conftest import tiny

    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny(tokenizer=TRAINED, data__heldout_windows=4)))
    return prepared(folder / "tiny.yaml", folder / "store")


def test_packed_windows_hold_the_text_that_was_read(trained):
    encoder = Tokenizer.from_file(str(trained.tokenizer / "tokenizer.json"))
    packed = trained.packed("post")
    windows = packed.gather("train", np.arange(packed.train_windows))
    end = encoder.token_to_id("<|endoftext|>")
    documents = np.split(windows[:, :-1].ravel(), np.flatnonzero(windows[:, :-1].ravel() == end) + 1)
    texts = [text for text, _, _ in sources.documents(trained.source("post"), trained.folder)]
    expected = [text for text in texts if not is_heldout(text, 0.3)]
    assert [encoder.decode(document[:-1]) for document in documents[:-1]] == expected[: len(documents) - 1]
    assert len(documents) > 20 and windows.max() < packed.vocab_size == 400 and packed.dtype == "uint16"


def test_a_tokenizer_that_was_trained_on_text_packs_it_into_fewer_windows(trained, write, tmp_path):
    plain = prepared(write(), tmp_path / "store")
    assert trained.packed("pre").train_windows < 0.7 * plain.packed("pre").train_windows


def test_training_a_tokenizer_gives_the_same_one_in_every_process_and_release(trained):
    """Written down once. If this changes, bump TRAIN_VERSION."""
    code = "import sys; from pathlib import Path; from ee_ray.data import tokenizer; from ee_ray.spec.load import load_sweep; tokenizer.bring(load_sweep(sys.argv[1]), Path('.'), Path(sys.argv[2]))"  # fmt: skip
    again = trained.folder / "again"
    subprocess.run([sys.executable, "-c", code, str(trained.path), str(again)], check=True)
    content = (again / "tokenizer.json").read_bytes()
    assert content == (trained.tokenizer / "tokenizer.json").read_bytes()
    merges = json.dumps(json.loads(content)["model"]["merges"])
    assert tokenizer.TRAIN_VERSION == 1
    assert hashlib.sha256(merges.encode()).hexdigest()[:12] == "2a549340afa2"


def test_a_folder_and_a_trained_tokenizer_with_the_same_content_give_the_same_windows(trained, write, tmp_path):
    folder_of(trained, tmp_path / "tok", eos_token={"content": "<|endoftext|>"})
    own = prepared(write(tokenizer={"folder": "tok"}, data__heldout_windows=4), tmp_path / "store")
    assert own.data["post"] != trained.data["post"]
    shards = [(s.packed("post").folder / "train-00000.bin").read_bytes() for s in (own, trained)]
    assert shards[0] == shards[1]


def test_a_local_tokenizer_is_its_content_and_not_its_path(trained, write, tmp_path):
    first = folder_of(trained, tmp_path / "a", eos_token="<|endoftext|>")
    second = folder_of(trained, tmp_path / "b")
    (second / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>", "padding_side": "left"}))
    file = str(first / "tokenizer.json")
    asked = [{"folder": "a"}, {"folder": "b"}, {"folder": file}, {"folder": "b", "end": "<|endoftext|>"}]
    found = [open_sweep(write(tokenizer=wanted), tmp_path / "store").data for wanted in asked]
    assert all(data == found[0] for data in found)
    assert open_sweep(write(tokenizer={"folder": "b", "end": "e"}), tmp_path / "store").data != found[0]


def test_a_trained_tokenizer_depends_on_what_it_was_trained_on_and_all_corpora_on_it(write, tmp_path):
    base = open_sweep(write(tokenizer=TRAINED), tmp_path / "store").data
    for changes in ({"tokenizer": {"train": {"vocab_size": 401, "on": "pre"}}}, {"tokenizer": {"train": {"vocab_size": 400, "on": ["pre", "ft"]}}}, {"tokenizer": TRAINED, "data__pre": {"source": "builtin:web", "size": 30_001}}):  # fmt: skip
        other = open_sweep(write(**changes), tmp_path / "store").data
        assert not set(other.values()) & set(base.values())
    later = open_sweep(write(tokenizer=TRAINED, data__ft={"source": "builtin:web", "size": 9}), tmp_path / "store").data
    assert later["post"] == base["post"] and later["ft"] != base["ft"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("words", "tokenizer: must be bytes, {folder: PATH}, {hub: ID, revision: COMMIT} or {train: {vocab_size: N, on: pre}}, got 'words'"),
        ({}, "must be bytes, {folder: PATH}, {hub: ID, revision: COMMIT} or {train:"),
        ({"folder": "a", "hub": "b/c"}, "must be bytes, {folder: PATH}"),
        ({"hub": "b/c"}, "revision goes with hub:, and hub: needs it"),
        ({"hub": "b/c", "revision": "main"}, "tokenizer.revision: must be a commit hash of 40 hex digits, got 'main': branches and tags move"),
        ({"train": {"vocab_size": 100, "on": "pre"}}, "tokenizer.train.vocab_size: input should be greater than or equal to 257, got 100"),
        ({"train": {"vocab_size": 1000, "on": "web"}}, "tokenizer.train.on.0: "),
        ({"train": {"vocab_size": 1000, "on": "pre"}, "end": "x"}, "end goes with folder: and hub:"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_is_no_tokenizer_is_told_at_the_door(write, wanted, message):
    with pytest.raises(UserError) as caught:
        load_sweep(write(tokenizer=wanted))
    assert message in str(caught.value) and len(caught.value.problems) == 1


def test_what_a_folder_lacks_is_named_with_what_would_do(trained, write, tmp_path):
    folder_of(trained, tmp_path / "bare")
    (tmp_path / "empty").mkdir()
    for name, message in (("gone", "holds no tokenizer.json"), ("empty", "holds no tokenizer.json"), ("bare", "names no eos_token: set tokenizer.end to the token that ends a document")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            open_sweep(write(tokenizer={"folder": name}), tmp_path / "store")
    sweep = open_sweep(write(tokenizer={"folder": "bare", "end": "</s>"}), tmp_path / "store")
    with pytest.raises(UserError, match=r"'</s>' is not one of its tokens: set tokenizer\.end to one that ends"):
        prepare(sweep, quiet)
    (tmp_path / "empty" / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer.json cannot be read"):
        prepare(open_sweep(write(tokenizer={"folder": "empty", "end": "</s>"}), tmp_path / "store"), quiet)


def test_text_that_spells_a_special_token_is_text(trained):
    path = trained.tokenizer / "tokenizer.json"
    end = json.loads((trained.tokenizer / "encoding.json").read_text())["end"]
    (tokens,) = encode(Encoding(str(path), end, 400), [("never <|endoftext|> here", 0, 24)], False)
    assert (tokens == end).sum() == 1 and tokens[-1] == end


def test_tokens_that_touch_the_completion_carry_loss_and_no_others(trained):
    path = trained.tokenizer / "tokenizer.json"
    encoder = Tokenizer.from_file(str(path))
    text = "Say größer words backwards: the part\nA: größer part the"
    start = text.index("A: ") + 3
    for stop in (len(text), len(text) - 4):
        (stored,) = encode(Encoding(str(path), 0, 400), [(text, start, stop)], True)
        tokens, read = stored[:-1] >> 1, stored[:-1] % 2 == 1
        spans = encoder.encode(text).offsets
        assert encoder.decode(tokens) == text
        assert [bool(r) for r in read] == [b <= start or a >= stop for a, b in spans]
        assert stored[-1] == 0


@pytest.mark.parametrize(("size", "partial", "name"), [(256, False, "uint8"), (257, False, "uint16"), (128, True, "uint8"), (129, True, "uint16"), (65_536, False, "uint16"), (32_769, True, "uint32"), (65_537, False, "uint32"), (128_256, True, "uint32")])  # fmt: skip
def test_tokens_take_the_fewest_bytes_that_hold_them(size, partial, name):
    assert dtype_of(size, partial) == name


def test_plan_knows_the_parameters_before_a_tokenizer_is_trained_and_says_what_to_do(write, tmp_path):
    sweep = open_sweep(write(tokenizer=TRAINED), tmp_path / "store")
    assert sweep.vocab_size() == 400
    assert "epochs are known after `ee-ray prepare" in prepare_if_quick(sweep)[0]
    assert open_sweep(write(tokenizer={"hub": "a/b", "revision": "0" * 40}), tmp_path / "store").vocab_size() is None
