"""Data sets and tokenizers of the hub, through the hub's own libraries, from a hub on this machine."""

import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import yaml
from conftest import tiny
from hub import serving

from ee_ray.data import builtin, tokenizer
from ee_ray.data.build import pack
from ee_ray.data.tokens import BYTES
from ee_ray.errors import UserError
from ee_ray.spec.data import Source
from ee_ray.spec.load import load_sweep
from ee_ray.sweep import open_sweep

OLD, NEW = "a" * 40, "b" * 40
TUNES = list(builtin.documents("music", 20_000))
PAGES = list(builtin.documents("web", 20_000))
LINES = [f"Line {i} says what the lines before it have said." for i in range(1200)]
PAIRS = [{"inputs": f"What is {i} plus 1?", "targets": str(i + 1)} for i in range(900)]
CARD = "---\nconfigs:\n- config_name: tunes\n  data_files:\n  - split: train\n    path: tunes/*.parquet\n  - split: test\n    path: test/*.parquet\n- config_name: pages\n  data_files:\n  - split: train\n    path: pages/*.parquet\n---\n"


def table(texts: list[str]) -> bytes:
    content = io.BytesIO()
    parquet.write_table(pa.table({"text": texts, "id": range(len(texts))}), content)
    return content.getvalue()


def lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


FILES = {
    "README.md": CARD.encode(),
    "tunes/0.parquet": table(TUNES[:60]),
    "tunes/1.parquet": table(TUNES[60:]),
    "test/0.parquet": table(TUNES[:3]),
    "pages/0.parquet": table(PAGES),
}
REPOSITORIES = {
    "datasets/lab/corpus": {OLD: FILES, NEW: {**FILES, "tunes/1.parquet": table(["other"])}},
    "datasets/lab/pairs": {OLD: {"train.jsonl": lines(PAIRS)}},
    # as C4 has it: many compressed files, of which a sweep needs the first few
    "datasets/lab/c4": {
        OLD: {
            f"en/c4-train.0000{i}-of-00003.json.gz": gzip.compress(
                lines([{"text": text} for text in LINES[i * 400 : (i + 1) * 400]]), mtime=0
            )
            for i in range(3)
        }
    },
    "lab/model": {OLD: {"config.json": b"{}"}},
}
TUNE = {"source": "hf:lab/corpus", "revision": OLD, "config": "tunes"}

DRIVER = """
import json, sys
from ee_ray.errors import UserError
from ee_ray.sweep import open_sweep, prepare

if __name__ == "__main__":
    for path in sys.argv[2:]:
        try:
            sweep = open_sweep(path, sys.argv[1])
            prepare(sweep, lambda role, done: None)
            print(json.dumps({"data": sweep.data, "vocab": sweep.vocab_size()}))
        except UserError as error:
            print(json.dumps({"problems": error.problems}))
"""


def prepared(folder: Path, endpoint: str, specs: list[dict], **environment: str) -> list[dict]:
    """What `prepare` makes of each spec, or tells of it, with a hub at `endpoint`, in a process of its own."""
    paths = []
    for number, spec in enumerate(specs):
        paths.append(folder / f"s{number}.yaml")
        paths[-1].write_text(yaml.safe_dump(spec))
    (folder / "driver.py").write_text(DRIVER)
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1", **environment}  # fmt: skip
    command = [sys.executable, str(folder / "driver.py"), str(folder / "store"), *map(str, paths)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def by_hand(folder: Path, texts: list[str]) -> dict[str, bytes]:
    """The shards of these documents, from a file."""
    (folder / "hand.jsonl").write_bytes(lines([{"text": text} for text in texts]))
    made = pack(Source(source="file:hand.jsonl"), folder, {"heldout_fraction": 0.3, "sequence_length": 32}, folder / "hand", BYTES, lambda size: None)  # fmt: skip
    return {name: (made.folder / f"{name}-00000.bin").read_bytes() for name in ("train", "heldout")}


def test_a_data_set_of_the_hub_is_packed_the_same_downloaded_and_streamed(tmp_path):
    specs = [tiny(data__post=TUNE), tiny(data__post={**TUNE, "streaming": True, "size": 10**9})]
    with serving(REPOSITORIES) as (endpoint, asked):
        found = prepared(tmp_path, endpoint, specs)
    expected = by_hand(tmp_path, TUNES)
    for made in found:
        folder = tmp_path / "store/data" / made["data"]["post"]
        assert {name: (folder / f"{name}-00000.bin").read_bytes() for name in expected} == expected
    assert any("/resolve/" in request for request in asked)
    assert all(OLD in request for request in asked if "/resolve/" in request and "README" not in request)


def test_everything_that_the_hub_lacks_is_told_in_the_users_terms(tmp_path):
    wrong = [
        {**TUNE, "source": "hf:lab/nothing"},
        {**TUNE, "revision": "c" * 40},
        {**TUNE, "config": "songs"},
        {**TUNE, "split": "validation"},
        {**TUNE, "split": "validation", "streaming": True},
        {**TUNE, "field": "body"},
        {**TUNE, "field": "body", "streaming": True},
        {**TUNE, "field": "id"},
        {"source": "hf:lab/pairs", "revision": OLD, "prompt": "inputs", "completion": "answers", "template": "{prompt} {completion}"},
    ]  # fmt: skip
    with serving(REPOSITORIES) as (endpoint, _):
        found = prepared(tmp_path, endpoint, [tiny(data__post=source) for source in wrong])
    told = [made["problems"][0] for made in found]
    assert all(f"s{i}.yaml: data.post: hf:lab/" in line for i, line in enumerate(told))
    for line, parts in zip(told, [
        ["doesn't exist on the Hub"],
        ["c" * 40, "doesn't exist", "Set `revision:`"],
        ["songs", "tunes", "pages", "Set `config:`"],
        ["validation", "train", "test", "Set `split:`"],
        ["validation", "train", "test", "Set `split:`"],
        ["no column 'body'; there are: text, id. Set `field:`"],
        ["no column 'body'; there are: text, id. Set `field:`"],
        ["row 1: no text field 'id'"],
        ["no column 'answers'; there are: inputs, targets. Set `prompt:` and `completion:`"],
    ], strict=True):  # fmt: skip
        assert all(part in line for part in parts), line


def test_a_hub_that_cannot_be_reached_is_told_and_what_was_downloaded_needs_none(tmp_path):
    with serving(REPOSITORIES) as (endpoint, _):
        before = prepared(tmp_path, endpoint, [tiny(data__post=TUNE)])
    longer = tiny(data__post=TUNE, sequence_length=16)
    offline = {"HF_HUB_OFFLINE": "1"}
    (again,) = prepared(tmp_path, "http://127.0.0.1:9", [longer], **offline)
    assert "data" in again, again
    assert again["data"]["post"] != before[0]["data"]["post"]
    other = tmp_path / "other"
    other.mkdir()
    specs = [tiny(data__post=TUNE), tiny(data__post={**TUNE, "streaming": True}), tiny(tokenizer={"hub": "lab/model", "revision": OLD})]  # fmt: skip
    for made in prepared(other, "http://127.0.0.1:9", specs, **offline):
        assert "hub cannot be reached" in made["problems"][0], made


def test_pairs_of_the_hub_fill_a_template_and_only_completions_carry_loss(tmp_path):
    pairs = {"source": "hf:lab/pairs", "revision": OLD, "prompt": "inputs", "completion": "targets"}
    filled = {**pairs, "template": "{prompt}\n{completion}", "loss": "completion"}
    with serving(REPOSITORIES) as (endpoint, _):
        (made,) = prepared(tmp_path, endpoint, [tiny(data__ft=filled)])
    folder = tmp_path / "store/data" / made["data"]["ft"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["partial"] and manifest["documents"] == len(PAIRS)
    assert manifest["identity"]["source"] == {
        "hub": "lab/pairs", "revision": OLD, "config": None, "split": "train", "columns": ["inputs", "targets"],
        "template": "{prompt}\n{completion}", "loss": "completion", "size": None,
    }  # fmt: skip


def test_a_part_of_a_streamed_data_set_is_its_first_documents(tmp_path):
    part = {"source": "hf:lab/c4", "revision": OLD, "streaming": True, "size": 9_000}
    with serving(REPOSITORIES) as (endpoint, asked):
        (made,) = prepared(tmp_path, endpoint, [tiny(data__pre=part, data__heldout_windows=4)])
    folder = tmp_path / "store/data" / made["data"]["pre"]
    expected = by_hand(tmp_path, LINES[: next(n for n in range(1200) if len("".join(LINES[:n])) >= 9_000)])
    assert (folder / "train-00000.bin").read_bytes() == expected["train"]
    assert not any("00002-of" in request for request in asked), "read beyond what was asked for"


def test_a_tokenizer_of_the_hub_comes_at_its_revision(tmp_path, write):
    sweep = open_sweep(write(tokenizer={"train": {"vocab_size": 300, "on": "pre"}}), tmp_path / "store")
    tokenizer.bring(sweep.spec, sweep.folder, sweep.tokenizer)
    content = (sweep.tokenizer / "tokenizer.json").read_bytes()
    files = {"tokenizer.json": content, "tokenizer_config.json": b'{"eos_token": "<|endoftext|>"}'}
    repositories = {"lab/tok": {OLD: files, NEW: {"tokenizer.json": content}}, "lab/slow": {OLD: {"vocab.txt": b"a"}}}
    wanted = [{"hub": "lab/tok", "revision": OLD}, {"hub": "lab/tok", "revision": NEW}, {"hub": "lab/slow", "revision": OLD}, {"hub": "lab/tok", "revision": "c" * 40}, {"hub": "lab/none", "revision": OLD}]  # fmt: skip
    with serving(repositories) as (endpoint, _):
        found = prepared(tmp_path, endpoint, [tiny(tokenizer=want, data__heldout_windows=4) for want in wanted])
    assert found[0]["vocab"] == 300
    told = [made["problems"][0] for made in found[1:]]
    assert "tokenizer.hub: lab/tok: its tokenizer_config.json names no eos_token: set tokenizer.end" in told[0]
    assert "tokenizer.hub: lab/slow: has no tokenizer.json" in told[1]
    assert f"tokenizer.hub: lab/tok at {'c' * 40}: " in told[2] and "Set `revision:`" in told[2]
    assert "tokenizer.hub: lab/none at " in told[3] and "Repository Not Found" in told[3]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"source": "hf:a/b"}, "revision is missing: pin an hf: source to the commit hash of its repository"),
        ({"source": "hf:a/b", "revision": "main"}, "data.post.revision: must be a commit hash of 40 hex digits, got 'main': branches and tags move"),
        ({"source": "file:x.txt", "split": "train", "config": "en"}, "config, split: only for hf: sources"),
        ({"source": "file:x.txt", "size": 10}, "size is needed for builtin: sources, possible for hf: sources, and not for file:"),
        ({"source": "http://x"}, "must be builtin:web|music|chemistry|instructions, file:PATH"),
        ({"source": "file:x.jsonl", "prompt": "q", "completion": "a"}, "prompt, completion and template go together: template missing"),
        ({"source": "file:x.jsonl", "prompt": "q", "completion": "a", "template": "{prompt}"}, "must hold {prompt} and {completion} once each"),
        ({"source": "file:x.jsonl", "prompt": "q", "completion": "a", "template": "{prompt}{completion}{x}"}, "must hold {prompt} and {completion} once each"),
        ({"source": "file:x.jsonl", "prompt": "q", "completion": "a", "template": "{prompt"}, "is not a format string: "),
        ({"source": "file:x.jsonl", "prompt": "q", "completion": "a", "template": "{prompt}{completion}", "field": "text"}, "take the place of field"),
        ({"source": "file:x.jsonl", "loss": "completion"}, "loss: completion needs prompt, completion and template"),
    ],
)  # fmt: skip
def test_a_source_that_cannot_be_one_is_told_at_the_door(write, source, message):
    with pytest.raises(UserError) as caught:
        load_sweep(write(data__post=source))
    assert message in str(caught.value) and len(caught.value.problems) == 1
