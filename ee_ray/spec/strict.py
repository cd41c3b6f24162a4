"""What every part of a spec shares: nothing unknown, nothing coerced, nothing changed later."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, lt=1)]


def _is_commit(text: str) -> str:
    if len(text) != 40 or set(text) - set("0123456789abcdef"):
        raise ValueError(f"must be a commit hash of 40 hex digits, got {text!r}: branches and tags move")
    return text


Commit = Annotated[str, AfterValidator(_is_commit)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
