"""Files by pattern, compressed, here and in buckets give the same documents; a large file is hashed once."""

import gzip
import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from conftest import CORPORA

from ee_ray.data import digests, sources
from ee_ray.data.digests import Digests, sha256
from ee_ray.data.files import locate, rows
from ee_ray.errors import UserError
from ee_ray.spec.data import Source
from ee_ray.sweep import open_sweep, prepare

TEXTS = [f"document {i}, größer" for i in range(40)]


def texts(source: Source, folder: Path) -> list[str]:
    return [text for text, _, _ in sources.documents(source, folder)]


def lines(part: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in part).encode()


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def spread(tmp_path) -> Path:
    """Forty documents in four files of four kinds, in the order of the files' names."""
    (tmp_path / "text" / "deep").mkdir(parents=True)
    folder = tmp_path / "text"
    (folder / "a.jsonl").write_bytes(lines(TEXTS[:10]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines(TEXTS[10:15])) + gzip.compress(lines(TEXTS[15:20])))
    (folder / "c.jsonl.zst").write_bytes(zstd(lines(TEXTS[20:30])))
    parquet.write_table(pa.table({"text": TEXTS[30:]}), folder / "deep" / "d.parquet")
    return tmp_path


def test_a_pattern_reads_its_files_in_the_order_of_their_names_and_unpacks_them(spread):
    assert texts(Source(source="file:text/*.jsonl*"), spread) == TEXTS[:30]
    assert texts(Source(source="file:text/**"), spread) == TEXTS
    assert texts(Source(source=f"file:{spread}/text/**/*.parquet"), spread / "text") == TEXTS[30:]
    assert texts(Source(source="file:text/*/d.parquet"), spread) == TEXTS[30:]


def test_a_pattern_is_its_files_hashes_in_order_and_not_their_names(spread):
    def identity(pattern: str) -> dict:
        return sources.identity(Source(source=f"file:{pattern}"), spread, sha256)

    before = identity("text/*.jsonl*")
    assert before["sha256"][0] == hashlib.sha256((spread / "text/a.jsonl").read_bytes()).hexdigest()
    shutil.copytree(spread / "text", spread / "elsewhere")
    assert identity("elsewhere/*.jsonl*") == before
    (spread / "elsewhere/a.jsonl").rename(spread / "elsewhere/z.jsonl")
    assert identity("elsewhere/*.jsonl*")["sha256"] == [*before["sha256"][1:], before["sha256"][0]]


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz", ".txt.zst"])
def test_packed_text_is_text(tmp_path, suffix):
    content = "\n".join(TEXTS).encode()
    packed = {"gz": gzip.compress, "zst": zstd}.get(suffix.rpartition(".")[2], bytes)(content)
    (tmp_path / f"x{suffix}").write_bytes(packed)
    assert texts(Source(source=f"file:x{suffix}"), tmp_path) == TEXTS


def test_arrow_is_read_as_a_file_and_as_a_stream(tmp_path):
    table = pa.table({"id": range(40), "text": TEXTS})
    for name, writer in (("file", pa.ipc.new_file), ("stream", pa.ipc.new_stream)):
        with writer(tmp_path / f"{name}.arrow", table.schema) as sink:
            sink.write_table(table, max_chunksize=7)
        assert texts(Source(source=f"file:{name}.arrow"), tmp_path) == TEXTS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl.gz", b"not gzip", "x.jsonl.gz: cannot be read as .jsonl.gz"),
        ("x.txt.zst", zstd(b"word " * 1000)[:20], "x.txt.zst: cannot be read as .txt.zst"),
        ("x.arrow", b"ARROW1 and no more", "x.arrow: cannot be read as .arrow"),
        ("x.jsonl", b'{"text": "\\ud800"}\n', "x.jsonl:1: holds half a surrogate pair"),
        ("x.jsonl", b'\n\n{"text": 1}\n', "x.jsonl:3: no text field 'text'"),
    ],
)
def test_files_that_are_not_what_they_are_called_are_told(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        texts(Source(source=f"file:{name}"), tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"source": "file:text/*.csv"}, "text/*.csv: no such file"),
        ({"source": "file:ftp://host/x.txt"}, "files are local or in s3://, gs://, got ftp://"),
        ({"source": "file:text/deep/d.parquet.gz"}, "no such file"),
        ({"source": "file:x.txt", "prompt": "q", "completion": "a", "template": "{prompt} {completion}"}, "x.txt: .txt has no columns for prompt and completion"),
    ],
)  # fmt: skip
def test_places_that_hold_no_text_are_told(spread, source, message):
    (spread / "x.txt").write_text("text")
    with pytest.raises(UserError) as caught:
        sources.identity(Source(**source), spread, sha256)
    assert message in str(caught.value)


@pytest.fixture
def bucket(s3, monkeypatch):
    """A client; the environment is that of users of the server."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    client = s3.client()
    client.create_bucket(Bucket="corpora")
    return client


def test_a_bucket_gives_the_documents_and_the_identity_of_the_same_files_here(spread, bucket):
    for path in sorted((spread / "text").rglob("*.*")):
        bucket.upload_file(str(path), "corpora", f"web/{path.relative_to(spread / 'text')}")
    here, there = Source(source="file:text/**"), Source(source="file:s3://corpora/web/**")
    assert texts(there, spread) == TEXTS
    assert sources.identity(there, spread, sha256) == sources.identity(here, spread, sha256)
    assert texts(Source(source="file:s3://corpora/web/*.gz"), spread) == TEXTS[10:20]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("s3://corpora/none.jsonl", "corpora/none.jsonl: no such file"),
        ("s3://corpora/none/*.jsonl", "corpora/none/*.jsonl: no such file"),
        ("s3://another/x.jsonl", "another/x.jsonl: no such file"),
    ],
)
def test_what_a_bucket_lacks_is_told(bucket, tmp_path, place, message):
    with pytest.raises(UserError) as caught:
        locate(place, tmp_path)
    assert message in str(caught.value)


def test_a_sweep_over_a_bucket_is_the_sweep_over_the_files(bucket, spread, write):
    content = lines([f"a line that is {i}" for i in range(2000)])
    (spread / "post.jsonl").write_bytes(content)
    bucket.put_object(Bucket="corpora", Key="post.jsonl", Body=content)
    found = []
    for place in ("post.jsonl", "s3://corpora/post.jsonl"):
        sweep = open_sweep(write(data__post={"source": f"file:{place}"}), spread / "store")
        prepare(sweep, lambda role, done: None)
        found.append(sweep.data)
    assert found[0] == found[1]


def counted(monkeypatch) -> list[str]:
    hashed: list[str] = []
    plain = digests.sha256
    monkeypatch.setattr(digests, "sha256", lambda file: hashed.append(file.name) or plain(file))
    return hashed


def large(path: Path, text: str = "word", age: float = 60) -> Path:
    path.write_text(f"{text} {path.name}\n" * 100_000)
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_a_large_file_is_hashed_once_for_all_commands_until_it_changes(write, tmp_path, monkeypatch):
    hashed = counted(monkeypatch)
    path, spec = large(tmp_path / "post.txt"), write(data__post={"source": "file:post.txt"})
    first = open_sweep(spec, tmp_path / "store").data
    assert open_sweep(spec, tmp_path / "store").data == first and hashed == [str(path)]
    large(path, "other", age=50)
    assert open_sweep(spec, tmp_path / "store").data != first and hashed == [str(path)] * 2


def test_a_file_that_changes_under_our_eyes_is_not_remembered(write, tmp_path, monkeypatch):
    hashed = counted(monkeypatch)
    path = large(tmp_path / "post.txt", age=0)
    moment = path.stat().st_mtime_ns
    first = open_sweep(write(data__post={"source": "file:post.txt"}), tmp_path / "store").data
    path.write_text(path.read_text().replace("word", "work"))
    os.utime(path, ns=(moment, moment))  # within one tick of a coarse clock: same size, same time
    assert open_sweep(tmp_path / "tiny.yaml", tmp_path / "store").data["post"] != first["post"]
    assert len(hashed) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 2, "sha256": {}}', '{"schema": 1}', '{"schema": 1, "sha256": 7}'])  # fmt: skip
def test_a_memory_that_cannot_be_read_is_made_anew(tmp_path, content):
    (tmp_path / "digests.json").write_text(content)
    path = large(tmp_path / "x.txt")
    memory = Digests(tmp_path / "digests.json")
    digest = memory.sha256(locate("x.txt", tmp_path)[0])
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    memory.save()
    assert list(Digests(tmp_path / "digests.json").known.values()) == [digest]


def test_two_who_remember_at_once_keep_each_others_hashes(tmp_path):
    one, two = Digests(tmp_path / "digests.json"), Digests(tmp_path / "digests.json")
    for memory, name in ((one, "a.txt"), (two, "b.txt")):
        large(tmp_path / name)
        memory.sha256(locate(name, tmp_path)[0])
    one.save()
    two.save()
    assert len(Digests(tmp_path / "digests.json").known) == 2


@pytest.mark.parametrize("name", ["general_wikitext2.jsonl", "music_nottingham.jsonl", "chemistry_zinc.txt"])
def test_real_text_reads_as_python_reads_it(name):
    if not CORPORA.exists():
        pytest.skip(f"no real corpora at {CORPORA}")
    with (CORPORA / name).open(encoding="utf-8") as file:
        expected = [line.rstrip("\n") if name.endswith(".txt") else json.loads(line)["text"] for line in file]
    assert [row[0] for row in rows(locate(name, CORPORA)[0], ["text"])] == expected
