"""The model card of an exported stage, as Markdown: what it is, how it came to be, and what is known of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import yaml

from ee_ray.export.choice import Chosen

NAMES = {"pre": "D_pre", "post": "D_post", "ft": "D_ft"}


@dataclass(frozen=True)
class Facts:
    """What a card tells. `chain`: records from the first ancestor to the stage itself. `data`: by role, the manifest of each
    corpus that the stage was trained or measured on, with its fingerprint and, `said`, its source in words. `later`: rows of the ledger in which fine-tuning started from it."""

    sweep: str
    chosen: Chosen
    verdict: str
    chain: list[dict[str, Any]]
    data: Mapping[str, dict[str, Any]]
    later: list[dict[str, Any]]
    tokenizer: Any
    end: int


def _table(header: list[str], rows: list[list[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _shortened(text: str, length: int = 300) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _header(facts: Facts) -> str:
    fields: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["ee_ray", facts.chain[-1]["kind"], "data-allocation"],
    }
    hub = [source["hub"] for m in facts.data.values() if "hub" in (source := m["identity"]["source"])]  # fmt: skip
    if hub:
        fields["datasets"] = list(dict.fromkeys(hub))
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def _parts(payload: Mapping[str, Any]) -> str:
    length = payload["sequence_length"]
    return ", ".join(
        f"{(part['stop'] - part['start']) * length:,} of {NAMES[part['role']]}" + (f", {part['passes']} times" if part["passes"] > 1 else "")
        for part in payload["parts"]
    )  # fmt: skip


def _recipe(facts: Facts) -> str:
    rows = []
    for record in facts.chain:
        stage = record["payload"]
        extras = [name for name in ("early_stopping", "dropout", "lora") if stage[name]]
        batch = f"{stage['global_batch_size']} x {stage['sequence_length']}"
        more = "; ".join(f"{name} {json.dumps(stage[name])}" for name in extras) or "-"
        rows.append([record["kind"], f"`{record['key']}`", _parts(stage), record["steps"], batch, f"{stage['learning_rate']:g} to {stage['min_learning_rate']:g}", more])  # fmt: skip
    last = facts.chain[-1]["payload"]
    return "\n\n".join([
        _table(["stage", "key", "tokens", "steps", "batch", "learning rate", "more"], rows),
        f"AdamW, warmup and cosine, weight decay {last['weight_decay']:g}; seed {last['seed']}; trained in {last['precision']}, saved in fp32. "
        f"{facts.chain[-1]['parameters']:,} parameters, a context of {last['sequence_length']} tokens.",
    ])  # fmt: skip


def _losses(facts: Facts) -> str:
    losses = facts.chain[-1]["losses"]
    windows = facts.chain[-1]["payload"]["heldout_windows"]
    text = [
        f"Held-out losses in nats per token, on {windows} windows of each corpus that was kept out of training:",
        _table(["corpus", "loss"], [[NAMES[role], f"{loss:.4f}"] for role, loss in losses.items()]),
    ]
    if facts.later:
        rows = [[f"{row['finetune_lr']:g}", *(f"{row[name]:.4f}" for name in ("L_ret", "L_ft", "L_pre"))] for row in facts.later]  # fmt: skip
        text += [
            "After it was fine-tuned on D_ft, as the sweep did at each of its rates:",
            _table(["fine-tuning rate", "D_post (retained)", "D_ft", "D_pre"], rows),
        ]
    return "\n\n".join(text)


def _data(facts: Facts) -> str:
    rows = [
        [NAMES[role], _shortened(manifest["said"]), f"`{manifest['fingerprint']}`", f"{manifest['documents']:,}"]
        for role, manifest in facts.data.items()
    ]  # fmt: skip
    return _table(["corpus", "source", "fingerprint", "documents"], rows)


def _use(facts: Facts) -> str:
    return f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".")  # this folder
tokenizer = AutoTokenizer.from_pretrained(".")
inputs = tokenizer("The", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=32)[0]))
```

The tokenizer ({_shortened(json.dumps(facts.tokenizer), 120)}) cuts text as in training: nothing is added, and special tokens
written in a text are read as characters. Every document ended with token {facts.end}, `tokenizer.eos_token`."""


def card(facts: Facts) -> str:
    """The whole card."""
    last = facts.chain[-1]
    versions = last["versions"] | {"ee_ray": version("ee-ray")}
    parts = [
        _header(facts),
        f"# {facts.sweep}: {last['kind']} {last['key']}",
        f"A causal language model that [ee_ray](https://arxiv.org/abs/2605.12705) trained to learn how to split scarce target data (D_post) "
        f"between pretraining and post-training. The sweep's verdict: {facts.verdict}",
        "## How it was chosen",
        facts.chosen.how,
        "## Use",
        _use(facts),
        "## Recipe",
        _recipe(facts),
        "## Losses",
        _losses(facts),
        "## Data",
        _data(facts),
        "## What it is not",
        "A base model of an experiment: no instruction tuning beyond the data above, no safety tuning, measured on nothing but the losses above. "
        "Its licence follows from its data, and is for whoever publishes it to state.",
        "## Made with",
        f"{', '.join(f'{name} {number}' for name, number in versions.items())}; on {last['device']}; finished {last['finished']}. "
        "`recipe.yaml`, where it is here, is the winning recipe of the sweep for a larger budget.",
    ]
    return "\n\n".join(parts) + "\n"
