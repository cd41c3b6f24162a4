"""What every part of a spec shares: nothing unknown, nothing coerced, nothing changed later."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, lt=1)]

# Amounts by their unit, which the reference of the spec (docs/spec.md) tells.
Tokens = Annotated[int, Field(gt=0, json_schema_extra={"unit": "tokens"})]
ContextTokens = Annotated[int, Field(ge=8, json_schema_extra={"unit": "tokens"})]
Windows = Annotated[int, Field(gt=0, json_schema_extra={"unit": "windows"})]
Sequences = Annotated[int, Field(gt=0, json_schema_extra={"unit": "sequences"})]
Steps = Annotated[int, Field(gt=0, json_schema_extra={"unit": "steps"})]
StepsFromZero = Annotated[int, Field(ge=0, json_schema_extra={"unit": "steps"})]
Bytes = Annotated[int, Field(gt=0, json_schema_extra={"unit": "bytes"})]
Nats = Annotated[float, Field(gt=0, json_schema_extra={"unit": "nats"})]
Seconds = Annotated[float, Field(ge=0, json_schema_extra={"unit": "s"})]
Hours = Annotated[float, Field(gt=0, json_schema_extra={"unit": "h"})]
GpuHours = Annotated[float, Field(gt=0, json_schema_extra={"unit": "GPU h"})]


def _is_commit(text: str) -> str:
    if len(text) != 40 or set(text) - set("0123456789abcdef"):
        raise ValueError(f"must be a commit hash of 40 hex digits, got {text!r}: branches and tags move")
    return text


Commit = Annotated[str, AfterValidator(_is_commit), Field(json_schema_extra={"pattern": "^[0-9a-f]{40}$"})]


class Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
