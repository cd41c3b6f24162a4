"""What a sweep will cost before anything trains: stages, tokens, the factor that sharing saves, disk, time."""

import itertools
import math
import os
from collections import Counter
from typing import Any

from ee_ray.capacity import BOOTSTRAP, declared, slot_counts
from ee_ray.devices import PEAK_FLOPS, training_flops
from ee_ray.errors import UserError
from ee_ray.identity import Stage
from ee_ray.ledger import Ledger, read_ledger
from ee_ray.plan import Point, build_trial, distinct, parameters, trialwise_tokens
from ee_ray.propose import beyond_budget
from ee_ray.spec.data import ROLES
from ee_ray.spec.execution import Shape
from ee_ray.spec.stages import KINDS, Kind
from ee_ray.sweep import Sweep

# Assumed until the store holds a measured stage of the same model: what one core sustains in training, and the share of
# a GPU's peak (llm-foundry trains models of 125M at 41% of an A100's; small models reach less of a larger device).
CPU_FLOPS = 25e9
GPU_SHARE = 0.35
FILES_BYTES = 30_000  # curve, record and headers of one stage
VOCABULARY = 49_152  # SmolLM2's, assumed until the tokenizer has been fetched or trained


Rates = dict[Kind, float]  # tokens per second of one slot


def _power(shape: Shape, gpu: str) -> float:
    """FLOP/s that one slot is assumed to sustain."""
    each = GPU_SHARE * PEAK_FLOPS[gpu] * shape.gpus_per_worker or CPU_FLOPS * shape.cpus_per_worker
    return each * shape.most_workers


def _rates(
    sweep: Sweep, ledger: Ledger, flops_per_token: int | None, measured_now: float | None
) -> tuple[Rates | None, str]:
    """How fast stages of each kind train, and where the figure for pretraining comes from. Kinds that take something else
    than pretraining are reckoned by what they take, until some were measured."""
    execution = sweep.spec.execution
    shapes = {kind: execution.shape(kind) for kind in KINDS}
    power = {kind: _power(shape, execution.gpu) for kind, shape in shapes.items()}
    measured: dict[str, list[float]] = {}
    for record in ledger.records.values():
        measured.setdefault(record["kind"], []).append(record["tokens_per_s"])
    if measured_now:
        first, source = measured_now * shapes["pretrain"].most_workers, "measured now, on this machine"
    elif pretrains := measured.get("pretrain"):
        first, source = sum(pretrains) / len(pretrains), "measured in this store"
    elif flops_per_token is None:
        return None, "unknown for this architecture until a stage has run"
    else:
        first = power["pretrain"] / flops_per_token
        on = f"{GPU_SHARE:.0%} of the peak of {execution.gpu}" if shapes["pretrain"].gpus_per_worker else f"{CPU_FLOPS / 1e9:g} GFLOP/s a CPU core"  # fmt: skip
        source = f"assumed: {on}"
    rates: Rates = {}
    for kind in KINDS:
        own = measured.get(kind) if shapes[kind] != shapes["pretrain"] else None
        rates[kind] = sum(own) / len(own) if own else first * power[kind] / power["pretrain"]
    return rates, source


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


def _stages(ledger: Ledger, ladder: int) -> list[dict[str, Any]]:
    """Each with the lambda and seed of the first trial that asks for it."""
    first: dict[str, Point] = {}
    for trial in ledger.trials:
        for key in distinct([trial]):
            first.setdefault(key, trial.point)
    sharers = Counter(key for trial in ledger.trials for key in distinct([trial]))
    return [
        {
            "key": key,
            "kind": stage.kind,
            "parent": stage.parent,
            "lambda": first[key].level / ladder,
            "seed": stage.identity.seed,
            "learning_rate": stage.identity.learning_rate,
            "tokens": stage.identity.tokens,
            "steps": stage.identity.steps,
            "warmup_steps": stage.identity.warmup_steps,
            "status": "cached" if key in ledger.records else "planned",
            "shared_by": sharers[key],
        }
        for key, stage in distinct(ledger.trials).items()
    ]


def quote(
    sweep: Sweep, warnings: list[str], measured: float | None = None, price: float | None = None
) -> dict[str, Any]:
    """The plan as JSON, schema 1.

    `stages` and `tokens` count the trials that are certain: those the search has asked for so far. Later rounds
    depend on results; `search.trials_at_most` bounds them and `tokens.later_at_most` prices them. Where stage 2 stops
    early, its tokens are the most that it may train.

    measured: tokens per second of one worker, where that was measured.  price: of a GPU-hour, in any currency.

    Raises:
        UserError: no node of the cluster, as far as it is known here, can hold some stage.
    """
    check_placed(sweep)
    ledger = read_ledger(sweep.spec, sweep.data, sweep.store)
    stages = distinct(ledger.trials)
    spent = sum(stage.identity.tokens for key, stage in stages.items() if key not in ledger.prices.found)
    search = sweep.spec.search
    later = 0 if ledger.decision.stop else max(search.max_trials - len(ledger.trials), 0)
    dearest = max(sum(s.identity.tokens for s in distinct([trial]).values()) for trial in ledger.trials)
    room = max(search.max_tokens - spent, 0) if search.max_tokens else later * dearest
    vocabulary = sweep.vocab_size() or VOCABULARY
    params = parameters(sweep.spec.model_config_fields, vocabulary)
    rates, rate_source = _rates(sweep, ledger, _flops_per_token(sweep, params), measured)
    cost = _cost(sweep, stages, set(ledger.records), params, rates)
    return {
        "schema": 1,
        "sweep": sweep.spec.name,
        "setting": sweep.spec.setting,
        "stages": _stages(ledger, sweep.spec.search.ladder),
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
        **cost,
        "price": _price(sweep, cost["gpu_hours"], min(later * dearest, room), rates, price),
        "tokens_per_s": _speed(sweep, rates, rate_source),
        "warnings": warnings + _over_budget(sweep, ledger),
    }


def _speed(sweep: Sweep, rates: Rates | None, source: str) -> dict[str, Any]:
    """Pretraining's tokens per second in one slot, how many slots there are here, and the rate of each kind."""
    by_kind = {kind: round(rate) for kind, rate in rates.items()} if rates else None
    value = by_kind["pretrain"] if by_kind else None
    return {"value": value, "source": source, "slots": _slots(sweep.spec.execution.shape("pretrain")), "by_kind": by_kind}  # fmt: skip


def _price(
    sweep: Sweep, gpu_hours: float | None, later: int, rates: Rates | None, price: float | None
) -> dict[str, float] | None:
    """What the GPU-hours cost: of the trials that are certain, and at most with those of later rounds. None without a
    price, a known rate, or GPUs."""
    if price is None or gpu_hours is None or not rates:
        return None
    dearest = max(_gpus(sweep, kind) / rate for kind, rate in rates.items())
    if not dearest:
        return None
    most = gpu_hours + later * dearest / 3600
    return {"per_gpu_hour": price, "certain": round(gpu_hours * price, 2), "at_most": round(most * price, 2)}


def _gpus(sweep: Sweep, kind: Kind) -> float:
    shape = sweep.spec.execution.shape(kind)
    return shape.most_workers * shape.gpus_per_worker


def check_placed(sweep: Sweep) -> None:
    """Refuse stages that the cluster can never hold, where it is known here what it may consist of.

    Raises:
        UserError: with every shape that no node has.
    """
    nodes, types = declared(os.environ, BOOTSTRAP.expanduser())
    try:
        slot_counts(sweep.spec.execution, nodes, types) if types else None
    except UserError as error:
        raise UserError(f"{sweep.path}: {problem}" for problem in error.problems) from None


def _over_budget(sweep: Sweep, ledger: Ledger) -> list[str]:
    problem = beyond_budget(sweep.spec, ledger.prices)
    return [problem] if problem else []


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
        costs.append(_cost(sweep, mine, had, quotation["parameters"], quotation["tokens_per_s"]["by_kind"]))
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


def _slots(shape: Shape) -> int:
    """How many slots this machine is reckoned to hold: its CPUs, or one GPU for each of a worker's (or parts of one)."""
    if shape.gpus_per_worker:
        return max(1, int(1 / shape.gpus_per_worker + 1e-9))
    return max(1, (os.cpu_count() or 1) // (shape.most_workers * shape.cpus_per_worker))


def _cost(
    sweep: Sweep, stages: dict[str, Stage], had: set[str], params: int | None, rates: Rates | None
) -> dict[str, Any]:
    """Disk and time of what is not there yet. Fp32 weights; a stage that another goes on from also keeps two moments."""
    missing = [stage.identity for key, stage in stages.items() if key not in had]
    copies = sum(3 if stage.is_continued else 1 for stage in missing)
    time_s, gpu_seconds = 0.0, 0.0
    for kind, rate in (rates or {}).items():
        seconds = sum(stage.tokens for stage in missing if stage.kind == kind) / rate
        time_s += seconds / _slots(sweep.spec.execution.shape(kind))
        gpu_seconds += seconds * _gpus(sweep, kind)
    return {
        "disk_bytes": 4 * params * copies + FILES_BYTES * len(missing) if params else None,
        "time_s": round(time_s, 1) if rates else None,
        "gpu_hours": round(gpu_seconds / 3600, 4) if rates else None,
    }
