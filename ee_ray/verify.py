"""Re-hash and re-derive: is the store what it says it is, and does the report say what the store says?"""

import json
from pathlib import Path

from ee_ray.data.pack import digests
from ee_ray.identity import differences
from ee_ray.ledger import read_ledger
from ee_ray.report.summary import summarize
from ee_ray.spec.data import ROLES
from ee_ray.sweep import Sweep


def _data_problems(sweep: Sweep, role: str) -> list[str]:
    folder = sweep.store.data(sweep.data[role])
    if sweep.packed(role) is None:
        return [f"data.{role}: {sweep.data[role]} is not prepared"]
    manifest = json.loads((folder / "manifest.json").read_text())
    damage = sweep.store.data_damage(sweep.data[role], digests(manifest))
    problems = [f"data.{role}: {sweep.data[role]}: {problem}" for problem in damage]
    if manifest["identity"] != sweep.identities[role]:
        problems.append(f"data.{role}: {sweep.data[role]} was prepared from something else")
    return problems


def problems_of(sweep: Sweep, report: Path) -> tuple[list[str], int]:
    """Every mismatch, and how many things were checked: data, published stages, parents, the report's summary. A source that
    is gone is none: what was made of it is checked."""
    problems = [*sweep.changed, *(problem for role in ROLES for problem in _data_problems(sweep, role))]
    ledger = read_ledger(sweep.spec, sweep.data, sweep.store)
    for key, record in ledger.records.items():
        problems += sweep.store.damage(key)
        if record["parent"] and sweep.store.record(record["parent"]) is None:
            problems.append(f"stage {key}: its parent {record['parent']} is not published")
    checked = len(ROLES) + len(ledger.records)
    if (report / "summary.json").exists():
        checked += 1
        written = json.loads((report / "summary.json").read_text())
        derived = json.loads(json.dumps(summarize(sweep, ledger)))
        fields = [field for field, _, _ in differences(written, derived)]
        if fields:
            problems.append(f"{report / 'summary.json'}: differs from the store in {', '.join(fields[:5])}: run `ee-ray report {sweep.path}`")  # fmt: skip
    return problems, checked
