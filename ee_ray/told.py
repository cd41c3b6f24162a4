"""What `plan` and `status` tell people: text of what the quotation and the ledger hold."""

from typing import Any

from ee_ray.ledger import Ledger
from ee_ray.plan import distinct
from ee_ray.quote import in_short


def together_text(found: dict[str, Any]) -> str:
    """What several sweeps over one store cost, as `quote.together` has it."""
    tokens, stages = found["tokens"], found["stages"]
    hours = f"; {found['gpu_hours']:,.1f} GPU-hours" if found["gpu_hours"] else ""
    return (
        f"together          {stages['planned']} stages planned, {stages['cached']} cached; {tokens['to_train']:,} tokens to train\n"
        f"one path a trial  {tokens['trialwise']:,} tokens: sharing stages saves a factor of {tokens['saved_factor']:g}\n"
        f"disk              {found['disk_bytes'] / 1e6:,.1f} MB{hours}"
    )


def plan_text(quotation: dict[str, Any]) -> str:
    """A quotation (`quote.quote`) as a table and a few lines."""
    tokens, search = quotation["tokens"], quotation["search"]
    choices = f" of {search['choices']} choices" if search["choices"] > 1 else ""
    lines = [
        f"{quotation['sweep']}: {search['trials']} trials{choices} certain, at most {search['trials_at_most']}",
        "",
    ]
    lines.append(f"{'stage':<10}{'planned':>9}{'cached':>9}{'tokens to train':>20} {'warmup/steps':>22}")
    for kind in ("pretrain", "posttrain", "finetune"):
        stages = [stage for stage in quotation["stages"] if stage["kind"] == kind]
        planned = [stage for stage in stages if stage["status"] == "planned"]
        warmups = sorted({(stage["steps"], f"{stage['warmup_steps']}/{stage['steps']}") for stage in stages})
        shown = warmups[0][1] if len(warmups) == 1 else f"{warmups[0][1]}..{warmups[-1][1]}"
        count = sum(stage["tokens"] for stage in planned)
        lines.append(f"{kind:<10}{len(planned):>9}{len(stages) - len(planned):>9}{count:>20,} {shown:>22}")
    lines += [
        "",
        f"tokens to train   {tokens['to_train']:,}, and at most {tokens['later_at_most']:,} in later rounds",
        f"one path a trial  {tokens['trialwise']:,} tokens: sharing stages saves a factor of {tokens['saved_factor']:g}",
        "epochs            " + ", ".join(f"{role} {'?' if n is None else format(n, '.2f')}" for role, n in quotation["epochs"].items()),
    ]  # fmt: skip
    if quotation["disk_bytes"] is not None:
        lines.append(f"disk              {quotation['disk_bytes'] / 1e6:,.1f} MB of new stages")
    rate = quotation["tokens_per_s"]
    if quotation["time_s"] is not None:
        lines.append(f"time              {quotation['time_s'] / 60:,.1f} min of training at {rate['value']:,} tokens/s on {rate['slots']} slots ({rate['source']})")  # fmt: skip
        lines.append(f"GPU-hours         {quotation['gpu_hours']:,.4g}")
        if price := quotation["price"]:
            lines.append(f"price             {price['certain']:,.2f}, at most {price['at_most']:,.2f} with later rounds, at {price['per_gpu_hour']:g} a GPU-hour")  # fmt: skip
    else:
        lines.append(f"time              {rate['source']}")
    lines.append(f"in short          {in_short(quotation)}")
    return "\n".join(lines)


def state(ledger: Ledger) -> dict[str, Any]:
    """How far a sweep is, schema 1."""
    stages = distinct(ledger.trials)
    return {
        "schema": 1,
        "stages": {"planned": len(stages), "published": len(ledger.records), "failed": len(ledger.failures)},
        "trials": {"asked": len(ledger.trials), "finished": len(ledger.results)},
        "tokens": {
            "trained": sum(record["tokens"] for record in ledger.records.values()),
            "left": sum(stage.identity.tokens for key, stage in stages.items() if key not in ledger.records),
        },
        "stop": ledger.decision.stop,
    }


def failure_text(key: str, evidence: dict[str, Any]) -> str:
    """Which stage failed, where, and of what, in one line."""
    where = f"rank {evidence.get('rank', '?')} on {evidence.get('host', '?')}"
    return f"failed: {evidence.get('kind', 'stage')} {key}, {where}: {evidence['error']}"


def status_text(name: str, store: str, state: dict[str, Any]) -> str:
    """The same in one sentence."""
    stages, trials, tokens = state["stages"], state["trials"], state["tokens"]
    failed = f", {stages['failed']} failed" if stages["failed"] else ""
    return (
        f"{name}: {trials['finished']} of {trials['asked']} trials, {stages['published']} of {stages['planned']} stages"
        f"{failed}; {tokens['trained']:,} tokens trained, {tokens['left']:,} left; "
        + (f"ended: {state['stop']}" if state["stop"] else f"not ended (store: {store})")
    )
