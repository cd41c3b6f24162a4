"""A sweep is a file: what to train, on what, how finely to split it, and how sure to be.

`load_sweep` reads the YAML strictly and reports every problem at once.
"""

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ee_ray.errors import UserError
from ee_ray.spec.sweep import SweepSpec


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 3e-4 is a number, as it is in YAML 1.2, and a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _lines(path: Path, error: ValidationError) -> list[str]:
    """One line for each problem: file, field, what was got, what would do."""
    lines = []
    for item in error.errors():
        # A union reports each branch with the branch's type as the last element of loc: not a field of the user's.
        where = ".".join(str(part) for part in item["loc"] if not str(part).startswith(("dict[", "literal[")))
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "missing":
            message = "is missing"
        elif item["type"] == "extra_forbidden":
            message = "is not a field here"
        elif item["type"] != "value_error":
            message = f"{message[0].lower()}{message[1:]}, got {item['input']!r}"
        for line in message.split("\n"):
            lines.append(f"{path}: {where}: {line}" if where else f"{path}: {line}")
    return lines


def load_sweep(path: Path | str) -> SweepSpec:
    """Read and check a sweep file.

    Raises:
        UserError: the file cannot be read, or holds anything that is unknown, missing, of the wrong type or
            inconsistent; one line for each problem.
    """
    path = Path(path)
    try:
        raw = yaml.load(path.read_text(), _Loader)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: must be a mapping of fields, got {type(raw).__name__}")
    try:
        return SweepSpec.model_validate(raw)
    except ValidationError as error:
        raise UserError(_lines(path, error)) from None
