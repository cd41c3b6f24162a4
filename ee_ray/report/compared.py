"""Sweeps side by side: what each says, and frontier against frontier where both were measured on the same held-out data."""

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd

from ee_ray.compare import Comparison, Gap, compare
from ee_ray.errors import UserError
from ee_ray.frontier import frontiers
from ee_ray.ledger import Ledger
from ee_ray.report import words
from ee_ray.report.summary import seed_means, summarize
from ee_ray.sweep import Sweep

MEASURED = {"post": "D_post", "ft": "D_ft"}  # the corpora whose held-out losses a frontier of L_ft and L_ret is made of
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Side:
    """One sweep of several, under a letter; its summary, and its recipes' mean losses with `on_hull` and `on_pareto`."""

    letter: str
    sweep: Sweep
    ledger: Ledger
    summary: dict[str, Any]
    recipes: pd.DataFrame


@dataclass(frozen=True)
class Against:
    """How much lower `letter`'s frontier lies than the first sweep's; None, and why, where that cannot be said."""

    letter: str
    found: Comparison | None
    why: str | None


def unlike(first: Sweep, other: Sweep) -> list[str]:
    """Held-out data on which the two measured differently, each a line that names both fingerprints."""
    problems = []
    for role, name in MEASURED.items():
        mine, theirs = ((sweep.data[role], sweep.spec.data.heldout_windows) for sweep in (first, other))
        if mine != theirs:
            one, two = (f"{key} ({windows} windows)" for key, windows in (mine, theirs))
            problems.append(f"{name}: {first.path} measured on {one}, {other.path} on {two}: losses on different held-out data are not compared; --apart puts the sweeps side by side without")  # fmt: skip
    return problems


def sides(sweeps: Sequence[Sweep], ledgers: Sequence[Ledger]) -> list[Side]:
    """Each sweep with what it says.

    Raises:
        UserError: a sweep of which nothing is finished.
    """
    if len(sweeps) > len(LETTERS):
        raise UserError(f"{len(sweeps)} sweeps are more than the {len(LETTERS)} that fit side by side")
    if empty := [sweep for sweep, ledger in zip(sweeps, ledgers, strict=True) if ledger.leading_rows.empty]:
        raise UserError(f"{sweep.path}: nothing is finished yet: ee-ray run {sweep.path}" for sweep in empty)
    return [
        Side(letter, sweep, ledger, summarize(sweep, ledger), frontiers(seed_means(ledger.leading_rows), "L_ft", "L_ret"))
        for letter, sweep, ledger in zip(LETTERS, sweeps, ledgers, strict=False)
    ]  # fmt: skip


def against_first(found: Sequence[Side]) -> list[Against]:
    """Each further sweep's frontier against the first's, at matched fine-tuning loss.

    Raises:
        UserError: a sweep was measured on other held-out data than the first.
    """
    first, *rest = found
    if problems := [problem for side in rest for problem in unlike(first.sweep, side.sweep)]:
        raise UserError(problems)
    return [_against(side, first) for side in rest]


def _against(side: Side, first: Side) -> Against:
    tables = [each.ledger.leading_rows[["seed", "L_ft", "L_ret"]].assign(method=each.letter) for each in (side, first)]
    trials = pd.concat(tables).rename(columns={"L_ft": "x", "L_ret": "y"})
    if not set(tables[0]["seed"]) & set(tables[1]["seed"]):
        return Against(side.letter, None, "they have no seed in common")
    comparison = compare(trials, side.letter, first.letter)
    if not np.isfinite(comparison.plain.mean):
        return Against(side.letter, None, "some seed's frontiers share no fine-tuning loss")
    return Against(side.letter, comparison, None)


def as_json(found: Sequence[Side], gaps: Sequence[Against]) -> dict[str, Any]:
    """Schema 1: `sweeps`, and `against_first`: gaps in nats, positive where the sweep keeps more than the first."""
    return {"schema": 1, "sweeps": [_facts(side) for side in found], "against_first": [_gap_facts(gap) for gap in gaps]}


def _facts(side: Side) -> dict[str, Any]:
    summary, spec = side.summary, side.sweep.spec
    optimum = summary["optimum"] or ({"verdict": "frontier"} if spec.objective.losses else {})
    return {
        "letter": side.letter,
        "sweep": spec.name,
        "path": str(side.sweep.path),
        "setting": spec.setting,
        "model": spec.model if isinstance(spec.model, str) else spec.model_dump(mode="json")["model"],
        "data": {role: {"source": side.sweep.source(role).source, "fingerprint": side.sweep.data[role]} for role in ("pre", "post", "ft")},
        "objective": summary["objective"]["name"],
        **{name: optimum.get(name) for name in ("lambda", "ci95", "verdict", "gain_over_0", "gain_over_1")},
        "frontier": words.tradeoff(summary["tradeoffs"][0]) if summary["tradeoffs"] else None,
        "tokens": summary["tokens"],
        "recipes": len(side.recipes),
        "trials": len(side.ledger.leading_rows),
        "seeds": int(side.ledger.leading_rows["seed"].nunique()),
    }  # fmt: skip


def _gap_facts(gap: Against) -> dict[str, Any]:
    if gap.found is None:
        return {"letter": gap.letter, "why_not": gap.why}
    counts = {name: int(number) for name, number in gap.found.counts.sum().items()}
    return {
        "letter": gap.letter,
        "gap": _numbers(gap.found.plain),
        "trials": counts,
        "unequal": gap.found.unequal,
        "gap_at_equal_trials": _numbers(gap.found.matched),
    }


def _numbers(gap: Gap) -> dict[str, Any]:
    low, high = (None if not np.isfinite(bound) else round(bound, 5) for bound in gap.ci95)
    return {"value": round(gap.mean, 5) if np.isfinite(gap.mean) else None, "ci95": [low, high], "seeds": gap.seeds}


def _within(numbers: dict[str, Any]) -> str:
    if numbers["value"] is None:
        return "not known"
    low, high = numbers["ci95"]
    return f"{numbers['value']:+.3f}" + ("" if low is None else f" [{low:+.3f}, {high:+.3f}]")


def text(told: dict[str, Any]) -> str:
    """The comparison for a terminal of 80 columns."""
    lines = [f"{each['letter']}  {each['sweep']}" for each in told["sweeps"]]
    lines += ["", f"{'':3}{'lambda*':>8}  {'95% interval':<14}{'verdict':<14}{'over 0':>8}{'over 1':>8}{'tokens':>10}{'trials':>7}{'seeds':>6}"]  # fmt: skip
    for each in told["sweeps"]:
        tokens = f"{each['tokens']['trained'] / 1e6:,.3g}M"
        if each["lambda"] is None:
            row = f"{'?':>8}  {'':<14}{each['verdict'] or 'none yet':<14}{'':>16}"
        else:
            low, high = each["ci95"]
            gains = "".join(f"{each[name]['value']:>8.3f}" for name in ("gain_over_0", "gain_over_1"))
            row = f"{each['lambda']:>8.2f}  {f'{low:.2f} to {high:.2f}':<14}{each['verdict'].replace('_', ' at '):<14}{gains}"
        lines.append(f"{each['letter']:<3}{row}{tokens:>10}{each['trials']:>7}{each['seeds']:>6}")
    goals = {each["objective"] for each in told["sweeps"] if each["lambda"] is not None}
    lines += ["", *(f"gains in nats, of: {goal}" for goal in sorted(goals))]
    for each in told["sweeps"]:
        lines += ["", *wrap(f"{each['letter']}  {each['frontier']}", 80, subsequent_indent="   ")] if each["frontier"] else []  # fmt: skip
    if told["against_first"]:
        lines += ["", "retained loss at the same fine-tuning loss, below that of a (nats, 95%)"]
    for gap in told["against_first"]:
        lines += _gap_lines(gap)
    return "\n".join(lines)


def _gap_lines(gap: dict[str, Any]) -> list[str]:
    if "why_not" in gap:
        return [f"{gap['letter']}  not known: {gap['why_not']}"]
    numbers = gap["trials"]
    lines = [f"{gap['letter']}  {_within(gap['gap'])}, {gap['gap']['seeds']} seeds; {numbers[gap['letter']]} trials against {numbers['a']}"]  # fmt: skip
    if gap["unequal"]:
        lines.append("   unequal numbers of trials favour the larger: with as many of each")
        lines.append(f"   {_within(gap['gap_at_equal_trials'])}")
    return lines
