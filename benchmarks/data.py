"""What data cost: packing against the tokenizer alone, memory against the size of the corpus, reading against training.

    python benchmarks/data.py [--megabytes 24]

Each ratio is of two things timed in turn in this one process on one core, and the median of five; so a machine that is
shared slows both sides of it.
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
from ee_ray.data.tokens import BYTES, Encoding
from ee_ray.data.workers import cores, processes
from ee_ray.evaluate import token_losses
from ee_ray.model import build_config, build_model
from ee_ray.spec.data import Source
from ee_ray.spec.model import PRESETS

TIMES = 5
LENGTH = 128
MEMORY = """
import sys
from pathlib import Path
from ee_ray.data.build import pack
from ee_ray.data.tokens import Encoding
from ee_ray.spec.data import Source
folder, name, path, end, size = Path(sys.argv[1]), *sys.argv[2:]
identity = {"heldout_fraction": 0.1, "sequence_length": 128}
pack(Source(source="file:" + name), folder, identity, folder / (name + ".packed"), Encoding(path, int(end), int(size)), lambda size: None)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def timed(act: Callable[[], object]) -> float:
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun


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
        return pack(Source(source="file:web.jsonl"), folder, identity, folder / name, encoding, lambda n: None, processes(workers))  # fmt: skip

    alone, ours, two = [], [], []
    for turn in range(TIMES):
        alone.append(timed(lambda: encoder.encode_batch(texts)))
        ours.append(timed(lambda turn=turn: pack_all(encoding, f"one{turn}", 1)))
        two.append(timed(lambda turn=turn: pack_all(encoding, f"all{turn}", cores())))
    ratios = [a / o for a, o in zip(alone, ours, strict=True)]
    scaled = [o / t / cores() for o, t in zip(ours, two, strict=True)]
    print(f"text                            {size / 1e6:.0f} MB in {len(texts):,} documents, {encoding.vocab_size:,} tokens in the vocabulary")  # fmt: skip
    print(f"encode_batch alone              {size / 1e6 / statistics.median(alone):.2f} MB/s on one core")
    print(f"read, split, encode, pack       {size / 1e6 / statistics.median(ours):.2f} MB/s on one core")
    print(f"packing / encode_batch          {statistics.median(ratios):.3f} (lowest {min(ratios):.3f}); goal 0.85")
    print(f"{cores()} processes                     {size / 1e6 / statistics.median(two):.2f} MB/s, {statistics.median(scaled):.2f} of one core's each, start included")  # fmt: skip
    seconds = timed(lambda: pack_all(BYTES, "bytes", 1))
    print(f"bytes as tokens                 {size / 1e6 / seconds:.0f} MB/s on one core")
    return pack_all(encoding, "for-reading", 1)


def memory(folder: Path, texts: list[str], encoding: Encoding) -> None:
    """Peak resident memory of packing, in processes of their own."""
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    whole = sum(map(len, lines))
    for megabytes in (20, 60, 200):
        name = f"memory{megabytes}.jsonl"
        with (folder / name).open("w") as file:
            for _ in range(max(1, megabytes * 1_000_000 // whole)):
                file.writelines(lines)
        size = (folder / name).stat().st_size
        command = [sys.executable, "-c", MEMORY, str(folder), name, str(encoding.path), str(encoding.end), str(encoding.vocab_size)]  # fmt: skip
        peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(f"peak memory for {size / 1e6:>4.0f} MB         {peak / 1024:.0f} MB")


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
        gathered = 0.0
        begun = time.perf_counter()
        rows = packed.gather("train", batch)
        gathered = time.perf_counter() - begun
        token_losses(model, torch.from_numpy(rows)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        return gathered / (time.perf_counter() - begun)

    shares = [step(batch) for batch in batches[:12, :16]][2:]
    print(f"reading / step of the nano model  {100 * statistics.median(shares):.2f}% at 16 windows of {LENGTH} tokens; goal 2%")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=24)
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
