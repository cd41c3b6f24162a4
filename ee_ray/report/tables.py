"""The data of every figure, one long table each: computed here, drawn elsewhere, and written next to the page.

TABLES says what each holds. Losses are nats per token.
"""

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as parquet

from ee_ray.compare import Comparison, frontier_band
from ee_ray.disk import size
from ee_ray.frontier import frontiers, hypervolume
from ee_ray.ledger import Ledger
from ee_ray.plan import Point, distinct
from ee_ray.report import paper
from ee_ray.report.answers import Answer
from ee_ray.report.history import history
from ee_ray.report.summary import PROJECTIONS, seed_means, without_offsets
from ee_ray.spec.sweep import SweepSpec
from ee_ray.sweep import Sweep

TABLES = {
    "runs": "every finished (lambda, seed, choice, fine-tuning rate): losses, method, keys of its stages",
    "recipes": "means of runs over seeds, each seed's offset taken out; lowest and highest of L_im and L_ret",
    "observations": "loss of every run by every question that the runs answer; run is its row of runs",
    "curves": "the fitted mean over seeds with its 95% band, and the sd of one run, by question",
    "optima": "lambda*, its 95% interval, verdict and gains, by question",
    "levels": "posterior probability that a level is the best one, by question",
    "frontiers": "recipes in both projections, by method: whether on the Pareto set, whether on the lower-left hull",
    "bands": "95% band of each method's hull over seeds",
    "gaps": "how much more mixed recipes keep than unmixed ones at the same fine-tuning loss",
    "tradeoffs": "posterior probability that a level lies on the frontier of several losses at the objective's fine-tuning rate, whether it is kept, its fitted losses above their least, and by how much a level left out is at most better than the kept (95%)",
    "search": "round by round: runs chosen, tokens spent, the interval of lambda* afterwards or to how many nats the frontier that is asked for is known, and the area (nats^2) of losses (L_ft, L_ret) that some run beats, up to the worst of all",
    "stages": "the stage tree: tokens, who shares a stage, how long it took and where",
    "training": "training curves of all stages",
    "paper_allocations": "the paper's Figure 3, where this sweep asks the same",
    "paper_checkpoints": "the paper's Figure 2 or 4, where this sweep asks the same",
}
INTERVENTIONS = {"replay": "replay", "dropout": "dropout", "lora": "adapters"}
Tables = dict[str, pd.DataFrame]


def methods(spec: SweepSpec, rows: pd.DataFrame) -> "pd.Series[str]":
    """What a recipe does, as the paper names it: unmixed or mixed, and the interventions of its choice."""
    added = [_added(spec, number) for number in range(len(spec.choices))]
    names = [
        ("mixed" if level else "unmixed") + added[choice]
        for level, choice in zip(rows["lambda"], rows["choice"], strict=True)
    ]
    return pd.Series(names, index=rows.index, dtype=str)


def _added(spec: SweepSpec, choice: int) -> str:
    settings = spec.chosen(choice).stages.posttrain
    on = {"replay": settings.replay, "dropout": any(settings.dropout.model_dump().values()), "lora": settings.lora}
    asked = [name for name in INTERVENTIONS if f"posttrain.{name}" in spec.search.choices]
    return "".join(f" + {INTERVENTIONS[name]}" for name in asked if on[name])


def compute(
    sweep: Sweep,
    ledger: Ledger,
    found: list[Answer],
    contrasted: tuple[pd.DataFrame, Comparison] | None,
    traded: list[dict[str, Any]],
) -> Tables:
    """All of TABLES, from the store alone. found, contrasted: `answers` and `contrast` of the ledger; traded: of its summary."""
    rows = ledger.rows.assign(method=methods(sweep.spec, ledger.rows))
    recipes = seed_means(rows) if len(rows) else pd.DataFrame(columns=["lambda", "choice", "finetune_lr", "seeds"])
    recipes = recipes.assign(method=methods(sweep.spec, recipes))
    return {
        "runs": rows,
        "recipes": recipes,
        **_answered(found, rows, ledger.choice),
        "frontiers": _frontiers(recipes),
        "bands": _bands(rows),
        "gaps": _gaps(contrasted),
        "tradeoffs": _tradeoffs(traded),
        "search": _search(sweep.spec, ledger),
        "stages": _stages(sweep, ledger),
        "training": _training(sweep, list(ledger.records)),
        "paper_allocations": paper.allocations(sweep.spec),
        "paper_checkpoints": paper.checkpoints(sweep.spec),
    }


def write_tables(tables: Tables, folder: Path) -> None:
    """As CSV and as parquet, one file a table."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
        table.to_parquet(folder / f"{name}.parquet", index=False)


def _answered(found: list[Answer], rows: pd.DataFrame, choice: int) -> Tables:
    observations, curves, optima, levels = [], [], [], []
    for answer in found:
        rate = answer.goal.finetune_lr
        place = rows[(rows["finetune_lr"] == rate) & (rows["choice"] == choice)].reset_index(names="run")
        table = answer.table.merge(place[["lambda", "seed", "run"]], on=["lambda", "seed"], how="left")
        observations.append(table.assign(question=answer.name))
        if (optimum := answer.optimum) is None:
            continue
        curves.append(optimum.curve.assign(question=answer.name))
        levels.append(optimum.p_argmin.rename("p").rename_axis("lambda").reset_index().assign(question=answer.name))
        gains = {
            f"{name}{end}": getattr(getattr(optimum, name), part)
            for name in ("gain_over_0", "gain_over_1")
            for end, part in (("", "value"), ("_lo", "lo"), ("_hi", "hi"))
        }
        optima.append({
            "question": answer.name, "lambda": optimum.lambda_star, "lo": optimum.ci95[0], "hi": optimum.ci95[1],
            "verdict": optimum.verdict, **gains, "noise_sd": optimum.noise_sd, "seed_sd": optimum.seed_sd, "runs": optimum.observations,
        })  # fmt: skip
    return {
        "observations": _joined(observations, ["lambda", "seed", "loss", "run", "question"]),
        "curves": _joined(curves, ["lambda", "mean", "lo", "hi", "noise_sd", "question"]),
        "optima": pd.DataFrame(optima, columns=None if optima else ["question", "lambda", "lo", "hi", "verdict"]),
        "levels": _joined(levels, ["lambda", "p", "question"]),
    }


def _joined(parts: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def _frontiers(recipes: pd.DataFrame) -> pd.DataFrame:
    parts = []
    for x, y in PROJECTIONS if len(recipes) else ():
        for method, group in recipes.groupby("method"):
            marked = frontiers(group, x, y)
            losses = {
                "x_name": x,
                "x": marked[x],
                "y_name": y,
                "y": marked[y],
                "recipe": marked.index,
                "method": method,
            }
            parts.append(marked[["lambda", "choice", "finetune_lr", "on_pareto", "on_hull"]].assign(**losses))
    columns = [
        "method",
        "x_name",
        "x",
        "y_name",
        "y",
        "on_pareto",
        "on_hull",
        "lambda",
        "choice",
        "finetune_lr",
        "recipe",
    ]
    return _joined(parts, columns)


def _bands(rows: pd.DataFrame) -> pd.DataFrame:
    parts = []
    even = without_offsets(rows) if len(rows) else rows
    for x, y in PROJECTIONS if len(rows) else ():
        for method, group in even.groupby("method"):
            points = group.assign(
                recipe=group.groupby(["lambda", "choice", "finetune_lr"]).ngroup(), x=group[x], y=group[y]
            )
            parts.append(frontier_band(points).assign(method=method, x_name=x, y_name=y))
    return _joined(parts, ["method", "x_name", "x", "y_name", "lo", "hi"])


def _gaps(contrasted: tuple[pd.DataFrame, Comparison] | None) -> pd.DataFrame:
    if contrasted is None:
        return pd.DataFrame(columns=["trials", "x", "gap", "lo", "hi"])
    _, found = contrasted
    parts = [found.plain.curve.assign(trials="as run")]
    if found.unequal:
        parts.append(found.matched.curve.assign(trials="as many of each"))
    return _joined(parts, ["trials", "x", "gap", "lo", "hi"])


def _tradeoffs(traded: list[dict[str, Any]]) -> pd.DataFrame:
    rows = [
        {"losses": ",".join(each["losses"]), "short95": each["short95"], **level}
        for each in traded
        for level in each["levels"]
    ]
    return pd.DataFrame(rows, columns=["losses", "lambda", "choice", "probability", "kept", "L_ft", "L_ret", "L_pre", "L_im", "short95"])  # fmt: skip


def _search(spec: SweepSpec, ledger: Ledger) -> pd.DataFrame:
    rows, total, done = [], 0, set[tuple[float, int, int]]()
    runs = list(zip(ledger.rows["lambda"], ledger.rows["seed"], ledger.rows["choice"], strict=True))
    losses = ledger.rows[["L_ft", "L_ret"]].to_numpy(float)
    corner = tuple(losses.max(axis=0)) if len(losses) else (0.0, 0.0)
    for number, each in enumerate(history(spec, ledger)):
        total += each.tokens
        done |= {(point.level / spec.search.ladder, point.seed, point.choice) for point in each.runs}
        so_far = losses[[run in done for run in runs]]
        low, high = each.optimum.ci95 if each.optimum else (np.nan, np.nan)
        rows.append({
            "round": number, "runs": len(each.runs), "tokens": each.tokens, "total_tokens": total,
            "lambda": each.optimum.lambda_star if each.optimum else np.nan, "lo": low, "hi": high,
            "verdict": each.optimum.verdict if each.optimum else "",
            "known": each.frontier.known if each.frontier else np.nan,
            "hypervolume": hypervolume(so_far, corner) if len(so_far) else 0.0,
            "chosen": ", ".join(f"{point.level / spec.search.ladder:g}:{point.seed}" + f":{point.choice}" * (len(spec.choices) > 1) for point in each.runs),
        })  # fmt: skip
    columns = ["round", "runs", "tokens", "total_tokens", "lambda", "lo", "hi", "verdict", "known", "hypervolume", "chosen"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def _stages(sweep: Sweep, ledger: Ledger) -> pd.DataFrame:
    """Every stage asked for, parents first; with what it trained at most, and as published what it took."""
    spec, rows = sweep.spec, []
    sharers = Counter(key for trial in ledger.trials for key in distinct([trial]))
    rates, first = len(spec.stages.finetune.learning_rates), dict[str, Point]()
    for trial in ledger.trials:
        for key in distinct([trial]):
            first.setdefault(key, trial.point)
    for key, stage in distinct(ledger.trials).items():
        record: Mapping[str, Any] = ledger.records.get(key, {})
        seconds, point = record.get("seconds", {}), first[key]
        rows.append({
            "key": key, "kind": stage.kind, "parent": stage.parent, "tokens": record.get("tokens", stage.identity.tokens),
            "shared_by": sharers[key], "paths": sharers[key] * (1 if stage.kind == "finetune" else rates), "lambda": point.level / spec.search.ladder, "seed": point.seed, "choice": point.choice,
            "learning_rate": stage.identity.learning_rate,
            "state": "published" if record else "failed" if key in ledger.failures else "waiting",
            "trained_by": record.get("sweep"), **{f"{part}_s": seconds.get(part) for part in ("setup", "train", "evaluate")},
            "tokens_per_s": record.get("tokens_per_s"), "workers": record.get("workers"), "device": record.get("device"),
            "host": record.get("host"), "finished": record.get("finished"),
            "bytes": record.get("bytes") or (size(sweep.store.stage(key)) if record else 0),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _curve(path: Path) -> pa.Table:
    with parquet.ParquetFile(path) as file:  # `read_table` looks for a data set first, which costs more than reading
        return file.read(use_threads=False)


def _training(sweep: Sweep, keys: list[str]) -> pd.DataFrame:
    columns = ["key", "step", "tokens", "loss", "learning_rate", "grad_norm", "seconds", "validation"]
    if not keys:
        return pd.DataFrame(columns=columns)
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda key: _curve(sweep.store.metrics(key)), keys))
    whole: pd.DataFrame = pa.concat_tables(parts, promote_options="permissive").to_pandas()
    whole["key"] = np.repeat(keys, [len(part) for part in parts])
    return whole.reindex(columns=columns)
