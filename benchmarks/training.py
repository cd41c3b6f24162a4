"""Training against a bare loop and against transformers.Trainer: the same model, batches, order and hyper-parameters.

    python benchmarks/training.py [--device cuda] [--models 0.1M 1M 10M] [--turns 5] [--cores 1] [--json FILE]

Each contestant is a process of its own; they take turns of some steps, one at a time, and each turn's ratios are taken before
the median. On one core, one thread each, time is the contestant's CPU time, so that others on the machine matter little (wall
time is printed too). With --cores 2 each has two cores and uses them its own way: the others by threads, ee_ray by training
as many stages at once; time is wall time then, and on CUDA. Five minutes on a quiet core; a GPU takes about as long.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn

from ee_ray.devices import peak_flops, training_flops
from ee_ray.identity import Course, Part, StageIdentity
from ee_ray.loss import token_losses
from ee_ray.model import build_config, build_model
from ee_ray.spec.model import PRESETS
from ee_ray.train import BETAS, CLIP_NORM, Batches, Keeper, train
from ee_ray.world import World

LLAMA = {"model_type": "llama", "tie_word_embeddings": True}
# fields, vocabulary, sequence length, sequences a step, steps a turn
MODELS: dict[str, tuple[dict[str, Any], int, int, int, int]] = {
    "0.1M": (PRESETS["nano"], 257, 128, 16, 20),
    "1M": ({**LLAMA, "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4, "num_attention_heads": 4}, 1024, 256, 8, 5),
    "10M": ({**LLAMA, "hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 6, "num_attention_heads": 8}, 8192, 256, 8, 1),
    "smollm2-135m": (PRESETS["smollm2-135m"], 49_152, 1024, 64, 10),
    "smollm2-1b": (PRESETS["smollm2-1b"], 49_152, 1024, 64, 4),
}  # fmt: skip
CONTESTANTS = ("ee_ray", "bare", "trainer")
WARM_TURNS = 2
RATE = 1e-3


def stage_of(name: str, steps: int, precision: str) -> StageIdentity:
    fields, _, length, batch, _ = MODELS[name]
    part = Part("pre", "generated", 0, steps * batch, 0)
    return StageIdentity(
        "pretrain", None, fields, 0, (part,), Course(0, part.stop, part.stop, 0), (), 0, length, batch, RATE, RATE, 0.0, precision,
    )  # fmt: skip


def turns(device: torch.device, every: int) -> Callable[[], None]:
    """Called after each step: at the end of a turn, say what it took and wait for the next."""
    at = {"step": 0, "wall": 0.0, "cpu": 0.0}

    def stepped() -> None:
        at["step"] += 1
        if at["step"] % every == 0:
            if device.type == "cuda":
                torch.cuda.synchronize()
            print(json.dumps({"wall": time.perf_counter() - at["wall"], "cpu": time.process_time() - at["cpu"], "peak": peak(device)}), flush=True)  # fmt: skip
            sys.stdin.readline()
            at["wall"], at["cpu"] = time.perf_counter(), time.process_time()

    return stepped


def peak(device: torch.device) -> int:
    """Bytes: of the device's memory, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))) * 1024


def contestant(who: str, name: str, device: torch.device, steps: int, threads: int) -> None:
    fields, vocabulary, length, batch, every = MODELS[name]
    torch.set_num_threads(threads)
    precision = "bf16" if device.type == "cuda" else "fp32"
    model = build_model(build_config(fields, vocabulary, length), 0).to(device)
    windows = np.random.default_rng(0).integers(0, vocabulary - 1, (steps * batch, length + 1))
    stepped = turns(device, every)
    sys.stdin.readline()
    if who == "ee_ray":
        order = np.stack([np.zeros(len(windows), np.int64), np.arange(len(windows))], axis=1)
        batches = Batches(order, lambda rows: windows[rows[:, 1]], lambda rows: len(rows) * length)
        keeper = Keeper(save=lambda step, collect: stepped())
        train(model, batches, stage_of(name, steps, precision), World(device), None, lambda tokens: None, keeper=keeper)
    elif who == "bare":
        bare(model, torch.from_numpy(windows).to(device).split(batch), precision, stepped)
    else:
        by_transformers(model, windows, batch, steps, precision, stepped)


def bare(model: nn.Module, batches: tuple[torch.Tensor, ...], precision: str, stepped: Callable[[], None]) -> None:
    """What anyone would write, over batches that are in memory."""
    optim = torch.optim.AdamW(model.parameters(), lr=RATE, betas=BETAS, weight_decay=0.0, fused=True)
    model.train()
    micro = 8 if batches[0].is_cuda else len(batches[0])  # what fits whole logits
    for batch in batches:
        optim.zero_grad(set_to_none=True)
        for windows in batch.split(micro):
            with torch.autocast(batch.device.type, torch.bfloat16, enabled=precision == "bf16"):
                loss = token_losses(model, windows).sum() / (len(batch) * (batch.shape[1] - 1))
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optim.step()
        stepped()


def by_transformers(model: Any, windows: Any, batch: int, steps: int, precision: str, stepped: Callable[[], None]) -> None:  # fmt: skip
    import tempfile

    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Stepped(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            stepped()

    class InOrder(Trainer):
        def _get_train_sampler(self, *rest: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    # Labels are shifted by the model, so it reads the last token too: 1 of 129 tokens more than ours.
    data = [{"input_ids": row[:-1], "labels": row[:-1]} for row in torch.from_numpy(windows)]
    micro = 8 if precision == "bf16" else batch
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=micro, gradient_accumulation_steps=batch // micro,
            learning_rate=RATE, lr_scheduler_type="cosine", adam_beta1=BETAS[0], adam_beta2=BETAS[1], max_grad_norm=CLIP_NORM,
            weight_decay=0.0, bf16=precision == "bf16", use_cpu=precision == "fp32", report_to=[], save_strategy="no",
            logging_steps=max(1, steps // 50), disable_tqdm=True, remove_unused_columns=False,
        )  # fmt: skip
        InOrder(model, arguments, train_dataset=data, callbacks=[Stepped()]).train()


def measure(name: str, device: str, count: int, cores: int) -> dict[str, Any]:
    every = MODELS[name][4]
    steps = (count + WARM_TURNS) * every + 1
    found: dict[str, list[dict[str, float]]] = {who: [] for who in CONTESTANTS}
    running = {}
    for who in CONTESTANTS:
        processes, threads = (cores, 1) if who == "ee_ray" else (1, cores)
        command = [sys.executable, __file__, "--contestant", who, name, str(steps), str(threads), "--device", device]
        running[who] = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(processes)
        ]
    for turn in range(count + WARM_TURNS):
        for who, processes in running.items():
            took = _turn(who, processes)
            if turn >= WARM_TURNS:
                found[who].append(took)
    for process in chain(*running.values()):
        process.kill()
        process.wait()
    return summary(name, device, cores, found)


def _turn(who: str, processes: list[subprocess.Popen[str]]) -> dict[str, float]:
    """All processes of a contestant take one turn together; the slowest counts, for so many times the tokens."""
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    took = []
    for process in processes:
        assert process.stdout
        line = next((line for line in process.stdout if line.startswith('{"wall"')), None)
        if line is None:
            raise SystemExit(f"{who} ended: see above")
        took.append(json.loads(line))
    share = {clock: max(one[clock] for one in took) / len(took) for clock in ("wall", "cpu")}
    return {**share, "peak": sum(one["peak"] for one in took)}


def summary(name: str, device: str, cores: int, found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    fields, vocabulary, length, batch, every = MODELS[name]
    clock = "wall" if device == "cuda" or cores > 1 else "cpu"
    config = build_config(fields, vocabulary, length)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build_model(config, 0).parameters())
    tokens = every * batch * length
    flops = training_flops(parameters, config.num_hidden_layers, config.hidden_size, length)
    most = peak_flops(torch.cuda.get_device_name()) if device == "cuda" else None
    result: dict[str, Any] = {"model": name, "parameters": parameters, "device": device, "cores": cores, "clock": clock}
    for who, times in found.items():
        speed = tokens / statistics.median(turn[clock] for turn in times)
        result[who] = {
            "tokens_per_s": round(speed, 1),
            "tokens_per_s_wall": round(tokens / statistics.median(turn["wall"] for turn in times), 1),
            "share_of_peak": round(speed * flops / most, 4) if most else None,
            "peak_mb": round(max(turn["peak"] for turn in times) / 1e6),
        }
    for other in CONTESTANTS[1:]:
        ratios = [b[clock] / a[clock] for a, b in zip(found["ee_ray"], found[other], strict=True)]
        result[f"over_{other}"] = {"median": round(statistics.median(ratios), 3), "least": round(min(ratios), 3), "most": round(max(ratios), 3)}  # fmt: skip
    return result


def show(result: dict[str, Any]) -> None:
    print(
        f"{result['model']}: {result['parameters']:,} parameters, {result['device']}, {result['cores']} core(s), {result['clock']} time"
    )
    for who in CONTESTANTS:
        one = result[who]
        share = f"{100 * one['share_of_peak']:.1f}% of peak" if one["share_of_peak"] else ""
        print(f"  {who:<8} {one['tokens_per_s']:>10,.0f} tokens/s   {one['peak_mb']:>7,} MB   {share}")
    for other, goal in (("bare", 0.97), ("trainer", 1.15)):
        ratio = result[f"over_{other}"]
        print(f"  ee_ray / {other:<8} {ratio['median']:.3f} ({ratio['least']:.3f} to {ratio['most']:.3f}); goal {goal}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--models", nargs="+", choices=MODELS)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", help="also write results there")
    parser.add_argument(
        "--cores", type=int, default=1, help="of a CPU: one stage a core against one model on all cores"
    )
    parser.add_argument("--contestant", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        who, name, steps, threads = arguments.contestant
        contestant(who, name, torch.device(arguments.device), int(steps), int(threads))
        return
    names = arguments.models or (["smollm2-135m", "smollm2-1b"] if arguments.device == "cuda" else ["0.1M", "1M", "10M"])  # fmt: skip
    results = []
    for name in names:
        results.append(measure(name, arguments.device, arguments.turns, arguments.cores))
        show(results[-1])
        if arguments.json:
            with open(arguments.json, "w") as file:
                json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
