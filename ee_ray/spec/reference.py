"""The reference of the spec, made of its types: a page for people and a JSON Schema for editors.

python -m ee_ray.spec.reference docs    writes docs/spec.md and docs/spec.schema.json
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ee_ray.spec.sweep import SweepSpec

PAGE, SCHEMA = "spec.md", "spec.schema.json"


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a sweep file. It holds each field's type and range; what must hold between fields is
    for `ee-ray plan` to say."""
    found = SweepSpec.model_json_schema(by_alias=True)
    found["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    found["title"] = "ee_ray sweep"
    tokenizer = found["$defs"]["Tokenizer"]
    del tokenizer["properties"]["raw_bytes"]
    found["$defs"]["Tokenizer"] = {
        "description": tokenizer.pop("description"),
        "anyOf": [{"const": "bytes"}, tokenizer],
    }
    on = found["$defs"]["Train"]["properties"]["on"]
    on["anyOf"] = [on["items"], {"type": on.pop("type"), "items": on.pop("items"), "minItems": on.pop("minItems")}]
    found["properties"]["tokenizer"]["default"] = "bytes"
    for each in (found, *found["$defs"].values()):
        for field in each.get("properties", {}).values():
            field.pop("title", None)
    return found


def _type(field: dict[str, Any]) -> str:
    """A field's type in words."""
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "anyOf" in field:
        return " or ".join(_type(branch) for branch in field["anyOf"] if branch.get("type") != "null")
    if field["type"] == "array":
        return f"list of {_type(field['items']) if field['items'] else 'anything'}"
    if field["type"] == "object":
        return "mapping"
    return {"integer": "whole number", "number": "number", "string": "text", "boolean": "yes or no"}[field["type"]]


SIGNS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
}


def _branches(field: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield field
    for branch in field.get("anyOf", ()):
        yield from _branches(branch)
    if field.get("items"):
        yield from _branches(field["items"])


def _range(field: dict[str, Any]) -> str:
    branches = list(_branches(field))
    found = [text.format(branch[name]) for name, text in SIGNS.items() for branch in branches if name in branch]
    return f" ({', '.join(found)})" if found else ""


def _default(field: dict[str, Any], required: bool) -> str:
    if required:
        return "needed"
    value = field.get("default")
    if value is None:
        return "none"
    if isinstance(value, dict) and value:
        return "its own defaults"
    return f"`{json.dumps(value)}`"


def _section(title: str, part: dict[str, Any]) -> str:
    kinds = [part, *part.get("anyOf", ())]
    properties = next(kind["properties"] for kind in kinds if "properties" in kind)
    required = {name for kind in kinds for name in kind.get("required", ())}
    lines = [f"## {title}", "", part["description"], "", "| field | type | default | unit | what it is |", "|---|---|---|---|---|"]  # fmt: skip
    for name, field in properties.items():
        unit = next((branch["unit"] for branch in _branches(field) if "unit" in branch), "")
        cells = (f"`{name}`", _type(field) + _range(field), _default(field, name in required), unit, " ".join(field["description"].split()))  # fmt: skip
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


HEAD = """# Spec

Every field of a sweep file, made from the types that read it by `python -m ee_ray.spec.reference docs`. Unknown fields are
refused, and nothing is coerced: a number in quotes is text. All problems of a file are reported at once.

Editors complete and check sweep files as you type with [spec.schema.json](spec.schema.json): the first line of every file
in `sweeps/` names it, for editors with the YAML language server (VS Code, Neovim, IntelliJ). In a file of your own:

```yaml
# yaml-language-server: $schema=PATH/TO/docs/spec.schema.json
```

The schema knows the type and the range of each field; what must hold between fields (budgets that divide, rates that are
listed) is said by `ee-ray plan`."""


def page(found: dict[str, Any]) -> str:
    """docs/spec.md for a schema: a table for each part, the whole file first."""
    parts = {"A sweep": {**found, "description": "The fields at the top of the file."}}
    order = ["Source", "Data", "Tokenizer", "Train", "Checkpoint", "Stages", "Pretrain", "Exposure", "Posttrain", "EarlyStopping", "Dropout", "Lora", "Finetune", "Search", "Objective", "Execution", "Own"]  # fmt: skip
    assert sorted(order) == sorted(found["$defs"]), "a part of the spec has no place on the page"
    parts |= {name: found["$defs"][name] for name in order}
    return "\n\n".join([HEAD, *(_section(title, part) for title, part in parts.items())]) + "\n"


def write(folder: Path) -> None:
    """Write the page and the schema into `folder`."""
    found = schema()
    (folder / PAGE).write_text(page(found))
    (folder / SCHEMA).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("usage: python -m ee_ray.spec.reference FOLDER")
    write(Path(sys.argv[1]))
