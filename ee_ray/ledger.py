"""The sweep as its store has it: every trial's losses, and what the search would do next. Reads, never trains."""

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ee_ray.objective import Loss, objective
from ee_ray.plan import Point, Prices, Trial, distinct, sweep_key
from ee_ray.propose import Decision, Replay, Rounds, anchors, leading
from ee_ray.spec.sweep import SweepSpec
from ee_ray.store import Store

NOTES = "search.json"
LOSSES = ["L_im", "L_ret", "L_ft", "L_pre"]
COLUMNS = ["lambda", "seed", "choice", "finetune_lr", *LOSSES, "pretrain_key", "posttrain_key", "finetune_key"]


@dataclass(frozen=True)
class Ledger:
    """Trials that the search has asked for so far, their rows, and its decision.

    `rows` has one row for each finished (lambda, seed, finetune_lr), columns COLUMNS; losses in nats per token.
    `failures` is the evidence of failed stages by key.
    """

    trials: list[Trial]
    rows: pd.DataFrame
    results: dict[Point, Loss | None]
    failures: dict[str, dict[str, Any]]
    records: dict[str, dict[str, Any]]
    decision: Decision
    prices: Prices
    choice: int

    @property
    def parameters(self) -> int:
        """Of the model, without adapters; 0 while nothing is pretrained."""
        return next((int(record["parameters"]) for record in self.records.values() if record["kind"] == "pretrain"), 0)

    @property
    def leading_rows(self) -> pd.DataFrame:
        """Rows of the choice in which lambda* is sought."""
        return self.rows[self.rows["choice"] == self.choice]


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
        place = (trial.point.level / spec.search.ladder, trial.point.seed, trial.point.choice, rate)
        rows.append(dict(zip(COLUMNS, (*place, *values, *keys), strict=True)))
    return rows


def failure_of(store: Store, trial: Trial, failed: Container[str]) -> dict[str, dict[str, Any]]:
    """Evidence of those of the trial's stages that have `failed`."""
    found = {key: store.failure(key) for key in distinct([trial]) if key in failed}
    return {key: evidence for key, evidence in found.items() if evidence}


def settled(
    spec: SweepSpec, trial: Trial, records: Mapping[str, Mapping[str, Any]], failures: Mapping[str, Mapping[str, Any]]
) -> tuple[bool, Loss | None]:
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


def recall(spec: SweepSpec, data: Mapping[str, str], store: Store) -> tuple[frozenset[str], Rounds]:
    """What this search has noted of itself: stages that the store held when it began, which it takes for nearly nothing
    (before it has begun, all that the store holds), and the rounds that it chose."""
    noted = store.read_sweep(spec.name, NOTES)
    if not noted or noted["search"] != sweep_key(spec, data):
        return frozenset(store.published()), {}
    return frozenset(noted["found"]), {key: [Point(*run) for run in runs] for key, runs in noted["rounds"].items()}


def note(spec: SweepSpec, data: Mapping[str, str], store: Store, found: frozenset[str], rounds: Rounds) -> None:
    """Write down what `recall` reads. Losing it loses only prices and time: rounds can be chosen again."""
    runs = {key: [[point.level, point.seed, point.choice] for point in points] for key, points in rounds.items()}
    store.write_sweep(spec.name, NOTES, {"search": sweep_key(spec, data), "found": sorted(found), "rounds": runs})


def read_ledger(spec: SweepSpec, data: Mapping[str, str], store: Store) -> Ledger:
    """Replay the search over the store.

    A trial counts once all of its stages are published, or as failed once one of them has diverged: that would
    happen again. Other failures (a full disk, a killed worker) leave the trial outstanding, to be tried again.
    """
    trials: dict[Point, Trial] = {}
    rows: dict[Point, list[dict[str, Any]]] = {}
    records: dict[str, dict[str, Any]] = {}
    failures: dict[str, dict[str, Any]] = {}
    results: dict[Point, Loss | None] = {}
    published = set(store.published())
    all_failed = store.failed() - published
    found, rounds = recall(spec, data, store)
    prices = Prices(spec, data, found)
    noted = [point for points in rounds.values() for point in points]
    fresh = [*dict.fromkeys([*anchors(spec), *noted])]  # at once: asking what comes after each round costs a fit
    replay = Replay(spec, prices, rounds)
    while True:
        for point in fresh:
            trial = trials[point] = prices.trial(point)
            for key, stage in distinct([trial]).items():
                if key in published and key not in records and (record := store.find(key, stage.identity.payload())):
                    records[key] = record
            failed = failure_of(store, trial, all_failed)
            failures |= failed
            rows[point] = trial_rows(spec, trial, records)
            done, value = settled(spec, trial, records, failed)
            if done:
                results[point] = value
        decision = replay.decide(results)
        fresh = [point for point in decision.visited if point not in trials]
        if not fresh:
            break
    asked = [trials[point] for point in decision.visited]
    keys = distinct(asked)
    return Ledger(
        asked,
        pd.DataFrame([row for point in decision.visited for row in rows[point]], columns=COLUMNS),
        {point: results[point] for point in decision.visited if point in results},
        {key: evidence for key, evidence in failures.items() if key in keys},
        {key: record for key, record in records.items() if key in keys},
        decision,
        prices,
        leading(spec, results),
    )
