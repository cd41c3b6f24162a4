"""Which of the things that were chosen mattered: shares of the spread of the objective (fANOVA, Hutter et al. 2014, by Optuna)."""

from collections.abc import Mapping
from importlib import import_module
from itertools import product

from ee_ray.objective import Loss
from ee_ray.plan import Point
from ee_ray.spec.sweep import SweepSpec

FEWEST = 12  # runs; a forest over fewer says little


def importance(spec: SweepSpec, results: Mapping[Point, Loss | None]) -> dict[str, float] | None:
    """Shares, that sum to 1, of the objective's variance over all of the search space that lambda, the seed and each chosen
    field explain, interactions shared out; None where nothing was chosen beside lambda, of fewer than FEWEST runs, or where a
    frontier is asked for.

    A forest's view: it is flat where nothing was run, and the search did not run at random. The seed's share is noise.
    """
    told = {point: loss for point, loss in results.items() if isinstance(loss, float)}
    fields = {name: values for name, values in spec.search.choices.items() if len(values) > 1}
    if not fields or len(told) < FEWEST:
        return None
    optuna = import_module("optuna")  # 0.5 s, and the forest's library 2 s: only where there is something to tell
    combinations = list(product(*(range(len(values)) for values in spec.search.choices.values())))
    space = {
        "lambda": optuna.distributions.FloatDistribution(0.0, 1.0),
        "seed": optuna.distributions.CategoricalDistribution(sorted({point.seed for point in told})),
        **{name: optuna.distributions.CategoricalDistribution(range(len(values))) for name, values in fields.items()},
    }
    trials = []
    for point, loss in sorted(told.items(), key=lambda item: (item[0].level, item[0].seed, item[0].choice)):
        chosen = dict(zip(spec.search.choices, combinations[point.choice], strict=True))
        place = {"lambda": point.level / spec.search.ladder, "seed": point.seed}
        params = place | {name: chosen[name] for name in fields}
        trials.append(optuna.trial.create_trial(params=params, distributions=space, value=loss))
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it tells of each study that is made
    study = optuna.create_study()
    study.add_trials(trials)
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: round(float(share), 4) for name, share in found.items()}
