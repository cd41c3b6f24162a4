"""What the report says in words: gains, noise, counts, sizes."""

from typing import Any


def gain(found: dict[str, Any]) -> str:
    """A difference and its interval, as `_estimate` or `_gap` of the summary has them."""
    low, high = found["ci95"]
    return f"{found['value']:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")


def between_seeds(optimum: dict[str, Any]) -> str:
    sd = optimum["seed_sd"]
    return "unknown from one seed" if sd is None else f"{sd:.4f}" if sd else "none that shows above that"


def sentence(text: str) -> str:
    """The text with a capital to begin with; str.capitalize would lower all others."""
    return text[:1].upper() + text[1:]


def advice(optimum: dict[str, Any] | None) -> str:
    """What to do, in one sentence; empty where the runs do not say."""
    if optimum is None:
        return ""
    return {
        "interior": f"Mix about {optimum['lambda']:.0%} of D_post into pretraining and keep the rest for post-training.",
        "boundary_0": "Mix nothing into pretraining: keep all of D_post for post-training.",
        "boundary_1": "Put all of D_post into pretraining.",
        "flat": "Split D_post as is convenient: it makes no difference that matters.",
        "undetermined": "The runs do not say yet how to split D_post.",
    }[optimum["verdict"]]


def verdict_name(verdict: str) -> str:
    return verdict.replace("boundary_", "boundary at ")


def compared(found: dict[str, Any] | None) -> str:
    """Mixed against unmixed at matched fine-tuning loss, in words."""
    if not found or not found["gap"]:
        return "Mixed and unmixed recipes share no fine-tuning loss at which to compare them."
    equal = found["gap_at_equal_trials"]
    return (
        f"At the same fine-tuning loss, mixed recipes keep {gain(found['gap'])} nats more than unmixed ones: "
        f"{found['trials']['mixed']} trials against {found['trials']['unmixed']}, {found['seeds']} seeds. The best of more trials is better by chance; "
        f"with as many of each it is {gain(equal) if equal else 'not known'}."
    )


def tokens(count: float) -> str:
    """A count in at most four characters and a unit."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:g}"


def bytes_(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:g} bytes"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
