"""The `data:` part of a spec: three corpora, and how a part of each is held out."""

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from ee_ray.spec.strict import Positive, Strict

ROLES = ("pre", "post", "ft")


def _is_source(text: str) -> str:
    kind, _, rest = text.partition(":")
    if kind not in ("builtin", "file") or not rest:
        raise ValueError("must be builtin:web|music|chemistry|instructions or file:PATH (.txt, .jsonl or .parquet)")
    return text


class Source(Strict):
    """One corpus. `size` (bytes of text) is how much of a builtin corpus to generate; `field` names the text column."""

    source: Annotated[str, AfterValidator(_is_source)]
    size: Positive | None = None
    field: str = "text"
    strict: bool = Field(False, description="refuse a token budget beyond the pool instead of repeating it")

    @model_validator(mode="after")
    def _size_belongs_to_builtin(self) -> "Source":
        if self.source.startswith("builtin:") != (self.size is not None):
            raise ValueError("size is needed for builtin: sources, and only there")
        return self


class Data(Strict):
    """The three corpora (paper, section 3), and how the held-out split is drawn: by document, before packing."""

    pre: Source
    post: Source
    ft: Source
    heldout_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    heldout_windows: Positive = 64
