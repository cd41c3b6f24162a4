"""What a sweep will cost before anything trains: stages, tokens, the factor that sharing saves, disk, time."""

import itertools
import math
import os
from collections import Counter
from typing import Any

from ee_ray.devices import PEAK_FLOPS, training_flops
from ee_ray.identity import Stage
from ee_ray.ledger import Ledger, read_ledger
from ee_ray.plan import Point, build_trial, distinct, parameters, trialwise_tokens
from ee_ray.spec.data import ROLES
from ee_ray.sweep import Sweep

# Assumed until the store holds a measured stage of the same model: what one core sustains in training, and the share of
# a GPU's peak (llm-foundry trains models of 125M at 41% of an A100's; small models reach less of a larger device).
CPU_FLOPS = 25e9
GPU_SHARE = 0.35
FILES_BYTES = 30_000  # curve, record and headers of one stage
VOCABULARY = 49_152  # SmolLM2's, assumed until the tokenizer has been fetched or trained


def _rate(sweep: Sweep, ledger: Ledger, flops_per_token: int | None) -> tuple[float | None, str]:
    """Tokens per second of one slot, and where the figure comes from."""
    measured = [record["tokens_per_s"] for record in ledger.records.values() if record["kind"] == "pretrain"]
    if measured:
        return sum(measured) / len(measured), "measured in this store"
    if flops_per_token is None:
        return None, "unknown for this architecture until a stage has run"
    execution = sweep.spec.execution
    if execution.gpus_per_worker:
        flops = GPU_SHARE * PEAK_FLOPS[execution.gpu] * execution.gpus_per_worker
        source = f"assumed: {GPU_SHARE:.0%} of the peak of {execution.gpu}"
    else:
        flops, source = CPU_FLOPS * execution.cpus_per_worker, f"assumed: {CPU_FLOPS / 1e9:g} GFLOP/s a CPU core"
    return flops * execution.most_workers / flops_per_token, source


def _flops_per_token(sweep: Sweep, params: int | None) -> int | None:
    config = sweep.spec.model_config_fields
    if params is None:
        return None
    return training_flops(params, config["num_hidden_layers"], config["hidden_size"], sweep.spec.sequence_length)


def epochs(sweep: Sweep) -> dict[str, float | None]:
    """Passes over each pool that the recipe which reads most of it makes, at most where stage 2 stops early; None while
    the pool is not prepared."""
    spec, pools = sweep.spec, {role: sweep.packed(role) for role in ROLES}
    read = dict.fromkeys(pools, 0)
    for choice, level in itertools.product(range(len(spec.choices)), (0, spec.search.ladder)):
        trial = build_trial(spec, sweep.data, Point(level, spec.search.seeds[0], choice))
        path = [*trial.pretrains, *([trial.posttrain] if trial.posttrain else []), trial.finetunes[0][1]]
        for role in read:
            windows = sum(part.windows for stage in path for part in stage.identity.parts if part.role == role)
            read[role] = max(read[role], windows)
    return {role: round(read[role] / pool.train_windows, 4) if pool else None for role, pool in pools.items()}


def _stages(ledger: Ledger) -> list[dict[str, Any]]:
    sharers = Counter(key for trial in ledger.trials for key in distinct([trial]))
    return [
        {
            "key": key,
            "kind": stage.kind,
            "parent": stage.parent,
            "tokens": stage.identity.tokens,
            "steps": stage.identity.steps,
            "warmup_steps": stage.identity.warmup_steps,
            "status": "cached" if key in ledger.records else "planned",
            "shared_by": sharers[key],
        }
        for key, stage in distinct(ledger.trials).items()
    ]


def quote(sweep: Sweep, warnings: list[str]) -> dict[str, Any]:
    """The plan as JSON, schema 1.

    `stages` and `tokens` count the trials that are certain: those the search has asked for so far. Later rounds
    depend on results; `search.trials_at_most` bounds them and `tokens.later_at_most` prices them. Where stage 2 stops
    early, its tokens are the most that it may train.
    """
    ledger = read_ledger(sweep.spec, sweep.data, sweep.store)
    stages = distinct(ledger.trials)
    total = sum(stage.identity.tokens for stage in stages.values())
    search = sweep.spec.search
    later = 0 if ledger.decision.stop else max(search.max_trials - len(ledger.trials), 0)
    dearest = max(sum(s.identity.tokens for s in distinct([trial]).values()) for trial in ledger.trials)
    room = max(search.max_tokens - total, 0) if search.max_tokens else later * dearest
    vocabulary = sweep.vocab_size() or VOCABULARY
    params = parameters(sweep.spec.model_config_fields, vocabulary)
    rate, rate_source = _rate(sweep, ledger, _flops_per_token(sweep, params))
    return {
        "schema": 1,
        "sweep": sweep.spec.name,
        "setting": sweep.spec.setting,
        "stages": _stages(ledger),
        "tokens": {
            **_tokens(stages, set(ledger.records), trialwise_tokens(ledger.trials)),
            "later_at_most": min(later * dearest, room),
        },
        "search": {
            "trials": len(ledger.trials),
            "trials_finished": len(ledger.results),
            "trials_at_most": len(ledger.trials) + later,
            "choices": len(sweep.spec.choices),
            "stop": ledger.decision.stop,
        },
        "epochs": epochs(sweep),
        "parameters": params,
        **_cost(sweep, stages, set(ledger.records), params, rate),
        "tokens_per_s": {"value": round(rate) if rate else None, "source": rate_source, "slots": _slots(sweep)},
        "warnings": warnings,
    }


def in_short(quotation: dict[str, Any]) -> str:
    """A line for the head of a spec: what of the plan depends on the spec alone."""
    tokens, disk = quotation["tokens"], quotation["disk_bytes"]
    saved = f" ({tokens['saved_factor']:.1f} times fewer than one path a trial)" if tokens["saved_factor"] > 1 else ""
    parts = [f"{_count(tokens['to_train'], 'B')} tokens{saved}"]
    if disk:
        parts.append(f"{_count(disk, 'G')}B of disk")
    if quotation["gpu_hours"]:
        parts.append(f"{quotation['gpu_hours']:,.0f} GPU-hours ({quotation['tokens_per_s']['source']})")
    return ", ".join(parts)


def _count(number: float, billion: str) -> str:
    """Three digits and a letter: 98.3B is 98,300,000,000."""
    power = min(4, int(math.log10(max(number, 1)) // 3))
    return f"{number / 1000**power:.3g}{['', 'k', 'M', billion, 'T'][power]}"


def together(sweeps: list[Sweep], quotations: list[dict[str, Any]]) -> dict[str, Any]:
    """The plan of several sweeps over one store, each stage that they share counted once."""
    ledgers = [read_ledger(sweep.spec, sweep.data, sweep.store) for sweep in sweeps]
    had = {key for ledger in ledgers for key in ledger.records}
    trialwise = sum(trialwise_tokens(ledger.trials) for ledger in ledgers)
    stages: dict[str, Stage] = {}
    costs = []
    for sweep, ledger, quotation in zip(sweeps, ledgers, quotations, strict=True):
        mine = {key: stage for key, stage in distinct(ledger.trials).items() if key not in stages}
        stages |= mine
        costs.append(_cost(sweep, mine, had, quotation["parameters"], quotation["tokens_per_s"]["value"]))
    known = all(cost["gpu_hours"] is not None for cost in costs)
    return {
        "stages": {"planned": len(stages.keys() - had), "cached": len(stages.keys() & had)},
        "tokens": _tokens(stages, had, trialwise),
        "disk_bytes": sum(cost["disk_bytes"] or 0 for cost in costs),
        "gpu_hours": round(sum(cost["gpu_hours"] for cost in costs), 4) if known else None,
    }


def _tokens(stages: dict[str, Stage], had: set[str], trialwise: int) -> dict[str, Any]:
    total = sum(stage.identity.tokens for stage in stages.values())
    return {
        "to_train": sum(stage.identity.tokens for key, stage in stages.items() if key not in had),
        "trialwise": trialwise,
        "saved_factor": round(trialwise / total, 3),
    }


def _slots(sweep: Sweep) -> int:
    execution = sweep.spec.execution
    here = (os.cpu_count() or 1) // (execution.most_workers * execution.cpus_per_worker)
    return 1 if execution.gpus_per_worker else max(1, here)


def _cost(
    sweep: Sweep, stages: dict[str, Stage], had: set[str], params: int | None, rate: float | None
) -> dict[str, Any]:
    """Disk and time of what is not there yet. Fp32 weights; a stage that another goes on from also keeps two moments."""
    missing = [stage.identity for key, stage in stages.items() if key not in had]
    execution = sweep.spec.execution
    seconds = sum(stage.tokens for stage in missing) / rate / _slots(sweep) if rate else None
    gpus = execution.most_workers * execution.gpus_per_worker
    copies = sum(3 if stage.is_continued else 1 for stage in missing)
    return {
        "disk_bytes": 4 * params * copies + FILES_BYTES * len(missing) if params else None,
        "time_s": round(seconds, 1) if seconds is not None else None,
        "gpu_hours": round(seconds * _slots(sweep) * gpus / 3600, 4) if seconds is not None else None,
    }
