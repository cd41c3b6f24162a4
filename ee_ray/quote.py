"""What a sweep will cost before anything trains: stages, tokens, the factor that sharing saves, disk, time."""

import os
from collections import Counter
from typing import Any

from ee_ray.ledger import Ledger, read_ledger
from ee_ray.plan import budgets, distinct, parameters, trialwise_tokens
from ee_ray.sweep import Sweep

# Assumed until the store holds a measured stage of the same model: what one core, or one GPU, sustains in training.
CPU_FLOPS = 25e9
GPU_FLOPS = 150e12
FILES_BYTES = 30_000  # curve, record and headers of one stage


def _rate(sweep: Sweep, ledger: Ledger, params: int | None) -> tuple[float | None, str]:
    """Tokens per second of one slot, and where the figure comes from."""
    measured = [record["tokens_per_s"] for record in ledger.records.values() if record["kind"] == "pretrain"]
    if measured:
        return sum(measured) / len(measured), "measured in this store"
    if params is None:
        return None, "unknown for this architecture or tokenizer until a stage has run"
    execution = sweep.spec.execution
    flops = GPU_FLOPS * execution.gpus_per_worker or CPU_FLOPS * execution.cpus_per_worker
    return flops * execution.workers / (6 * params), "assumed: 25 GFLOP/s a CPU core, 150 TFLOP/s a GPU"


def epochs(sweep: Sweep) -> dict[str, float | None]:
    """Passes over each pool that its budget makes; None while the pool is not prepared."""
    asked = budgets(sweep.spec)
    pools = {role: sweep.packed(role) for role in asked}
    return {role: round(asked[role] / pool.train_windows, 4) if pool else None for role, pool in pools.items()}


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
    depend on results; `search.trials_at_most` bounds them and `tokens.later_at_most` prices them.
    """
    ledger = read_ledger(sweep.spec, sweep.data, sweep.store)
    stages = distinct(ledger.trials)
    to_train = sum(stage.identity.tokens for key, stage in stages.items() if key not in ledger.records)
    total = sum(stage.identity.tokens for stage in stages.values())
    trialwise = trialwise_tokens(ledger.trials)
    search = sweep.spec.search
    later = 0 if ledger.decision.stop else max(search.max_trials - len(ledger.trials), 0)
    dearest = max(sum(s.identity.tokens for s in distinct([trial]).values()) for trial in ledger.trials)
    room = max(search.max_tokens - total, 0) if search.max_tokens else later * dearest
    vocabulary = sweep.vocab_size()
    params = parameters(sweep.spec.model_config_fields, vocabulary) if vocabulary else None
    rate, rate_source = _rate(sweep, ledger, params)
    execution = sweep.spec.execution
    slots = (
        1
        if execution.gpus_per_worker
        else max(1, (os.cpu_count() or 1) // (execution.workers * execution.cpus_per_worker))
    )
    seconds = to_train / rate / slots if rate else None
    gpus = execution.workers * execution.gpus_per_worker
    return {
        "schema": 1,
        "sweep": sweep.spec.name,
        "setting": sweep.spec.setting,
        "stages": _stages(ledger),
        "tokens": {
            "to_train": to_train,
            "trialwise": trialwise,
            "saved_factor": round(trialwise / total, 3),
            "later_at_most": min(later * dearest, room),
        },
        "search": {
            "trials": len(ledger.trials),
            "trials_finished": len(ledger.results),
            "trials_at_most": len(ledger.trials) + later,
            "stop": ledger.decision.stop,
        },
        "epochs": epochs(sweep),
        "parameters": params,
        "disk_bytes": (4 * params + FILES_BYTES) * (len(stages) - len(ledger.records)) if params else None,
        "time_s": round(seconds, 1) if seconds is not None else None,
        "tokens_per_s": {"value": round(rate) if rate else None, "source": rate_source, "slots": slots},
        "gpu_hours": round(seconds * slots * gpus / 3600, 4) if seconds is not None else None,
        "warnings": warnings,
    }
