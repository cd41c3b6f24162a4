"""Which published stage to take away, and why that one."""

from dataclasses import dataclass

from ee_ray.errors import UserError
from ee_ray.ledger import Ledger
from ee_ray.objective import describe, observed
from ee_ray.plan import Point, Trial
from ee_ray.propose import estimate
from ee_ray.sweep import Sweep


@dataclass(frozen=True)
class Chosen:
    """A stage by its key, and in sentences how it was chosen."""

    key: str
    how: str


def winner(sweep: Sweep, ledger: Ledger) -> Trial | None:
    """The trial to take away: at the trained level nearest to lambda*, that with the least objective. None while there is
    no lambda*."""
    goal, spec = sweep.spec.objective, sweep.spec
    optimum = estimate(spec, ledger.results)
    if optimum is None:
        return None
    rows = observed(goal, ledger.leading_rows)
    means = rows.groupby("lambda")["loss"].mean()
    level = min(means.index, key=lambda each: (abs(each - optimum.lambda_star), means[each]))
    here = rows[rows["lambda"] == level]
    seed = int(here.loc[here["loss"].idxmin(), "seed"])
    point = Point(round(level * spec.search.ladder), seed, ledger.choice)
    return next(trial for trial in ledger.trials if trial.point == point)


def best(sweep: Sweep, ledger: Ledger) -> Chosen:
    """What `winner` hands on to fine-tuning: the post-trained model, or at lambda = 1 the pretrained one.

    Raises:
        UserError: the sweep has no lambda*, or none yet.
    """
    if sweep.spec.objective.losses:
        raise UserError(f"{sweep.path}: objective.loss is pareto, and no stage is best by all of {', '.join(sweep.spec.objective.losses)}: name one with --key, such as a posttrain_key of summary.json")  # fmt: skip
    trial, optimum = winner(sweep, ledger), estimate(sweep.spec, ledger.results)
    if trial is None or optimum is None:
        raise UserError(f"{sweep.path}: has no lambda* yet, which needs three levels: ee-ray run {sweep.path}, or name a stage with --key")  # fmt: skip
    level = trial.point.level / sweep.spec.search.ladder
    rows = observed(sweep.spec.objective, ledger.leading_rows)
    losses = rows[rows["lambda"] == level]["loss"]
    low, high = optimum.ci95
    what = "the post-trained model" if trial.posttrain else "the pretrained model (lambda = 1 leaves nothing to post-train on)"  # fmt: skip
    how = (
        f"It is {what} of seed {trial.point.seed} at lambda = {level:g}, the trained level nearest to "
        f"lambda* = {optimum.lambda_star:.3g} (95% interval {low:.3g} to {high:.3g}; verdict: {optimum.verdict.replace('_', ' at ')}). "
        f"Of the {len(losses)} seeds trained at that level it has the least {describe(sweep.spec.objective)}: "
        f"{losses.min():.4f} nats, where their mean is {losses.mean():.4f}. The least of several runs is better than its "
        "recipe: expect the mean of another run."
    )
    return Chosen(trial.upstream.key, how)


def named(sweep: Sweep, ledger: Ledger, start: str) -> Chosen:
    """The one published stage of the store whose key starts with `start`, be it of this sweep or of another.

    Raises:
        UserError: no such stage, or several.
    """
    record = sweep.store.named(start)
    key = record["key"]
    users = [trial.point for trial in ledger.trials if any(stage.key == key for stage in trial.stages)]
    if not users:
        return Chosen(key, f"It was named by its key. It is a stage of the sweep {record['sweep']}, and none of {sweep.spec.name}.")  # fmt: skip
    places = sorted({(point.level / sweep.spec.search.ladder, point.seed) for point in users})
    where = ", ".join(f"lambda = {level:g} with seed {seed}" for level, seed in places[:4])
    return Chosen(key, f"It was named by its key. It is a {record['kind']} stage of {where}{' and others' if len(places) > 4 else ''}.")  # fmt: skip
