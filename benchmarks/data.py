"""What data cost: packing against the tokenizer alone, memory against the size of the corpus, reading against training.

    python benchmarks/data.py [--megabytes 4]

Each ratio is of two things timed in turn in this one process, on one core, in CPU seconds, and the median of three: who
else uses the machine matters little. Two minutes on one core.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core: all figures are per core

import numpy as np
import torch
from tokenizers import Tokenizer

from ee_ray.data import builtin, tokenizer
from ee_ray.data.build import pack
from ee_ray.data.order import Run, windows
from ee_ray.data.pack import Packed
from ee_ray.data.shards import BLOCK_BYTES
from ee_ray.data.tokens import BYTES, Encoding
from ee_ray.data.workers import cores, processes
from ee_ray.loss import token_losses
from ee_ray.model import build_config, build_model
from ee_ray.spec.data import Source
from ee_ray.spec.model import PRESETS

TIMES = 3
BLOCK = 1 << 20  # of text: more blocks of less text than `prepare` makes
LENGTH = 128
MEMORY = """
import sys
from pathlib import Path
from ee_ray.data.build import pack
from ee_ray.data.tokens import Encoding
from ee_ray.spec.data import Source
folder, name, path, end, size, block = Path(sys.argv[1]), *sys.argv[2:]
identity = {"heldout_fraction": 0.1, "sequence_length": 128}
pack(Source(source="file:" + name), folder, identity, folder / (name + ".packed"), Encoding(path or None, int(end), int(size)), lambda size: None, block_bytes=int(block))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def timed(act: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    begun = clock()
    act()
    return clock() - begun


def made(folder: Path, megabytes: int) -> list[str]:
    """Generated text of the web, as documents and as web.jsonl."""
    texts = list(builtin.documents("web", megabytes * 1_000_000))
    with (folder / "web.jsonl").open("w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    return texts


def trained(folder: Path, texts: list[str]) -> Encoding:
    """A byte-level BPE of 8,192 tokens, as `tokenizer: {train: ...}` makes them."""
    found = tokenizer.train(iter(texts[:5000]), 8192)
    found.save(str(folder / "tokenizer.json"))
    return Encoding(str(folder / "tokenizer.json"), found.token_to_id(tokenizer.END), found.get_vocab_size())


def packing(folder: Path, texts: list[str], encoding: Encoding) -> Packed:
    """Tokenizing and packing from a file, against the tokenizer's own encode_batch on the same text in memory."""
    assert encoding.path
    encoder = Tokenizer.from_file(encoding.path)
    size = sum(len(text.encode()) for text in texts)

    def pack_all(encoding: Encoding, name: str, workers: int) -> Packed:
        identity = {"heldout_fraction": 0.1, "sequence_length": LENGTH}
        return pack(Source(source="file:web.jsonl"), folder, identity, folder / name, encoding, lambda n: None, processes(workers), BLOCK)  # fmt: skip

    alone, ours, two = [], [], []
    for turn in range(TIMES):
        alone.append(timed(lambda: encoder.encode_batch(texts)))
        ours.append(timed(lambda turn=turn: pack_all(encoding, f"one{turn}", 1)))
        two.append(timed(lambda turn=turn: pack_all(encoding, f"all{turn}", cores()), time.perf_counter))
    ratios = [a / o for a, o in zip(alone, ours, strict=True)]
    print(f"text                            {size / 1e6:.0f} MB in {len(texts):,} documents, {encoding.vocab_size:,} tokens in the vocabulary")  # fmt: skip
    print(f"encode_batch alone              {size / 1e6 / statistics.median(alone):.2f} MB/s on one core")
    print(f"read, split, encode, pack       {size / 1e6 / statistics.median(ours):.2f} MB/s on one core")
    print(f"packing / encode_batch          {statistics.median(ratios):.3f} (lowest {min(ratios):.3f}); goal 0.85")
    print(f"{cores()} processes                     {size / 1e6 / min(two):.2f} MB/s by the clock, at best; their start is included")  # fmt: skip
    seconds = timed(lambda: pack_all(BYTES, "bytes", 1))
    print(f"bytes as tokens                 {size / 1e6 / seconds:.0f} MB/s of CPU time")
    return pack_all(encoding, "for-reading", 1)


def memory(folder: Path, texts: list[str], encoding: Encoding) -> None:
    """Peak resident memory of packing in one process, for a corpus and one ten times as large."""
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    whole = sum(map(len, lines))
    for what, encoding_, block, sizes in (("BPE", encoding, BLOCK, (4, 40)), ("bytes", BYTES, BLOCK_BYTES, (36, 360))):
        peaks = []
        for megabytes in sizes:
            name = f"{what}{megabytes}.jsonl"
            with (folder / name).open("w") as file:
                for _ in range(max(1, megabytes * 1_000_000 // whole)):
                    file.writelines(lines)
            rest = (encoding_.path or "", encoding_.end, encoding_.vocab_size, block)
            command = [sys.executable, "-c", MEMORY, str(folder), name, *map(str, rest)]
            peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1024)
            size = (folder / name).stat().st_size / 1e6
            print(f"peak memory, {what:<6} {size:>6.0f} MB   {peaks[-1]:.0f} MB")
        print(f"peak of the larger / smaller    {peaks[1] / peaks[0]:.2f}")


def reading(packed: Packed) -> None:
    """Gathering batches in a training run's order, alone and against a step of the nano model on one core."""
    order = windows(Run(packed.train_windows, 0, 64 * 200, 0))
    batches = order.reshape(200, 64)
    seconds = timed(lambda: [packed.gather("train", batch) for batch in batches])
    tokens = batches.size * LENGTH
    print(f"reading alone                   {tokens / seconds / 1e6:.1f} M tokens/s from {len(packed.train_shards)} shards; goal 1 M tokens/s")  # fmt: skip
    torch.set_num_threads(1)
    model = build_model(build_config(PRESETS["nano"], packed.vocab_size, LENGTH), 0)
    optimizer = torch.optim.AdamW(model.parameters())

    def step(batch: np.ndarray) -> float:
        """The share of reading in one step's time."""
        begun = time.process_time()
        rows = packed.gather("train", batch)
        gathered = time.process_time() - begun
        token_losses(model, torch.from_numpy(rows)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        return gathered / (time.process_time() - begun)

    shares = [step(batch) for batch in batches[:12, :16]][2:]
    print(f"reading / step of the nano model  {100 * statistics.median(shares):.2f}% at 16 windows of {LENGTH} tokens; goal 2%")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=4)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        texts = made(folder, arguments.megabytes)
        encoding = trained(folder, texts)
        packed = packing(folder, texts, encoding)
        reading(packed)
        memory(folder, texts, encoding)


if __name__ == "__main__":
    main()
