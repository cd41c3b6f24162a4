"""The sweep as its store has it: every trial's losses, and what the search would do next. Reads, never trains."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ee_ray.objective import objective
from ee_ray.plan import Point, Prices, Trial, build_trial, distinct, sweep_key
from ee_ray.propose import Decision, decide
from ee_ray.spec import SweepSpec
from ee_ray.store import Store

FOUND = "found.json"
COLUMNS = [
    "lambda", "seed", "finetune_lr", "L_im", "L_ret", "L_ft", "L_pre",
    "pretrain_key", "posttrain_key", "finetune_key",
]  # fmt: skip


@dataclass(frozen=True)
class Ledger:
    """Trials that the search has asked for so far, their rows, and its decision.

    `rows` has one row for each finished (lambda, seed, finetune_lr), columns COLUMNS; losses in nats per token.
    `failures` is the evidence of failed stages by key.
    """

    trials: list[Trial]
    rows: pd.DataFrame
    results: dict[Point, float | None]
    failures: dict[str, dict[str, Any]]
    records: dict[str, dict[str, Any]]
    decision: Decision
    prices: Prices


def trial_rows(spec: SweepSpec, trial: Trial, records: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each fine-tuning rate whose stages are all published."""
    upstream = records.get(trial.upstream.key)
    if upstream is None:
        return []
    rows = []
    for rate, stage in trial.finetunes:
        if (record := records.get(stage.key)) is None:
            continue
        losses = record["losses"]
        keys = (trial.pretrain.key, trial.posttrain.key if trial.posttrain else None, stage.key)
        values = (upstream["losses"]["post"], losses["post"], losses["ft"], losses["pre"])
        place = (trial.point.level / spec.search.ladder, trial.point.seed, rate)
        rows.append(dict(zip(COLUMNS, (*place, *values, *keys), strict=True)))
    return rows


def failure_of(store: Store, trial: Trial) -> dict[str, dict[str, Any]]:
    """Evidence of the trial's failed stages. A stage that was published since has none."""
    found = {key: store.failure(key) for key in distinct([trial])}
    return {key: evidence for key, evidence in found.items() if evidence}


def settled(
    spec: SweepSpec, trial: Trial, records: Mapping[str, Mapping[str, Any]], failures: Mapping[str, Mapping[str, Any]]
) -> tuple[bool, float | None]:
    """Whether nothing of a trial is left to train (each stage is published, has diverged, or descends from one that
    has), and its objective if it has one. Running search and ledger both judge by this, or a replay would differ."""
    dead: set[str] = set()
    for stage in trial.stages:
        if stage.key in records:
            continue
        if stage.parent not in dead and not failures.get(stage.key, {}).get("diverged"):
            return False, None
        dead.add(stage.key)
    return True, objective(spec.objective, trial_rows(spec, trial, records))


def found_before(spec: SweepSpec, data: Mapping[str, str], store: Store) -> frozenset[str]:
    """Stages that other sweeps had published when this search began: what it may take for nearly nothing.

    The search notes them once (`note_found`), so that a resumed search sees the same prices; before that, all count.
    """
    noted = store.read_sweep(spec.name, FOUND)
    if noted and noted["search"] == sweep_key(spec, data):
        return frozenset(noted["stages"])
    return frozenset(store.published())


def note_found(spec: SweepSpec, data: Mapping[str, str], store: Store) -> None:
    """Write down what the store holds as the search begins; nothing if this search has begun before."""
    noted, key = store.read_sweep(spec.name, FOUND), sweep_key(spec, data)
    if not noted or noted["search"] != key:
        store.write_sweep(spec.name, FOUND, {"search": key, "stages": sorted(store.published())})


def read_ledger(spec: SweepSpec, data: Mapping[str, str], store: Store) -> Ledger:
    """Replay the search over the store.

    A trial counts once all of its stages are published, or as failed once one of them has diverged: that would
    happen again. Other failures (a full disk, a killed worker) leave the trial outstanding, to be tried again.
    """
    trials: dict[Point, Trial] = {}
    rows: dict[Point, list[dict[str, Any]]] = {}
    records: dict[str, dict[str, Any]] = {}
    failures: dict[str, dict[str, Any]] = {}
    results: dict[Point, float | None] = {}
    prices = Prices(spec, data, found_before(spec, data, store))
    while True:
        decision = decide(spec, results, prices)
        fresh = [point for point in decision.visited if point not in trials]
        for point in fresh:
            trial = trials[point] = build_trial(spec, data, point)
            for key, stage in distinct([trial]).items():
                if key not in records and (record := store.find(key, stage.identity.payload())):
                    records[key] = record
            failed = failure_of(store, trial)
            failures |= failed
            rows[point] = trial_rows(spec, trial, records)
            done, value = settled(spec, trial, records, failed)
            if done:
                results[point] = value
        if not fresh:
            flat = [row for point in trials for row in rows[point]]
            frame = pd.DataFrame(flat, columns=COLUMNS)
            return Ledger(list(trials.values()), frame, results, failures, records, decision, prices)
