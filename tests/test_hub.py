"""Data sets and tokenizers of the hub, through the hub's own libraries, from a hub on this machine."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import yaml
from conftest import tiny
from hub import serving

from ee_ray.data import builtin
from ee_ray.data.build import pack
from ee_ray.data.tokens import BYTES
from ee_ray.spec.data import Source

OLD, NEW = "a" * 40, "b" * 40
TUNES = list(builtin.documents("music", 20_000))
PAGES = list(builtin.documents("web", 20_000))
PAIRS = [{"inputs": f"What is {i} plus 1?", "targets": str(i + 1)} for i in range(900)]
CARD = "---\nconfigs:\n- config_name: tunes\n  data_files:\n  - split: train\n    path: tunes/*.parquet\n  - split: test\n    path: test/*.parquet\n- config_name: pages\n  data_files:\n  - split: train\n    path: pages/*.jsonl\n---\n"


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
    "pages/0.jsonl": lines([{"text": text} for text in PAGES]),
}
REPOSITORIES = {
    "datasets/lab/corpus": {OLD: FILES, NEW: {**FILES, "tunes/1.parquet": table(["other"])}},
    "datasets/lab/pairs": {OLD: {"train.jsonl": lines(PAIRS)}},
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
