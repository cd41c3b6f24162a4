"""A corpus is the same bytes for any number of processes and any number of kills, in memory that does not grow with it."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import CORPORA
from hypothesis import given, settings
from hypothesis import strategies as st

from ee_ray.data import builtin, sources
from ee_ray.data.build import pack
from ee_ray.data.order import permutation
from ee_ray.data.pack import Packed, digests, open_packed, shortfalls
from ee_ray.data.shards import BLOCK_BYTES, STREAMS, blocks, is_heldout, shard_file
from ee_ray.data.tokens import BYTES, END_BYTE
from ee_ray.data.workers import here, processes
from ee_ray.errors import UserError
from ee_ray.spec.data import Source
from ee_ray.sweep import open_sweep

IDENTITY = {"heldout_fraction": 0.3, "sequence_length": 16}
FOREVER = 10**9


def quiet(*_):
    return None


def corpus(folder: Path, source: Source, workers=here, block=FOREVER, name="packed", **identity) -> Packed:
    found = {**IDENTITY, **identity}
    return pack(source, folder, found, folder / name, BYTES, quiet, workers, block)


def jsonl(folder: Path, rows: list[dict], name: str = "c.jsonl") -> Source:
    (folder / name).write_text("\n".join(json.dumps(row) for row in rows))
    return Source(source=f"file:{name}")


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def windows_by_hand(texts: list[str], stream: str, length: int) -> np.ndarray:
    """The obvious way: all text of a stream in one piece, cut every `length` bytes."""
    here = [text for text in texts if is_heldout(text, IDENTITY["heldout_fraction"]) == (stream == "heldout")]
    tokens = list("".join(text + chr(END_BYTE) for text in here).encode())
    starts = range(0, max(len(tokens) - 1, 0) // length * length, length)
    return np.array([tokens[start : start + length + 1] for start in starts], np.int64).reshape(-1, length + 1)


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40), min_size=1, max_size=30
    ),
    st.integers(1, 200),
    st.integers(2, 12),
)
@settings(max_examples=60)
def test_windows_are_those_of_the_obvious_way_wherever_shards_are_cut(tmp_path_factory, texts, block, length):
    folder = tmp_path_factory.mktemp("corpus")
    made = corpus(folder, jsonl(folder, [{"text": text} for text in texts]), block=block, sequence_length=length)
    for stream, count in (("train", made.train_windows), ("heldout", made.heldout_windows)):
        expected = windows_by_hand(texts, stream, length)
        assert count == len(expected)
        order = permutation(count, 0, 0)
        assert np.array_equal(made.gather(stream, order), expected[order])
        assert np.array_equal(made.counted(stream, order), np.full(count, length))


def test_one_process_and_two_write_the_same_bytes(tmp_path):
    source = Source(source="builtin:web", size=300_000)
    one = corpus(tmp_path, source, processes(1), 40_000, "one")
    two = corpus(tmp_path, source, processes(2), 40_000, "two")
    assert len(one.train_shards) == 8
    assert contents(one.folder) == contents(two.folder)
    manifest = json.loads((two.folder / "manifest.json").read_text())
    assert digests(manifest) == {name: contents(two.folder)[name] for name in digests(manifest)}


def test_a_corpus_of_one_block_starts_no_processes(tmp_path, monkeypatch):
    monkeypatch.setattr("ee_ray.data.workers.ProcessPoolExecutor", None)
    corpus(tmp_path, Source(source="builtin:web", size=1000), processes(64))
    with pytest.raises(TypeError):
        corpus(tmp_path, Source(source="builtin:web", size=100_000), processes(64), 20_000, "larger")


def test_a_failure_in_a_worker_process_comes_home(tmp_path):
    with pytest.raises(ZeroDivisionError):
        list(processes(2)(broken, blocks((("text", 0, 4) for _ in range(3)), 1)))


def broken(block):
    raise ZeroDivisionError


SLOW = """
import itertools, signal, sys
from pathlib import Path
from ee_ray.data import build
from ee_ray.data.tokens import BYTES
from ee_ray.data.workers import processes
from ee_ray.spec.data import Source

told = itertools.count(1)

def progress(size):
    print("shard", flush=True)
    if next(told) == 4:
        signal.pause()

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    identity = {"heldout_fraction": 0.3, "sequence_length": 16}
    build.pack(Source(source="builtin:web", size=400_000), folder, identity, folder / "killed", BYTES, progress, processes(2), 20_000)
"""


def alive(group: int) -> bool:
    done = subprocess.run(["ps", "-o", "stat=", "-g", str(group)], capture_output=True, text=True)
    return any(not line.startswith("Z") for line in done.stdout.split())


def test_a_killed_prepare_goes_on_from_its_shards_and_equals_the_unbroken_one(tmp_path):
    source = Source(source="builtin:web", size=400_000)
    whole = corpus(tmp_path, source, block=20_000, name="whole")
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    child = subprocess.Popen([sys.executable, script, tmp_path], stdout=subprocess.PIPE, text=True, start_new_session=True)  # fmt: skip
    assert child.stdout
    for _ in range(4):
        assert child.stdout.readline() == "shard\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert open_packed(tmp_path / "killed") is None
    deadline = time.monotonic() + 60
    while alive(child.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(child.pid), "workers outlive a parent that was killed"
    records = [json.loads(path.read_text()) for path in (tmp_path / "killed.partial").glob("shard-*.json")]
    kept = {
        name: (tmp_path / "killed.partial" / name).stat().st_mtime_ns
        for record in records
        for name in (shard_file("train", record["number"]), shard_file("heldout", record["number"]))
    }
    assert 4 <= len(records) < len(whole.train_shards)
    redone: list[int] = []
    packed = corpus(tmp_path, source, partial(counting, redone), 20_000, "killed")
    assert len(redone) == len(whole.train_shards) - len(records)
    assert all((packed.folder / name).stat().st_mtime_ns == written for name, written in kept.items())
    assert contents(packed.folder) == contents(whole.folder)
    assert not list(tmp_path.glob("*.partial"))


def counting(redone, work, found):
    for block in found:
        redone.append(block.number)
        yield work(block)


def test_shards_of_a_release_that_cut_blocks_elsewhere_are_not_taken_over(tmp_path):
    source = Source(source="builtin:web", size=60_000)
    with pytest.raises(InterruptedError):
        corpus(tmp_path, source, stopping_after_two, 7_000)
    whole = corpus(tmp_path, source, block=20_000, name="whole")
    resumed = corpus(tmp_path, source, block=20_000)
    assert contents(resumed.folder) == contents(whole.folder)


def stopping_after_two(work, found):
    yield work(next(found))
    yield work(next(found))
    raise InterruptedError


MEMORY = """
import sys
from pathlib import Path
from ee_ray.data.build import pack
from ee_ray.data.tokens import BYTES
from ee_ray.spec.data import Source
folder = Path(sys.argv[1])
pack(Source(source="file:" + sys.argv[2]), folder, {"heldout_fraction": 0.1, "sequence_length": 64}, folder / sys.argv[2][:-6], BYTES, lambda size: None, block_bytes=1 << 20)
# Of this program alone: ru_maxrss counts what the parent had before it.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """Peak resident kilobytes for 3 MB and for 60 MB of text, in processes of their own; a block is 1 MB here."""
    line = json.dumps({"text": "All work and no play. " * 90}) + "\n"
    peaks = []
    for name, megabytes in (("small.jsonl", 3), ("large.jsonl", 60)):
        (tmp_path / name).write_text(line * (megabytes * 1_000_000 // len(line)))
        command = [sys.executable, "-c", MEMORY, str(tmp_path), name]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] < peaks[0] + 8_000, peaks


def test_documents_are_split_the_same_way_in_every_block(tmp_path):
    texts = [f"document {i % 40}" for i in range(400)]
    made = corpus(tmp_path, jsonl(tmp_path, [{"text": text} for text in texts]), block=100)
    assert len(made.train_shards) > 10
    sides = []
    for stream in STREAMS:
        stored = b"".join((made.folder / shard_file(stream, i)).read_bytes() for i in range(len(made.train_shards)))
        sides.append(set(stored.split(bytes([END_BYTE]))) - {b""})
    assert sides[0] and sides[1] and not sides[0] & sides[1]


PAIRS = [{"q": f"What is {i} plus 1?", "a": str(i + 1)} for i in range(60)]


def instructions(folder: Path, loss: str, template: str = "{prompt}\n{completion}", **more) -> Packed:
    jsonl(folder, PAIRS)
    source = Source(source="file:c.jsonl", prompt="q", completion="a", template=template, loss=loss)
    return corpus(folder, source, block=200, name=f"{loss}{len(template)}", **more)


@pytest.mark.parametrize(
    "template", ["{prompt}\n{completion}", "Q: {prompt} A: {completion} (end)", "{completion}<{prompt}"]
)
def test_a_completion_and_the_end_carry_loss_and_the_rest_is_read(tmp_path, template):
    made = instructions(tmp_path, "completion", template)
    windows = made.gather("train", np.arange(made.train_windows))
    whole = instructions(tmp_path, "all", template)
    plain = whole.gather("train", np.arange(whole.train_windows))
    assert np.array_equal(np.where(windows < 0, ~windows, windows), plain)
    assert made.vocab_size == 256 and whole.dtype == "uint8" and made.dtype == "uint16"
    stream = np.concatenate([windows[:, :-1].ravel(), windows[-1, -1:]])
    text = bytes(np.where(stream < 0, ~stream, stream).astype(np.uint8).tolist()).decode()
    carried = "".join(letter for letter, token in zip(text, stream, strict=True) if token >= 0)
    kept = [row["a"] for row in PAIRS if not is_heldout(template.format(prompt=row["q"], completion=row["a"]), 0.3)]
    assert ("".join(answer + chr(END_BYTE) for answer in kept)).startswith(carried) and len(carried) > 20


def test_counted_is_the_number_of_targets_that_carry_loss(tmp_path):
    made = instructions(tmp_path, "completion", sequence_length=4)
    every = np.arange(made.train_windows)
    counted = made.counted("train", every)
    assert np.array_equal(counted, (made.gather("train", every)[:, 1:] >= 0).sum(axis=1))
    assert counted.dtype == np.int64 and counted.min() == 0 and counted.max() > 0


def test_what_is_trained_on_is_part_of_a_fingerprint(write, tmp_path):
    jsonl(tmp_path, PAIRS)

    def fingerprint(**changes) -> str:
        pair = {"source": "file:c.jsonl", "prompt": "q", "completion": "a", "template": "{prompt} {completion}"}
        return open_sweep(write(data__post={**pair, **changes}), tmp_path / "store").data["post"]

    found = [fingerprint(), fingerprint(loss="completion"), fingerprint(template="{prompt}\n{completion}"), fingerprint(completion="q")]  # fmt: skip
    assert len(set(found)) == 4
    assert fingerprint(loss="all") == found[0]


def test_validation_and_test_windows_are_never_the_same(tmp_path):
    texts = [{"text": f"{i:07}"} for i in range(20_000)]  # eight bytes with the end: no two windows are equal
    made = corpus(tmp_path, jsonl(tmp_path, texts))
    tested = {window.tobytes() for window in made.heldout(100)}
    for count in (1, 7, 400, made.heldout_windows - 100):
        windows = made.validation(count, 100)
        assert windows.shape == (count, 17)
        assert not tested & {window.tobytes() for window in windows}
        assert len({window.tobytes() for window in windows}) == count
    with pytest.raises(UserError, match=f"more than the {made.heldout_windows} held out"):
        made.validation(made.heldout_windows - 99, 100)


def test_held_out_windows_that_are_too_few_for_testing_and_validation_are_told(write, tmp_path):
    sweep = open_sweep(write(), tmp_path / "store")
    made = corpus(tmp_path, Source(source="builtin:web", size=8_000))
    enough = made.heldout_windows - sweep.spec.data.heldout_windows
    pools, asked = dict.fromkeys(("pre", "post", "ft"), made), dict.fromkeys(("pre", "post", "ft"), 1)
    assert shortfalls(sweep.spec, pools, asked, enough) == ([], [])
    errors, _ = shortfalls(sweep.spec, pools, asked, enough + 1)
    assert [f"asks for 16 and {enough + 1} more are to validate on" in error for error in errors] == [True] * 3


def test_blocks_are_bounded_whatever_the_documents():
    sizes = [block.size for block in blocks(sources.documents(Source(source="builtin:web", size=200_000), Path()), 5_000)]  # fmt: skip
    longest = max(len(text) for text in builtin.documents("web", 200_000))
    assert all(5_000 <= size < 5_000 + longest for size in sizes[:-1])
    assert BLOCK_BYTES == 16 << 20


def test_real_instructions_carry_loss_on_their_completions_and_nowhere_else(tmp_path):
    if not CORPORA.exists():
        pytest.skip(f"no real corpora at {CORPORA}")
    path, template = CORPORA / "instructions_t0.jsonl", "{prompt}\n{completion}"
    with path.open() as file:
        pairs = [json.loads(line) for line in file]
    source = Source(source=f"file:{path}", prompt="prompt", completion="completion", template=template, loss="completion")  # fmt: skip
    made = corpus(tmp_path, source, block=300_000, sequence_length=64)
    windows = made.gather("train", np.arange(made.train_windows))
    carried = windows[:, :-1][windows[:, :-1] >= 0].astype(np.uint8).tobytes()
    kept = [p["completion"] for p in pairs if not is_heldout(template.format(**p), 0.3)]
    expected = "".join(completion + chr(END_BYTE) for completion in kept).encode()
    assert expected.startswith(carried) and len(expected) - len(carried) < 64
    assert (made.counted("train", np.arange(made.train_windows)) == 0).any(), "long prompts fill whole windows"


def test_a_corpus_left_half_packed_is_kept_for_who_comes_back_and_cleared_at_last(write, tmp_path):
    store = open_sweep(write(), tmp_path / "store").store
    for name, days in (("new", 3), ("old", 15)):
        folder = store.data(f"{name}.partial")
        folder.mkdir(parents=True)
        os.utime(folder, (time.time() - days * 86_400,) * 2)
    store.create()
    assert [path.name for path in (store.root / "data").iterdir()] == ["new.partial"]
