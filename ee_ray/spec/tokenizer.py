"""The `tokenizer:` part of a spec: bytes, a tokenizer of one's own, one of the hub's, or one trained on the spot."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ee_ray.spec.strict import Commit, Strict

_KINDS = "must be bytes, {folder: PATH}, {hub: ID, revision: COMMIT} or {train: {vocab_size: N, on: pre}}"


class Train(Strict):
    """A byte-level BPE of at most `vocab_size` tokens, trained on the training text of the corpora in `on`."""

    vocab_size: Annotated[int, Field(ge=257)]
    """the most tokens that it may have: 256 bytes and the end of a document, at least"""
    on: Annotated[
        list[Literal["pre", "post", "ft"]],
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
        Field(min_length=1),
    ]
    """the corpora on whose training text it is trained: pre, post, ft, or a list of them"""


class Tokenizer(Strict):
    """`bytes`, or one of {folder: PATH}, {hub: ID, revision: COMMIT}, {train: {vocab_size: N, on: pre}}.

    `end` is the token that ends each document; without it, the eos token that the tokenizer's own files name.
    """

    raw_bytes: bool = False
    """what `tokenizer: bytes` means"""
    folder: str | None = None
    """one of your own: tokenizer.json, or its folder"""
    hub: str | None = None
    """one of the Hugging Face hub, at `revision`"""
    revision: Commit | None = None
    """the commit of its repository"""
    train: Train | None = None
    """a byte-level BPE, trained on the spot"""
    end: str | None = None
    """the token that ends each document; without it the eos token of the tokenizer's own files"""

    @model_validator(mode="before")
    @classmethod
    def _bytes_by_name(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "bytes":
            raise ValueError(f"{_KINDS}, got {value!r}")
        return {"raw_bytes": True} if value == "bytes" else value

    @model_validator(mode="after")
    def _one_kind(self) -> "Tokenizer":
        kinds = [bool(kind) for kind in (self.raw_bytes, self.folder, self.hub, self.train)]
        if sum(kinds) != 1:
            raise ValueError(_KINDS)
        if bool(self.hub) != bool(self.revision):
            raise ValueError(
                "revision goes with hub:, and hub: needs it: the commit hash of the tokenizer's repository"
            )
        if self.end is not None and not (self.folder or self.hub):
            raise ValueError("end goes with folder: and hub: the other tokenizers have an end of their own")
        return self
