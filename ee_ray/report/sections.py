"""The report's sections: text, tables, and places for figures that the page fills."""

import json
import platform
from dataclasses import dataclass
from html import escape
from importlib.metadata import version
from typing import Any, get_args

import yaml

from ee_ray.ledger import LOSSES, Ledger
from ee_ray.report import paper, words
from ee_ray.report.figures import MOST_BANDS
from ee_ray.report.html import Html, details, figure, note, section, table
from ee_ray.report.tables import TABLES, Tables
from ee_ray.spec.data import ROLES
from ee_ray.spec.stages import Kind
from ee_ray.sweep import Sweep

KINDS = {"pretrain": "pretraining", "posttrain": "post-training", "finetune": "fine-tuning"}


@dataclass(frozen=True)
class Part:
    """A section: its anchor, its short name for the list of sections, and its HTML, empty where there is nothing to say."""

    name: str
    short: str
    html: str


def head(sweep: Sweep, summary: dict[str, Any], drawn: list[str]) -> str:
    """Under the verdict: the answer in numbers, its figure, and why the search ended."""
    optimum, tokens = summary["optimum"], summary["tokens"]
    tiles = []
    if optimum:
        low, high = optimum["ci95"]
        tiles = [
            (f"{optimum['lambda']:.2f}", f"lambda*: 95% interval {low:.2f} to {high:.2f}"),
            (words.verdict_name(optimum["verdict"]), f"P(interior) = {optimum['p_interior']:.3f}"),
        ]  # fmt: skip
        for end, name in ((0, "all-post-training"), (1, "all-pretraining")):
            if optimum["lambda"] != end:  # an end is no better than itself
                gain = optimum[f"gain_over_{end}"]
                tiles.append((f"{gain['value']:.3f} nats", f"below {name} {_interval(gain)}"))
    if sweep.spec.objective.losses and summary["tradeoffs"]:
        (found,) = summary["tradeoffs"]
        kept = [level["kept"] for level in found["levels"]]
        tiles = [
            (f"{sum(kept)} of {len(kept)}", "levels may lie on the frontier"),
            (f"{found['known95']:.3f} nats", f"to which that is known, with 95% probability; asked for: {sweep.spec.objective.practical:g}"),
        ]  # fmt: skip
    tiles.append((words.tokens(tokens["trained"]), "tokens trained" + (f"; one path per trial: {tokens['saved_factor']:.3g} times as many" if tokens["saved_factor"] else "")))  # fmt: skip
    boxes = "".join(f"<li><b>{escape(value)}</b><span>{escape(label)}</span></li>" for value, label in tiles)
    parts = [f'<ul class="tiles">{boxes}</ul>']
    if "tradeoff" in drawn:
        losses = sweep.spec.objective.losses or []
        of_all = f" of all {len(losses)} losses" if len(losses) > 2 else ""
        parts += [
            figure("tradeoff", f"{' against '.join(losses[:2])} of every level, on the frontier or not"),
            note(f"Fitted losses of every level{' and choice' * (len(sweep.spec.choices) > 1)}, fine-tuned at {sweep.spec.objective.finetune_lr:g}; lower left is better. The larger a point, the more probably it lies on the frontier{of_all}; filled: with a fifth or more."),
        ]  # fmt: skip
    if "optimum" in drawn:
        parts += [
            figure("optimum", f"{summary['objective']['name']} against lambda: runs, fitted mean and 95% band, lambda* and its interval"),
            note(f"{words.sentence(summary['objective']['name'])} against lambda. Shaded green: the 95% interval of lambda*. The curve is a Gaussian process with paired seed effects; bars: how probable each level of the ladder is to be the best. Click a point to pin its recipe."),
        ]  # fmt: skip
    parts.append(f"<p>Search: {escape(summary['stop_reason'])}.</p>")
    if summary["stages"]["failed"]:
        parts.append(
            f'<p><a class="bad" href="#failures">{words.counted(summary["stages"]["failed"], "stage")} failed</a></p>'
        )
    return "".join(parts)


def _interval(gain: dict[str, Any]) -> str:
    return f"[{gain['ci95'][0]:.3f}, {gain['ci95'][1]:.3f}]"


def body(sweep: Sweep, ledger: Ledger, summary: dict[str, Any], tables: Tables, drawn: list[str], samples: str) -> list[Part]:  # fmt: skip
    """Every section, in order. samples: HTML of texts and what stages make of them."""
    return [
        Part("losses", "Losses", _losses(summary, tables, drawn)),
        Part("frontier", "Frontier", _frontier(sweep, summary, tables, drawn)),
        Part("matched", "Matched", _matched(summary, drawn)),
        Part("choices", "Choices", _choices(summary)),
        Part("curves", "Training", _curves(tables)),
        Part("search", "Search", _search(sweep, summary, tables, drawn)),
        Part("tree", "Stages", _tree(summary, tables, drawn)),
        Part("cost", "Cost", _cost(sweep, tables)),
        Part("data", "Data", _data(sweep, summary, samples)),
        Part("noise", "Noise", _noise(summary, tables, drawn)),
        Part("failures", "Failures", _failures(ledger)),
        Part("recipes", "Every recipe", _recipes(summary)),
        Part("provenance", "What was run", _provenance(sweep, summary)),
    ]


def _losses(summary: dict[str, Any], tables: Tables, drawn: list[str]) -> str:
    if "losses" not in drawn:
        return ""
    asked = [name for name in drawn if name.startswith("question-")]
    panels = "".join(figure(name, "loss against lambda with fitted mean and band") for name in asked)
    rows = [
        [o["name"], f"{o['lambda']:.2f}", f"{o['ci95'][0]:.2f} to {o['ci95'][1]:.2f}", words.verdict_name(o["verdict"]),
         words.gain(o["gain_over_0"]), words.gain(o["gain_over_1"]), o["noise_sd"], o["recipes"]]
        for o in summary["others"]
    ]  # fmt: skip
    header = ["loss", "lambda*", "95% interval", "verdict", "below all-post-training", "below all-pretraining", "sd of a run", "recipes"]  # fmt: skip
    lines = "Lines: fitted means over seeds, with 95% bands; p" if len(tables["curves"]) else "P"
    theirs = note(f"Grey, dashed: the paper's Figure 3 ({paper.CREDIT}).") if len(tables["paper_allocations"]) else ""
    return section(
        "losses", "Immediate and retained loss at every fine-tuning rate",
        figure("losses", "every loss against lambda: runs, fitted means, bands"),
        note(f"{lines}oints: runs, a symbol for each seed. Click a name to hide it, twice to see it alone."), theirs,
        f'<h3>The same runs, asked otherwise</h3><div class="grid">{panels}</div>' if asked else "", table(header, rows, "lambda* by the other losses") if rows else "",
    )  # fmt: skip


def _frontier(sweep: Sweep, summary: dict[str, Any], tables: Tables, drawn: list[str]) -> str:
    if "frontier" not in drawn:
        return ""
    theirs = note(f"Grey: the paper's own checkpoints ({paper.CREDIT}).") if len(tables["paper_checkpoints"]) else ""
    many = tables["frontiers"]["method"].nunique() > MOST_BANDS
    lines = "Lines: Pareto sets, dashed of unmixed recipes." if many else "Solid: the Pareto set. Dotted: the lower-left hull, as the paper draws, with its 95% band over seeds."  # fmt: skip
    return section(
        "frontier", "Frontiers: what fine-tuning gains, what is kept, and what it costs before",
        "<h3>Retained loss against fine-tuning loss</h3>", figure("frontier", "retained loss against fine-tuning loss, Pareto sets and hulls by method"),
        "<h3>Pretraining loss against retained loss</h3>", figure("frontier-pre", "pretraining loss against retained loss, Pareto sets and hulls by method"),
        note(f"Points are means over seeds, each seed's offset taken out; lower left is better. {lines} Squares: unmixed (lambda = 0); the brighter, the larger lambda."), theirs,
        _tradeoffs(sweep, summary["tradeoffs"]),
    )  # fmt: skip


def _tradeoffs(sweep: Sweep, traded: list[dict[str, Any]]) -> str:
    """Which levels of lambda may lie on the frontiers, in words and by level."""
    if not traded:
        return ""
    sets = [", ".join(found["losses"]) for found in traded]
    several = len(sweep.spec.choices) > 1
    header = ["lambda", *["choice"] * several, *(f"{part}: {losses}" for losses in sets for part in ("probability", "kept")), *(f"{loss} above its least" for loss in traded[-1]["losses"])]  # fmt: skip
    rows = [
        [f"{last['lambda']:.3g}", *[last["choice"]] * several, *(value for level in levels for value in (f"{level['probability']:.2f}", "yes" if level["kept"] else "")), *(last[loss] for loss in traded[-1]["losses"])]
        for levels in zip(*(found["levels"] for found in traded), strict=True) for last in levels[-1:]
    ]  # fmt: skip
    led = ", of the choice that leads" if several and not sweep.spec.objective.losses else ""
    return (
        f"<h3>Which lambda may lie on the frontier, fine-tuned at {sweep.spec.objective.finetune_lr:g}{led}</h3>"
        + "".join(f"<p>{escape(words.tradeoff(found))}</p>" for found in traded)
        + note("Of the fitted curves over lambda, at this one fine-tuning rate. Kept are levels that lie on the frontier, where no other is lower in all losses, with a probability of a fifth or more. The doubt about one loss is taken to be independent of that about another, given the runs.")
        + details("tradeoffs", f"Each level's probability: {words.counted(len(rows), 'level')}", table(header, rows, "levels on the frontier", "scroll"))
    )  # fmt: skip


def _matched(summary: dict[str, Any], drawn: list[str]) -> str:
    if not summary["comparison"]:
        return ""
    picture = figure("gap", "how much more mixed recipes keep, against fine-tuning loss") if "gap" in drawn else ""
    why = note("How much lower the hull of mixed recipes lies than that of unmixed ones, seed by seed; band: 95% over seeds. Above zero: mixing keeps more.") if picture else ""  # fmt: skip
    return section("matched", "Retained loss at matched fine-tuning loss", f"<p>{escape(words.compared(summary['comparison']))}</p>", picture, why)  # fmt: skip


def _choices(summary: dict[str, Any]) -> str:
    """What else was chosen, and which of it leads."""
    choices = summary["choices"]
    if len(choices) == 1:
        return ""
    names = [name for name in choices[0] if name != "leads"]
    rows = [[number, *(json.dumps(choice[name]) for name in names), "leads: its curve goes lowest" if choice["leads"] else ""] for number, choice in enumerate(choices)]  # fmt: skip
    shares = summary["importance"] or {}
    mattered = table(["what", "share of the spread"], [[name, f"{100 * share:.0f}%"] for name, share in shares.items()], "what mattered")  # fmt: skip
    why = note("How much of the spread of the objective over all that could be chosen each explains (fANOVA over the runs). A forest's view of runs that were not drawn at random; the seed's share is noise.")  # fmt: skip
    return section(
        "choices", "What else was chosen", table(["choice", *names, ""], rows, "choices beside lambda"),
        *([mattered, why] if shares else []),
    )  # fmt: skip


def _curves(tables: Tables) -> str:
    stages = tables["stages"]
    if tables["training"].empty:
        return ""
    levels = _options([f"{level:g}" for level in sorted(stages["lambda"].unique())], "0")
    seeds = _options([str(seed) for seed in sorted(stages["seed"].unique())], "all")
    boxes = "".join(f'<div id="training-{kind}" class="figure" style="--height: 300px" role="img" aria-label="training loss of {name} stages"></div>' for kind, name in KINDS.items())  # fmt: skip
    return section(
        "curves", "Training curves",
        details(
            "training", f"Training loss of {words.counted(int(stages['state'].eq('published').sum()), 'stage')}",
            f'<div class="controls"><label>lambda <select id="training-lambda">{levels}</select></label><label>seed <select id="training-seed">{seeds}</select></label></div>',
            f'<div class="grid">{boxes}</div>', note("Loss of single global batches, in nats per token. A stage that several recipes share stands under the first of them. Gradient norms and learning rates: data/training.csv."),
        ),
    )  # fmt: skip


def _options(values: list[str], chosen: str) -> str:
    return "".join(f'<option value="{v}"{" selected" * (v == chosen)}>{v}</option>' for v in ["all", *values])


def _search(sweep: Sweep, summary: dict[str, Any], tables: Tables, drawn: list[str]) -> str:
    rounds = tables["search"]
    if rounds.empty:
        return ""
    frontier = bool(sweep.spec.objective.losses)
    rows = [
        ["anchors" if row["round"] == 0 else str(row["round"]), row["chosen"], row["runs"], row["tokens"],
         *([row["known"]] if frontier else ["-" if row["lo"] != row["lo"] else f"{row['lambda']:.2f} [{row['lo']:.2f}, {row['hi']:.2f}]", row["hi"] - row["lo"], words.verdict_name(row["verdict"]) or "-"]), row["hypervolume"]]
        for row in rounds.to_dict("records")
    ]  # fmt: skip
    header = [
        "round",
        "chosen, as lambda:seed" + ":choice" * (len(sweep.spec.choices) > 1),
        "runs",
        "tokens",
        *(["frontier known to, nats"] if frontier else ["lambda* afterwards", "width", "verdict"]),
        "hypervolume",
    ]
    aim = "to how many nats the frontier is known" if frontier else "interval of lambda* and its width"
    picture = figure("search", f"{aim}, against tokens trained") if "search" in drawn else ""
    return section(
        "search", "What the search did, and why it stopped", f"<p>{escape(_stopped(sweep, summary))}</p>", picture,
        note(f"Runs are chosen, a few at a time, where they teach most about {'each of the losses' if frontier else 'the best lambda'} for each token that must be trained. Tokens: what a round added to what was trained already. Hypervolume: the area, in nats squared, of fine-tuning and retained losses that some run so far beats, up to the worst of all runs."),
        details("rounds", f"Each round's choice: {words.counted(len(rows), 'round')}", table(header, rows, "rounds of the search", "scroll")),
    )  # fmt: skip


def _stopped(sweep: Sweep, summary: dict[str, Any]) -> str:
    """Why the search ended, and how far it came."""
    said, asked = f"{words.sentence(summary['stop_reason'])}.", sweep.spec.search.ci_width
    if sweep.spec.objective.losses and summary["tradeoffs"] and "is known to" not in said:
        return f"{said} The frontier is known to {summary['tradeoffs'][0]['known95']:.3f} nats; {sweep.spec.objective.practical:g} was asked for."
    if not (optimum := summary["optimum"]) or "interval of lambda*" in said:
        return said
    width = optimum["ci95"][1] - optimum["ci95"][0]
    return f"{said} The interval of lambda* is {width:.2f} wide; {asked:g} was asked for."


def _tree(summary: dict[str, Any], tables: Tables, drawn: list[str]) -> str:
    stages, tokens = tables["stages"], summary["tokens"]
    if stages.empty:
        return ""
    rows = []
    for kind, name in KINDS.items():
        mine = stages[stages["kind"] == kind]
        done = mine[mine["state"] == "published"]
        rows.append([name, len(mine), len(done), int(done["tokens"].sum()), int((mine["paths"] > 1).sum()), int((done["tokens"] * (done["paths"] - 1)).sum())])  # fmt: skip
    said = (
        f"{tokens['trained']:,} tokens in {summary['stages']['trained'] + summary['stages']['reused']} stages, {summary['stages']['reused']} of them by other sweeps. "
        f"One path per trial and fine-tuning rate would have taken {tokens['trialwise']:,}: {tokens['saved_factor']:.3g} times as many."
        if tokens["saved_factor"] else ""
    )  # fmt: skip
    header = ["stage", "asked for", "published", "tokens trained", "shared by paths", "tokens that sharing saved"]  # fmt: skip
    return section(
        "tree", "The stage tree: tokens trained, shared and saved", f"<p>{escape(said)}</p>", table(header, rows, "stages by kind"),
        figure("tree", "stage tree, widths by tokens"), note("Width is tokens; what hangs under a box shares its training. Numbers: lambda and seed. Blue: pretraining; orange: post-training; pink: fine-tuning; grey: not published. Click to look closer."),
    )  # fmt: skip


def _cost(sweep: Sweep, tables: Tables) -> str:
    done = tables["stages"].query("state == 'published'")
    if done.empty:
        return ""
    rows = []
    gpus = {str(of): sweep.spec.execution.shape(of).gpus_per_worker for of in get_args(Kind)}
    for (kind, device), mine in done.groupby(["kind", "device"], sort=False):
        busy = (mine["train_s"] + mine["evaluate_s"]).sum()
        each = (gpus[str(kind)] or 1) if device != "cpu" else 1  # devices of a worker
        hours = (mine[["train_s", "evaluate_s"]].sum(axis=1) * mine["workers"]).sum() * each / 3600
        rows.append([KINDS[str(kind)], str(device), len(mine), words.duration(mine["setup_s"].sum()), words.duration(mine["train_s"].sum()), words.duration(mine["evaluate_s"].sum()),
                     int(mine["tokens"].sum() / max(busy, 1e-9)), float(hours), words.bytes_(mine["bytes"].sum())])  # fmt: skip
    header = ["stage", "device", "stages", "setting up", "training", "evaluating", "tokens/s", "device-hours", "disk"]
    return section("cost", "Cost", table(header, rows, "time and disk by kind of stage"), note("Summed over stages, as if one after another; training includes what came before an interruption, up to the state that the stage went on from. Device-hours: training and evaluation, times workers and the GPUs that the sweep file gives each now."))  # fmt: skip


def _data(sweep: Sweep, summary: dict[str, Any], samples: str) -> str:
    rows = []
    for role in ROLES:
        pool, epochs = sweep.packed(role), summary["epochs"][role]
        sizes = (
            [pool.documents, pool.train_windows * sweep.spec.sequence_length, pool.heldout_windows]
            if pool
            else ["?"] * 3
        )
        rows.append([f"D_{role}", sweep.source(role).source, *sizes, "?" if epochs is None else f"{epochs:.2f}", Html(f'<span class="key">{sweep.data[role]}</span>')])  # fmt: skip
    header = [
        "",
        "source",
        "documents",
        "tokens to train on",
        "held-out windows",
        "epochs realised at most",
        "fingerprint",
    ]
    return section("data", "Data", table(header, rows, "corpora"), note("Epochs: passes over the pool by the recipe that reads most of it. The fingerprint covers source, revision or content, tokenizer and packing."), samples)  # fmt: skip


def _noise(summary: dict[str, Any], tables: Tables, drawn: list[str]) -> str:
    optimum = summary["optimum"]
    if tables["optima"].empty:
        return ""
    rows = [[row["question"], row["noise_sd"], float(row["seed_sd"]), row["runs"]] for row in tables["optima"].to_dict("records")]  # fmt: skip
    near = f"Near lambda*, one run differs from its seed's curve by {optimum['noise_sd']:.4f} nats (sd); between seeds: {words.between_seeds(optimum)}. " if optimum else ""  # fmt: skip
    said = f"{near}Seeds are paired, so offsets between them cancel in every comparison."
    picture = figure("noise", "sd of one run against lambda, by question") if "noise" in drawn else ""
    return section("noise", "Noise", f"<p>{escape(said)}</p>", picture, table(["loss", "sd of a run", "sd between seeds", "runs"], rows, "noise by loss"))  # fmt: skip


def _failures(ledger: Ledger) -> str:
    if not ledger.failures:
        return ""
    boxes = []
    for key, evidence in ledger.failures.items():
        where = f"rank {evidence.get('rank', '?')} on {evidence.get('host', '?')}"
        log = f"<pre>{escape(chr(10).join(evidence.get('log', [])))}</pre>" if evidence.get("log") else ""
        again = (
            "It diverged, and would again: it is not tried any more."
            if evidence.get("diverged")
            else "The next run tries it again."
        )
        boxes.append(details(f"failure-{key}", f"{evidence.get('kind', 'stage')} {key}: {evidence['error']}", f"<p>{escape(where)}. {again}</p>", log))  # fmt: skip
    return section("failures", f"Failures: {words.counted(len(ledger.failures), 'stage')}", *boxes)


def _recipes(summary: dict[str, Any]) -> str:
    rows: list[list[Any]] = [
        [Html(f'<button data-pin="{number}" aria-label="pin lambda {row["lambda"]:g}, seed {row["seed"]}, rate {row["finetune_lr"]:g}">pin</button>'),
         f"{row['lambda']:g}", row["seed"], row["choice"], f"{row['finetune_lr']:g}", *(row[loss] for loss in LOSSES)]
        for number, row in enumerate(summary["trials"])
    ]  # fmt: skip
    if not rows:
        return ""
    header = ["", "lambda", "seed", "choice", "fine-tuning rate", *LOSSES]
    return section("recipes", "Every recipe", details("all-recipes", f"{words.counted(len(rows), 'recipe')}, each with its losses", table(header, rows, "every recipe", "scroll")))  # fmt: skip


def _provenance(sweep: Sweep, summary: dict[str, Any]) -> str:
    found = summary["provenance"]
    again = f"ee-ray run {sweep.path.name}        # trains it, or goes on with it\nee-ray report {sweep.path.name}     # this report, from the store alone\nee-ray verify {sweep.path.name}     # hashes everything again and derives the summary again"  # fmt: skip
    spec = yaml.safe_dump(found["spec"], sort_keys=False, allow_unicode=True)
    facts = [
        ["versions", ", ".join(f"{name} {number}" for name, number in {"ee_ray": version("ee-ray"), **found["versions"]}.items())],
        ["trained on", ", ".join(found["hosts"]) or "-"], ["devices", ", ".join(found["devices"]) or "-"],
        ["first stage finished", found["first_finished"] or "-"], ["last stage finished", found["last_finished"] or "-"],
        ["report made on", platform.node()],
    ]  # fmt: skip
    files = [[f"data/{name}.csv, .parquet", what] for name, what in TABLES.items()]
    return section(
        "provenance", "What was run", table(["", ""], facts, "where and with what"),
        "<h3>The same again</h3>", f"<pre>{escape(again)}</pre>", note(f"with this sweep file as {sweep.path.name} and ee_ray {version('ee-ray')}; with the same store nothing is trained twice"),
        details("spec", "The sweep file, every field resolved", f"<pre>{escape(spec)}</pre>"),
        details("identities", "What the corpora are made of", f"<pre>{escape(json.dumps(found['data'], indent=1))}</pre>"),
        details("files", "The figures' data, next to this page", table(["file", "holds"], files, "files")),
    )  # fmt: skip
