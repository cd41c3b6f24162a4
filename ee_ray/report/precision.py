"""What a sweep's runs say about their own noise, and what the asked-for precision will take."""

from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from ee_ray.errors import UserError
from ee_ray.forecast import FUTURES, MOST_RUNS, forecast
from ee_ray.ledger import Ledger
from ee_ray.propose import fitted
from ee_ray.report.answers import answers
from ee_ray.sweep import Sweep


def precision(sweep: Sweep, ledger: Ledger) -> dict[str, Any]:
    """Noise of every loss that is asked for or that was measured, and a forecast for the objective. JSON, schema 1.

    Raises:
        UserError: the runs so far span fewer than three levels of lambda.
    """
    goal, search = sweep.spec.objective, sweep.spec.search
    if not fitted(sweep.spec, tuple(ledger.results.items())):
        raise UserError(f"{sweep.path}: fewer than three levels of lambda have a result: nothing to judge noise by")
    console = Console(stderr=True)
    coming = forecast(sweep.spec, ledger.results, ledger.prices)
    futures = list(track(coming, "forecast", FUTURES, console=console, transient=True, disable=not console.is_terminal))
    done = [future for future in futures if future.enough]
    spread = {
        name: np.quantile([getattr(future, name) for future in futures], [0.1, 0.5, 0.9], method="nearest").tolist()
        for name in ("runs", "tokens", "seeds")
    }
    optima = {answer.name: answer.optimum for answer in answers(sweep, ledger) if answer.optimum}
    first = next(iter(optima.values()))
    return {
        "schema": 1,
        "sweep": sweep.spec.name,
        "runs": first.observations,
        "seeds": first.seeds,
        "noise": [
            {"name": name, "noise_sd": found.noise_sd, "seed_sd": None if np.isnan(found.seed_sd) else found.seed_sd}
            for name, found in optima.items()
        ],
        "asked": ({"practical": goal.practical} if goal.losses else {"ci_width": search.ci_width}) | {"max_trials": search.max_trials},
        "forecast": {
            **spread,
            "futures": FUTURES,
            "reach_it": len(done),
            "cut": sum(not future.enough and future.runs >= MOST_RUNS for future in futures),
            "within_max_trials": sum(future.runs <= search.max_trials for future in done),
        },
    }  # fmt: skip


def precision_text(found: dict[str, Any]) -> str:
    forecast, asked = found["forecast"], found["asked"]
    lines = [f"{found['sweep']}: {found['runs']} runs of {found['seeds']} seeds", ""]
    lines.append(f"{'loss (nats)':<52}{'sd of a run':>12}{'between seeds':>15}")
    for row in found["noise"]:
        between = "unknown" if row["seed_sd"] is None else f"{row['seed_sd']:.4f}"
        lines.append(f"{row['name']:<52}{row['noise_sd']:>12.4f}{between:>15}")
    (low, runs, high), (_, tokens, _), (_, seeds, _) = (forecast[name] for name in ("runs", "tokens", "seeds"))
    goal = f"a frontier known to {asked['practical']:g} nats" if "practical" in asked else f"an interval of lambda* at most {asked['ci_width']:g} wide, or a curve known to be flat"  # fmt: skip

    def told(count: int) -> str:
        """A future that was cut says how many runs are too few, not how many it takes."""
        return f"more than {MOST_RUNS}" if forecast["cut"] and count >= MOST_RUNS else str(count)

    about = "" if told(runs) != str(runs) else "about "
    lines += [
        "",
        f"asked for       {goal}",
        f"it takes        {about}{told(runs)} runs of {seeds} seeds, {tokens:,} tokens; {told(low)} to {told(high)} runs in 8 of 10 futures",
        f"reached in      {forecast['reach_it']} of {forecast['futures']} futures within {MOST_RUNS} runs and the seeds given, {forecast['within_max_trials']} within max_trials {asked['max_trials']}",
    ]  # fmt: skip
    return "\n".join(lines)
