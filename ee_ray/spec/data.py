"""The `data:` part of a spec: three corpora, and how a part of each is held out."""

from string import Formatter
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from ee_ray.spec.strict import Bytes, Commit, Strict, Windows

ROLES = ("pre", "post", "ft")
_HUB = ("revision", "config", "split", "streaming")
_PAIR = ("prompt", "completion", "template")


def _is_source(text: str) -> str:
    kind, _, rest = text.partition(":")
    if "://" in rest and "@" in rest.partition("://")[2].partition("/")[0]:
        raise ValueError("holds a name or a password: sweep files are copied into stores and reports; credentials belong in the environment")  # fmt: skip
    if kind not in ("builtin", "file", "hf") or not rest:
        raise ValueError(
            f"must be builtin:web|music|chemistry|instructions, file:PATH (here, s3:// or gs://; * matches names) "
            f"or hf:ID (a data set of the hub), got {text!r}"
        )
    return text


def _is_template(text: str) -> str:
    try:
        fields = [tuple(part[1:]) for part in Formatter().parse(text) if part[1] is not None]
    except ValueError as error:
        raise ValueError(f"is not a format string: {error}") from None
    if sorted(fields) != [("completion", "", None), ("prompt", "", None)]:
        raise ValueError(f"must hold {{prompt}} and {{completion}} once each, and no other field, got {text!r}")
    return text


class Source(Strict):
    """One corpus. `size` is how many bytes of text to take of a builtin corpus or a data set of the hub.

    A document is the column `field`; or `template` filled with the columns `prompt` and `completion`, of which
    `loss: completion` trains and measures the completion and the end of the document only.
    """

    source: Annotated[str, AfterValidator(_is_source), Field(json_schema_extra={"pattern": "^(builtin|file|hf):."})]
    """where documents come from: `builtin:NAME`, `file:PATH` or `hf:ID` ([data.md](data.md))"""
    size: Bytes | None = None
    """text to take of a builtin corpus, which needs it, or of a data set of the hub"""
    field: str = "text"
    """the column that holds a document"""
    prompt: str | None = None
    """the column of what is only read"""
    completion: str | None = None
    """the column of what is answered"""
    template: Annotated[str, AfterValidator(_is_template)] | None = None
    """how a document is made of `{prompt}` and `{completion}`"""
    loss: Literal["all", "completion"] = "all"
    """whether every token carries loss, or only those of the completion"""
    revision: Commit | None = None
    """the commit of the data set's repository that is meant; needed for hf:"""
    config: str | None = None
    """which of the data set's configurations, for hf:"""
    split: str = "train"
    """which of the data set's splits, for hf:"""
    streaming: bool = False
    """read from the hub while packing, instead of downloading first"""
    strict: bool = False
    """refuse a token budget beyond the pool instead of repeating it"""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read: one text, or a prompt and a completion."""
        return (self.prompt, self.completion) if self.prompt and self.completion else (self.field,)

    @model_validator(mode="after")
    def _consistent(self) -> "Source":
        kind, given, problems = self.source.partition(":")[0], self.model_fields_set, []
        if (kind == "builtin") > bool(self.size) or (kind == "file" and self.size):
            problems.append("size is needed for builtin: sources, possible for hf: sources, and not for file: sources")
        if kind == "hf" and not self.revision:
            problems.append("revision is missing: pin an hf: source to the commit hash of its repository")
        if kind != "hf" and (extra := [name for name in _HUB if name in given]):
            problems.append(f"{', '.join(extra)}: only for hf: sources")
        pair = [name for name in _PAIR if getattr(self, name)]
        if pair and len(pair) < len(_PAIR):
            problems.append(f"prompt, completion and template go together: {', '.join(n for n in _PAIR if n not in pair)} missing")  # fmt: skip
        if pair and ("field" in given or kind == "builtin"):
            problems.append("prompt and completion take the place of field, and builtin: sources have neither")
        if self.loss == "completion" and not pair:
            problems.append("loss: completion needs prompt, completion and template")
        if problems:
            raise ValueError("\n".join(problems))
        return self


class Data(Strict):
    """The three corpora (paper, section 3), and how the held-out split is drawn: by document, before packing."""

    pre: Source
    """D_pre, what is pretrained on"""
    post: Source
    """D_post, the scarce target data that lambda splits"""
    ft: Source
    """D_ft, what others fine-tune on later"""
    heldout_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    """the part of each corpus's documents that is kept out of training"""
    heldout_windows: Windows = 64
    """held-out windows of each corpus that losses are measured on"""
