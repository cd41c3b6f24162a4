"""What the report says in words: gains, noise, counts, sizes."""

from itertools import groupby
from typing import Any

APART = "Mixed and unmixed recipes share no fine-tuning loss at which to compare them."


def gain(found: dict[str, Any]) -> str:
    """A difference and its interval, as `_estimate` or `_gap` of the summary has them."""
    low, high = found["ci95"]
    return f"{found['value']:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")


def between_seeds(optimum: dict[str, Any]) -> str:
    sd = optimum["seed_sd"]
    return "unknown from one seed" if sd is None else f"{sd:.4f}" if sd else "none that shows above that"


def sentence(text: str) -> str:
    """The text with a capital to begin with, unless it begins with a field's name; str.capitalize would lower all others."""
    return text if "_" in text.partition(" ")[0] else text[:1].upper() + text[1:]


def advice(optimum: dict[str, Any] | None) -> str:
    """What to do, in one sentence; empty where the runs do not say."""
    if optimum is None:
        return ""
    return {
        "interior": f"Mix about {optimum['lambda']:.0%} of D_post into pretraining and keep the rest for post-training.",
        "boundary_0": "Mix nothing into pretraining: no split is better than keeping all of D_post for post-training.",
        "boundary_1": "Put all of D_post into pretraining: no other split is better.",
        "flat": "Split D_post as is convenient: it makes no difference that matters.",
        "undetermined": "The runs do not say yet how to split D_post.",
    }[optimum["verdict"]]


def advice_on(found: dict[str, Any], practical: float) -> str:
    """What to do where a frontier is asked for, of its entry of the summary's `tradeoffs`, in one sentence."""
    kept = sorted({level["lambda"] for level in found["levels"] if level["kept"]})
    if found["known95"] > practical:
        return f"The runs do not say yet, to {practical:g} nats, which lambda lie on the frontier."
    if len(kept) == 1:
        return f"Mix about {kept[0]:.0%} of D_post into pretraining: it is best by {_listed(found['losses'])} alike."
    return f"Choose lambda, between {kept[0]:.3g} and {kept[-1]:.3g}, by what each loss is worth to you: none of the levels named is beaten in all of them by more than {practical:g} nats."


def counted(number: int, thing: str) -> str:
    return f"{number} {thing}" + "s" * (number != 1)


def contrast(found: dict[str, Any] | None) -> str:
    """What a sweep of frontiers says, in one sentence: mixed against unmixed at as many trials of each."""
    if not found:
        return ""
    if not (gap := found["gap_at_equal_trials"] or found["gap"]):
        return APART
    if gap["ci95"][0] is None:
        return f"By one seed, mixed recipes keep {gap['value']:.3f} nats more at the same fine-tuning loss."
    low, high = gap["ci95"]
    if low > 0:
        return f"Mixing D_post into pretraining keeps more: {gap['value']:.3f} nats at the same fine-tuning loss."
    if high < 0:
        return f"Mixing D_post into pretraining keeps less: {-gap['value']:.3f} nats at the same fine-tuning loss."
    return "Mixed and unmixed recipes cannot be told apart at the same fine-tuning loss."


def verdict_name(verdict: str) -> str:
    return verdict.replace("boundary_", "boundary at ")


def compared(found: dict[str, Any] | None) -> str:
    """Mixed against unmixed at matched fine-tuning loss, in words."""
    if not found or not found["gap"]:
        return APART
    equal, numbers = found["gap_at_equal_trials"], found["trials"]
    said = (
        f"At the same fine-tuning loss, mixed recipes keep {gain(found['gap'])} nats more than unmixed ones: "
        f"{numbers['mixed']} trials against {numbers['unmixed']}, {counted(found['seeds'], 'seed')}."
    )
    if numbers["mixed"] == numbers["unmixed"]:
        return said
    return f"{said} The best of more trials is better by chance; with as many of each it is {gain(equal) if equal else 'not known'}."  # fmt: skip


def tradeoff(found: dict[str, Any]) -> str:
    """Which levels may lie on a frontier and what that may lack, of an entry of the summary's `tradeoffs`."""
    if all(level["kept"] for level in found["levels"]):
        return on_frontier(found)
    return f"{on_frontier(found)} With 95% probability each level left out has one among these that is at most {found['short95']:.3f} nats worse in any of the losses."


def on_frontier(found: dict[str, Any]) -> str:
    """Which levels may lie on it, alone."""
    by_choice = {choice: list(levels) for choice, levels in groupby(found["levels"], key=lambda level: level["choice"])}
    which = [
        _levels(levels) + f" with choice {choice}" * (len(by_choice) > 1)
        for choice, levels in by_choice.items() if any(level["kept"] for level in levels)
    ]  # fmt: skip
    return f"By {_listed(found['losses'])}, {_listed(which)} may lie on the frontier."


def _levels(levels: list[dict[str, Any]]) -> str:
    """Those that are kept, or all but the others, or how many."""
    kept, out = ([f"{level['lambda']:.3g}" for level in levels if level["kept"] == yes] for yes in (True, False))
    if len(kept) < 12 and out:
        return f"lambda {_listed(kept)}"
    if len(out) < 12:
        return "every level of lambda" + (f" but {_listed(out)}" if out else "")
    return f"{len(kept)} levels of lambda between {kept[0]} and {kept[-1]}"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


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
