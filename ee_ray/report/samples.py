"""A few held-out texts of each corpus, and how each stage of a few recipes goes on with them. Reads; samples.py takes them.

What was taken lies in the store, in the sweep's samples.json, schema 1: `data`, what the texts were taken from; `texts`, by
role a list of {prompt, truth}; `stages`, by key and role a list of {text, loss} in the same order.
"""

from dataclasses import dataclass
from html import escape
from typing import Any

from ee_ray.identity import Stage
from ee_ray.ledger import Ledger
from ee_ray.plan import Trial
from ee_ray.report import words
from ee_ray.report.answers import Answer
from ee_ray.report.html import Html, details, note, table
from ee_ray.spec.data import ROLES
from ee_ray.sweep import Sweep

FILE = "samples.json"
AFTER = {"pretrain": "pretrained", "posttrain": "post-trained", "finetune": "fine-tuned"}


@dataclass(frozen=True)
class Shown:
    """A stage that is shown: of which lambda, and after what."""

    level: float
    after: str
    stage: Stage


def recipes(sweep: Sweep, ledger: Ledger, lambda_star: float | None) -> list[Trial]:
    """The trials that are shown: at the levels nearest to lambda*, to 0 and to 1, all of one seed, that of the lowest number
    that has them all; of the leading choice."""
    ladder = sweep.spec.search.ladder
    done = {(t.point.level, t.point.seed): t for t in ledger.trials if t.point.choice == ledger.choice and all(s.key in ledger.records for s in t.stages)}  # fmt: skip
    levels = sorted({level for level, _ in done})
    if not levels:
        return []
    wanted = [0.0, 1.0] if lambda_star is None else [0.0, lambda_star, 1.0]
    nearest = sorted({min(levels, key=lambda level: abs(level / ladder - each)) for each in wanted})
    seeds = sorted({seed for _, seed in done}, key=lambda seed: (-sum((level, seed) in done for level in nearest), seed))  # fmt: skip
    return [done[level, seeds[0]] for level in nearest if (level, seeds[0]) in done]


def shown(sweep: Sweep, ledger: Ledger, found: list[Answer]) -> list[Shown]:
    """Their stages, in the order of training; fine-tuning at the objective's rate."""
    best = found[0].optimum
    chosen = recipes(sweep, ledger, best.lambda_star if best else None)
    rate = sweep.spec.objective.finetune_lr
    stages = []
    for trial in chosen:
        level = trial.point.level / sweep.spec.search.ladder
        ends = [trial.pretrain, *([trial.posttrain] if trial.posttrain else []), dict(trial.finetunes)[rate]]
        stages += [Shown(level, AFTER[stage.kind], stage) for stage in ends]
    return stages


def taken(sweep: Sweep) -> dict[str, Any]:
    """What was taken of these corpora; no stages where nothing was."""
    kept = sweep.store.read_sweep(sweep.spec.name, FILE)
    data = {role: sweep.data[role] for role in ROLES} | {"heldout_windows": sweep.spec.data.heldout_windows}
    if kept is None or kept["schema"] != 1 or kept["data"] != data:
        return {"schema": 1, "data": data, "texts": {}, "stages": {}}
    return dict(kept)


def samples_html(sweep: Sweep, ledger: Ledger, found: list[Answer]) -> str:
    """The first text of D_post, and the others to be opened."""
    asked, kept = shown(sweep, ledger, found), taken(sweep)
    if not asked:
        return ""
    there = [each for each in asked if each.stage.key in kept["stages"]]
    if not there:
        return note(f"How each stage goes on with held-out text: ee-ray report {sweep.path.name} --samples shows it here.")  # fmt: skip
    boxes = [_box(role, number, kept, there) for role in ("post", "ft", "pre") for number in range(len(kept["texts"][role]))]  # fmt: skip
    said = "Grey: held-out text that a stage is given, and after it how it truly goes on; below, what each stage makes of it, always taking the most probable token. Loss: of the true tokens after the grey ones, nats per token."  # fmt: skip
    missing = len(asked) - len(there)
    lacking = note(f"Not shown: {words.counted(missing, 'stage')}, whose weights are no longer in the store or which came later: ee-ray report {sweep.path.name} --samples looks again.") if missing else ""  # fmt: skip
    return (
        "<h3>Held-out text, and how each stage goes on with it</h3>"
        + note(f"{said} All of seed {there[0].stage.identity.seed}.")
        + boxes[0]
        + details("samples", f"{len(boxes) - 1} more texts, of all corpora", *boxes[1:])
        + lacking
    )


def _quoted(text: str) -> str:
    """Text in few lines, which says where it had its own."""
    return escape(text.replace("\n", "\u21b5"))


def _box(role: str, number: int, kept: dict[str, Any], there: list[Shown]) -> str:
    text = kept["texts"][role][number]
    rows = []
    for each in there:
        sample = kept["stages"][each.stage.key][role][number]
        rows.append([f"lambda {each.level:g}", each.after, float(sample["loss"]), Html(f"<q>{_quoted(sample['text'])}</q>")])  # fmt: skip
    return (
        f'<div class="sample"><b>D_{role}</b><p><q><span class="read">{_quoted(text["prompt"])}</span>{_quoted(text["truth"])}</q></p>'
        f"{table(['', 'model', 'loss', 'goes on with'], rows, '', 'wide')}</div>"
    )
