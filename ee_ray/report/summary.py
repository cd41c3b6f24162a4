"""The answer as data: everything that the page draws and that scripts read, from the store alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from ee_ray.compare import Comparison, Gap, compare
from ee_ray.frontier import frontiers, hypervolume
from ee_ray.importance import importance
from ee_ray.ledger import COLUMNS, LOSSES, Ledger
from ee_ray.objective import describe
from ee_ray.optimum import Estimate, Optimum
from ee_ray.plan import distinct, trialwise_tokens
from ee_ray.quote import epochs
from ee_ray.report import words
from ee_ray.report.answers import Answer, answers, tradeoffs
from ee_ray.spec.data import ROLES
from ee_ray.sweep import Sweep
from ee_ray.tradeoff import Tradeoff

PROJECTIONS = (("L_ft", "L_ret"), ("L_ret", "L_pre"))  # paper, section 4.3


def seed_means(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean losses of each (lambda, choice, finetune_lr) over seeds, with the number of seeds and the spread (min, max) of the
    losses on D_post. Seeds are paired: each one's offset is taken out first, since levels may differ in their seeds.

    Frontiers are drawn through these and not through single runs: the best of several noisy runs is better than
    its recipe (the winner's curse).
    """
    even = without_offsets(rows)
    groups = even.groupby(["lambda", "choice", "finetune_lr"])
    means = groups[LOSSES].mean()
    means["seeds"] = groups.size()
    for loss in ("L_im", "L_ret"):
        means[f"{loss}_min"], means[f"{loss}_max"] = groups[loss].min(), groups[loss].max()
    return means.reset_index()


def without_offsets(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, their losses less their seed's offset at that choice and fine-tuning rate: least squares of
    loss ~ lambda + seed, in which the offsets of the seeds sum to zero."""
    even = rows.astype(dict.fromkeys(LOSSES, float))
    for _, part in even.groupby(["choice", "finetune_lr"]):
        seeds = pd.get_dummies(part["seed"]).to_numpy(float)
        levels = pd.get_dummies(part["lambda"]).to_numpy(float)
        centred, losses = seeds[:, :-1] - seeds[:, -1:], part[LOSSES].to_numpy(float)
        found, *_ = np.linalg.lstsq(np.hstack([levels, centred]), losses, rcond=None)
        even.loc[part.index, LOSSES] = losses - centred @ found[levels.shape[1] :]
    return even


def _estimate(value: Estimate) -> dict[str, Any]:
    return {"value": round(value.value, 5), "ci95": [round(value.lo, 5), round(value.hi, 5)]}


def _optimum(optimum: Optimum | None) -> dict[str, Any] | None:
    if optimum is None:
        return None
    return {
        "lambda": round(optimum.lambda_star, 4),
        "ci95": [round(bound, 4) for bound in optimum.ci95],
        "p_interior": round(optimum.p_interior, 4),
        "verdict": optimum.verdict,
        "gain_over_0": _estimate(optimum.gain_over_0),
        "gain_over_1": _estimate(optimum.gain_over_1),
        "noise_sd": round(optimum.noise_sd, 5),
        "seed_sd": round(optimum.seed_sd, 5) if optimum.seeds > 1 else None,
    }


def other_optima(found: list[Answer]) -> list[dict[str, Any]]:
    """Optima of the other losses that the same runs measured, each with its number of recipes."""
    return [
        {"name": answer.name, **answer.goal.model_dump(exclude_none=True), "recipes": len(answer.table), **optimum}
        for answer in found[1:]
        if (optimum := _optimum(answer.optimum))
    ]


def _frontiers(means: pd.DataFrame) -> dict[str, Any]:
    """For each projection, the Pareto set and lower-left hull of the unmixed (lambda = 0), the mixed, and all recipes."""
    found: dict[str, Any] = {}
    groups = {"unmixed": means["lambda"] == 0, "mixed": means["lambda"] > 0, "all": means["lambda"] >= 0}
    for x, y in PROJECTIONS:
        for name, chosen in groups.items():
            if not chosen.any():
                continue
            marked = frontiers(means[chosen], x, y)
            kept = marked[marked["on_pareto"]].sort_values(x)
            columns = ["lambda", "choice", "finetune_lr", x, y, "on_hull"]
            found.setdefault(f"{x},{y}", {})[name] = kept[columns].to_dict("records")
    return found


def _tradeoffs(traded: Mapping[tuple[str, ...], Tradeoff], steps: int, first: int) -> list[dict[str, Any]]:
    """For each set of losses, every level's probability to lie on their frontier, its losses above their least, and by
    how much, with 95% probability, a level left out is at most better than the kept (`short` of tradeoff.py) and what is
    kept may be wrong at all (`known`); nats. first: the choice of the first levels."""
    return [
        {
            "losses": list(losses),
            "short95": round(found.short, 5),
            "known95": round(found.known, 5),
            "levels": [
                {"lambda": place % (steps + 1) / steps, "choice": first + place // (steps + 1), "probability": round(float(chance), 3), "kept": bool(kept), **dict(zip(losses, above.round(5).tolist(), strict=True))}
                for place, (chance, kept, above) in enumerate(zip(found.chance, found.kept, found.means - found.means.min(axis=0), strict=True))
            ],
        }
        for losses, found in traded.items()
    ]  # fmt: skip


def contrast(rows: pd.DataFrame) -> tuple[pd.DataFrame, Comparison] | None:
    """Mixed against unmixed recipes, and the trials as `compare` takes them. None before both have run with one seed."""
    trials = rows[["seed", "L_ft", "L_ret"]].set_axis(["seed", "x", "y"], axis=1)
    trials = trials.assign(method=np.where(rows["lambda"] > 0, "mixed", "unmixed"))
    seeds = trials.groupby("method")["seed"].agg(set)
    if len(seeds) < 2 or not set.intersection(*seeds):
        return None
    return trials, compare(trials, "mixed", "unmixed")


def _comparison(contrasted: tuple[pd.DataFrame, Comparison] | None) -> dict[str, Any] | None:
    """How much more mixed recipes keep than unmixed ones (lambda = 0) at the same fine-tuning loss: as run, and at equal
    numbers of trials."""
    if contrasted is None:
        return None
    trials, found = contrasted
    worst = (float(trials["x"].max()), float(trials["y"].max()))
    volumes = {
        method: round(hypervolume(part[["x", "y"]].to_numpy(float), worst), 5)
        for method, part in trials.groupby("method")
    }
    return {
        "trials": {method: int(number) for method, number in found.counts.sum().items()},
        "seeds": found.plain.seeds,
        "gap": _gap(found.plain),
        "gap_at_equal_trials": _gap(found.matched),
        "hypervolume": {"reference": [round(loss, 5) for loss in worst], **volumes},
    }


def _gap(gap: Gap) -> dict[str, Any] | None:
    if not np.isfinite(gap.mean):
        return None
    bounds = [round(bound, 5) if np.isfinite(bound) else None for bound in gap.ci95]
    return {"value": round(gap.mean, 5), "ci95": bounds}


def _tokens(sweep: Sweep, ledger: Ledger) -> dict[str, Any]:
    trained = [record["tokens"] for record in ledger.records.values()]
    finished = [trial for trial in ledger.trials if all(key in ledger.records for key in distinct([trial]))]
    mine = sum(stage.identity.tokens for stage in distinct(finished).values())
    trialwise = trialwise_tokens(finished)
    return {
        "trained": sum(trained),
        "trialwise": trialwise,
        "saved_factor": round(trialwise / mine, 3) if mine else None,
    }


def _provenance(sweep: Sweep, ledger: Ledger) -> dict[str, Any]:
    records = list(ledger.records.values())
    seconds = {part: round(sum(r["seconds"][part] for r in records), 2) for part in ("setup", "train", "evaluate")}
    return {
        "spec": sweep.spec.model_dump(mode="json", by_alias=True),
        "data": {role: {"fingerprint": sweep.data[role], **sweep.identities[role]} for role in ROLES},
        "hosts": sorted({record["host"] for record in records}),
        "devices": sorted({record["device"] for record in records}),
        "versions": next((record["versions"] for record in records), {}),
        "first_finished": min((record["finished"] for record in records), default=None),
        "last_finished": max((record["finished"] for record in records), default=None),
        "seconds": seconds,
    }


def summarize(
    sweep: Sweep,
    ledger: Ledger,
    found: list[Answer] | None = None,
    contrasted: tuple[pd.DataFrame, Comparison] | None = None,
) -> dict[str, Any]:
    """summary.json, schema 1. `stages.reused` counts published stages that another sweep trained.

    found, contrasted: `answers` and `contrast` of this ledger, where they are known already.
    """
    found = found or answers(sweep, ledger)
    records = ledger.records.values()
    goal = sweep.spec.objective
    rows = ledger.rows.astype(object).where(ledger.rows.notna(), None)
    return {
        "schema": 1,
        "sweep": sweep.spec.name,
        "setting": sweep.spec.setting,
        "objective": {"name": describe(goal), **goal.model_dump()},
        "optimum": _optimum(found[0].optimum),
        "choices": [
            {**choice, "leads": found[0].optimum is not None and number == ledger.choice}
            for number, choice in enumerate(sweep.spec.choices)
        ],
        "importance": importance(sweep.spec, ledger.results),
        "others": other_optima(found),
        "stop_reason": ledger.decision.stop or f"not finished: {len(ledger.decision.outstanding)} trials outstanding",
        "tokens": _tokens(sweep, ledger),
        "stages": {
            "planned": len(distinct(ledger.trials)),
            "trained": sum(record["sweep"] == sweep.spec.name for record in records),
            "reused": sum(record["sweep"] != sweep.spec.name for record in records),
            "failed": len(ledger.failures),
        },
        "epochs": epochs(sweep),
        "trials": rows[COLUMNS].to_dict("records"),
        "frontiers": _frontiers(seed_means(ledger.rows)) if len(ledger.rows) else {},
        "tradeoffs": _tradeoffs(
            tradeoffs(sweep, ledger), sweep.spec.search.ladder, 0 if goal.losses else ledger.choice
        ),
        "comparison": _comparison(contrasted or contrast(ledger.rows)),
        "failures": ledger.failures,
        "provenance": _provenance(sweep, ledger),
    }


def verdict_sentence(summary: dict[str, Any]) -> str:
    """The answer in words."""
    optimum = summary["optimum"]
    if summary["objective"]["losses"] and summary["tradeoffs"]:
        return words.tradeoff(summary["tradeoffs"][0])
    if optimum is None:
        if len(summary["provenance"]["spec"]["search"]["anchors"]) == 2:
            return "Frontiers of two levels of lambda; no lambda* was sought."
        return "No answer yet: fewer than three levels of lambda are finished."
    low, high = optimum["ci95"]
    place = f"lambda* = {optimum['lambda']:.2f} (95% interval {low:.2f} to {high:.2f})"
    over_0, over_1 = (
        f"{optimum[name]['value']:.3f} [{optimum[name]['ci95'][0]:.3f}, {optimum[name]['ci95'][1]:.3f}]"
        for name in ("gain_over_0", "gain_over_1")
    )
    loss = {"L_ret": "retained loss", "L_im": "immediate loss", "weighted": "the weighted loss"}
    name = loss.get(summary["objective"]["loss"], "retained loss at matched fine-tuning loss")
    gains = f"{name} is {over_0} nats below all-post-training and {over_1} below all-pretraining"
    practical = summary["objective"]["practical"]
    return {
        "interior": f"Interior optimum: {place}; {gains}.",
        "boundary_0": f"Boundary at 0, all-post-training: no split is better by {practical:g} nats or more; {place}; {name} is {over_1} nats below all-pretraining.",
        "boundary_1": f"Boundary at 1, all-pretraining: no split is better by {practical:g} nats or more; {place}; {name} is {over_0} nats below all-post-training.",
        "flat": f"The split does not matter: {name} differs by less than {practical:g} nats over lambda.",
        "undetermined": f"Undetermined: the data allow {place}; {gains}. More seeds or levels are needed.",
    }[optimum["verdict"]]
