"""Documents are split before they are packed, windows tile the text exactly, and what cannot be read is named."""

import hashlib
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from ee_ray.data import builtin, sources
from ee_ray.data.build import pack
from ee_ray.data.digests import sha256
from ee_ray.data.files import FORMATS
from ee_ray.data.pack import Packed, open_packed, shortfalls
from ee_ray.data.shards import STREAMS, shard_file
from ee_ray.data.tokens import BYTES, END_BYTE
from ee_ray.errors import UserError
from ee_ray.identity import key_of
from ee_ray.plan import budgets
from ee_ray.spec.data import Source
from ee_ray.sweep import open_sweep, prepare

TEXTS = ["alpha beta", "gamma, delta: größer", "one\ntwo", "épsilon", "zeta " * 30]


def quiet(*_):
    return None


def texts(source: Source, folder) -> list[str]:
    return [text for text, _, _ in sources.documents(source, folder)]


def written(folder, suffix: str) -> Source:
    """The same five documents in each format that people bring."""
    path = folder / f"corpus{suffix}"
    if suffix == ".txt":
        path.write_text("\n\n".join(text.replace("\n", " ") for text in TEXTS))
        return Source(source=f"file:{path.name}")
    table = pa.table({"id": range(len(TEXTS)), "body": TEXTS})
    if suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in table.to_pylist()))
    elif suffix == ".parquet":
        parquet.write_table(table, path)
    else:
        with pa.ipc.new_stream(path, table.schema) as stream:  # as the hub's library writes them
            stream.write_table(table)
    return Source(source=f"file:{path.name}", field="body")


@pytest.mark.parametrize("suffix", FORMATS)
def test_each_format_gives_the_same_documents(tmp_path, suffix):
    expected = [text.replace("\n", " ") for text in TEXTS] if suffix == ".txt" else TEXTS
    source = written(tmp_path, suffix)
    assert texts(source, tmp_path) == [text.rstrip("\n") for text in expected]


def test_a_source_is_its_content_and_not_its_path(tmp_path):
    (tmp_path / "other").mkdir()
    here, there = written(tmp_path, ".jsonl"), written(tmp_path / "other", ".jsonl")
    assert sources.identity(here, tmp_path, sha256) == sources.identity(there, tmp_path / "other", sha256)
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"body": "changed"}))
    assert sources.identity(here, tmp_path, sha256) != sources.identity(there, tmp_path / "other", sha256)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.txt", None, "no such file"),
        ("empty.txt", b"", "is empty"),
        ("x.csv", b"a,b", "files end in .txt, .jsonl, .parquet, .arrow, or .txt and .jsonl with .gz, .zst, got '.csv'"),
    ],
)
def test_a_file_that_cannot_serve_is_found_before_anything_is_read(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)):
        sources.identity(Source(source=f"file:{name}"), tmp_path, sha256)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"fine\n\xff\xfe\n", "is not UTF-8"),
        ("x.jsonl", b'{"text": "a"}\n{"text": \n', "x.jsonl:2: is not JSON"),
        ("x.jsonl", b'{"body": "a", "id": 1}\n', "no text field 'text'; the record has: body, id"),
        ("x.jsonl", b'{"text": 7}\n', "no text field 'text'"),
        ("x.jsonl", b'["a"]\n', "the record has: list"),
        ("x.parquet", b"not parquet at all", "cannot be read as .parquet"),
    ],
)
def test_content_that_cannot_be_read_is_named_with_its_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)):
        texts(Source(source=f"file:{name}"), tmp_path)


def test_a_missing_column_lists_those_that_are_there(tmp_path):
    source = written(tmp_path, ".parquet").model_copy(update={"field": "text"})
    with pytest.raises(UserError, match="no column 'text'; there are: id, body"):
        texts(source, tmp_path)


def packed(folder, texts: list[str], fraction: float = 0.4, length: int = 8):
    (folder / "c.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    identity = {"heldout_fraction": fraction, "sequence_length": length}
    return pack(Source(source="file:c.jsonl"), folder, identity, folder / key_of(identity), BYTES, quiet)


def stream(corpus: Packed, name: str) -> bytes:
    return b"".join((corpus.folder / shard_file(name, i)).read_bytes() for i in range(len(corpus.train_shards)))


def test_copies_of_a_document_never_stand_on_both_sides_of_the_split(tmp_path):
    texts = [f"document {i % 40}" for i in range(200)]
    corpus = packed(tmp_path, texts)
    train, heldout = (set(stream(corpus, name).split(bytes([END_BYTE]))) - {b""} for name in ("train", "heldout"))
    assert train and heldout
    assert not train & heldout
    assert train | heldout == {text.encode() for text in texts}


def test_the_split_of_a_document_depends_on_nothing_but_the_document(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    few = packed(tmp_path / "a", [f"document {i}" for i in range(50)])
    many = packed(tmp_path / "b", [f"document {i}" for i in reversed(range(90))])
    in_few = set(stream(few, "heldout").split(bytes([END_BYTE])))
    assert in_few <= set(stream(many, "heldout").split(bytes([END_BYTE])))


def test_windows_tile_the_text_and_each_predicts_the_next_ones_first_token(tmp_path):
    corpus = packed(tmp_path, [f"document number {i}" for i in range(30)])
    windows = corpus.gather("train", np.arange(corpus.train_windows))
    assert windows.shape == (corpus.train_windows, 9)
    assert np.array_equal(windows[1:, 0], windows[:-1, -1])
    tokens = np.frombuffer(stream(corpus, "train"), np.uint8)
    assert np.array_equal(windows[:, :-1].ravel(), tokens[: 8 * corpus.train_windows])
    assert len(tokens) - 1 - 8 * corpus.train_windows < 8


def test_a_manifest_states_the_hashes_of_what_it_describes(tmp_path):
    corpus = packed(tmp_path, TEXTS)
    manifest = json.loads((corpus.folder / "manifest.json").read_text())
    for name in STREAMS:
        assert manifest["shards"][0]["sha256"][name] == hashlib.sha256(stream(corpus, name)).hexdigest()
    assert open_packed(corpus.folder) == corpus


def test_two_who_pack_the_same_corpus_both_find_it(tmp_path):
    assert packed(tmp_path, TEXTS) == packed(tmp_path, TEXTS)
    assert not list(tmp_path.glob("*.tmp"))


def test_every_problem_of_every_source_comes_at_once(write, tmp_path):
    (tmp_path / "empty.txt").touch()
    path = write(
        data__pre={"source": "builtin:news", "size": 1000},
        data__post={"source": "file:gone.jsonl"},
        data__ft={"source": "file:empty.txt"},
    )
    with pytest.raises(UserError) as caught:
        open_sweep(path, tmp_path / "store")
    assert [line.split(": ")[1] for line in caught.value.problems] == ["data.pre.source", "data.post.source", "data.ft.source"]  # fmt: skip
    assert "there are web, music, chemistry, instructions" in caught.value.problems[0]


def test_pools_that_are_too_small_are_said_before_anything_trains(write, tmp_path):
    sweep = open_sweep(write(data__post={"source": "builtin:music", "size": 1500}, data__heldout_windows=4), tmp_path)
    warnings = prepare(sweep, quiet)
    assert len(warnings) == 1
    assert warnings[0].startswith("data.post: the budget of 64 windows is beyond the pool of ")
    pool = sweep.packed("post").train_windows
    assert f"{64 / pool:.2f} epochs" in warnings[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__post": {"source": "builtin:music", "size": 1500, "strict": True}, "data__heldout_windows": 4}, "and strict is set"),
        ({"data__heldout_windows": 5000}, "the held-out split has "),
    ],
)  # fmt: skip
def test_pools_that_cannot_serve_are_refused(write, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        prepare(open_sweep(write(**changes), tmp_path), quiet)


def test_fingerprints_differ_where_windows_would(write, tmp_path):
    def fingerprints(**changes):
        return open_sweep(write(**changes), tmp_path).data

    base = fingerprints()
    assert fingerprints(name="other", search__max_trials=20) == base
    assert not set(fingerprints(sequence_length=16).values()) & set(base.values())
    assert not set(fingerprints(data__heldout_fraction=0.2).values()) & set(base.values())
    longer = fingerprints(data__post={"source": "builtin:music", "size": 20_001})
    assert longer["pre"] == base["pre"] and longer["post"] != base["post"]


@pytest.mark.parametrize("domain", builtin.DOMAINS)
def test_builtin_documents_are_the_same_everywhere_and_at_every_size(domain):
    few, many = list(builtin.documents(domain, 2_000)), list(builtin.documents(domain, 20_000))
    assert many[: len(few)] == few
    assert sum(len(text.encode()) for text in few[:-1]) < 2_000 <= sum(len(text.encode()) for text in few)
    assert all(text.isascii() and "\0" not in text for text in many)


def test_builtin_text_never_changes_without_its_version():
    """Written down once. If this changes, bump BUILTIN_VERSION."""
    digest = {name: hashlib.sha256("\n".join(builtin.documents(name, 5_000)).encode()).hexdigest()[:12] for name in builtin.DOMAINS}  # fmt: skip
    assert builtin.BUILTIN_VERSION == 1
    assert digest == {
        "web": "24a54e4ae9f8", "music": "c9064cc7b91d", "chemistry": "6dbd85c44b5e", "instructions": "51451357551d",
    }  # fmt: skip


def test_pretraining_text_has_seen_every_character_of_the_other_corpora():
    seen = set("".join(builtin.documents("web", 300_000)))
    for domain in builtin.DOMAINS:
        assert set("".join(builtin.documents(domain, 50_000))) <= seen


def test_shortfalls_speak_of_each_pool(write, tmp_path):
    sweep = open_sweep(write(data__heldout_windows=5000), tmp_path)
    with pytest.raises(UserError):
        prepare(sweep, quiet)
    errors, _ = shortfalls(sweep.spec, {role: sweep.packed(role) for role in sweep.data}, budgets(sweep.spec))
    assert [error.split(":")[0] for error in errors] == ["data.pre", "data.post", "data.ft"]
