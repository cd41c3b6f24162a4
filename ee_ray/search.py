"""Ray Tune and Optuna: trials as light drivers, proposals from the ladder. The only file that drives either.

A trial asks the board for its stages, waits without holding a CPU or a GPU, and reports from the store's records.
Optuna's study is kept beside the store for people and dashboards to read; what the search decides is a function of the
results alone (propose.py), so nothing is lost with the study, and a sweep resumes from its ledger.
"""

import math
import time
import warnings
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import optuna
import ray
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial
from ray import tune
from ray.actor import ActorHandle
from ray.tune.error import TuneError
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from ee_ray.board import Board, Order, State
from ee_ray.cluster import NAMESPACE, ON_HEAD, call_process
from ee_ray.disk import drop_torn_line, is_ended
from ee_ray.errors import common_cause
from ee_ray.events import link_runs, recipe_name, unlink_removed
from ee_ray.ledger import LOSSES, Ledger, failure_of, note, settled, trial_rows
from ee_ray.plan import Point, Trial, build_trial, distinct, sweep_key
from ee_ray.propose import Replay, Rounds, estimate, estimate_frontier
from ee_ray.spec.sweep import SweepSpec
from ee_ray.store import Store

POLL_SECONDS, MOST_POLL_SECONDS = 0.25, 2.0  # a trial of minutes asks every few seconds
METRIC = "objective"
DIED_WITH_BOARD = {"error": "what was known of its failure died with the board", "diverged": False}
NOTHING = dict.fromkeys((METRIC, *LOSSES), math.nan)  # what a trial without a result tells, for Tune insists on metrics
STUDY = "optuna.journal"


@dataclass(frozen=True)
class Job:
    """What a trial needs to know of its sweep: the spec, each role's data fingerprint, and the store's place."""

    spec: SweepSpec
    data: Mapping[str, str]
    storage: str

    def trial(self, config: Mapping[str, int]) -> Trial:
        return build_trial(self.spec, self.data, Point(**config))

    def name(self, config: Mapping[str, int]) -> str:
        return recipe_name(Point(**config), self.spec.search.ladder, len(self.spec.choices))

    def orders(self, trial: Trial) -> list[Order]:
        how = self.spec.execution
        stages = distinct([trial]).values()
        return [
            Order(stage, self.spec.name, how.micro_batch_of(stage.kind), how.checkpoint_seconds, how.checkpoint_steps)
            for stage in stages
        ]


class LadderSampler(BaseSampler):
    """Optuna's view of the search: each new trial is the next point that is outstanding and not yet running."""

    def __init__(self, search: "LadderSearch"):
        self._search = search

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._search.space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._search.parameters(self._search.queue()[0])

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        raise KeyError(f"{param_name} is not part of the ladder")


class LadderSearch(OptunaSearch):  # type: ignore[misc]
    """OptunaSearch that waits for a round to end before it starts the next, and ends the sweep when told to stop."""

    def __init__(self, job: Job, ledger: Ledger, storage: optuna.storages.BaseStorage, study: str):
        self.job, self.spec, self.prices, self.results = job, job.spec, ledger.prices, dict(ledger.results)
        self.store = Store(job.storage)
        self.running: dict[str, Point] = {}
        self.lost: set[Point] = set()  # failed for want of something: for the next run to try, and no result till then
        self.overran: str | None = None
        self.cut = False  # a trial found that the sweep is to end: run.py asks the board why
        self.started = time.monotonic()
        self.gpu_seconds = {key: _gpu_seconds(job.spec, record) for key, record in ledger.records.items()}
        self.tokens = {key: record["tokens"] for key, record in ledger.records.items()}
        self.decision = ledger.decision
        self.replay = Replay(self.spec, self.prices, self.decision.rounds)
        self.noted: Rounds | None = None
        self.names: dict[str, dict[str, str]] = {}  # of the stages of each trial that runs, for people
        self.answer_due, self.answered = 0.0, -1
        self.answer: dict[str, Any] = {}
        self.space: dict[str, BaseDistribution] = {
            "level": IntDistribution(0, job.spec.search.ladder),
            "seed": CategoricalDistribution(job.spec.search.seeds),
        }
        if (choices := len(job.spec.choices)) > 1:
            self.space["choice"] = IntDistribution(0, choices - 1)
        metrics, sampler = list(map(str, self.spec.objective.losses or ())) or [METRIC], LadderSampler(self)
        super().__init__(
            self.space, metrics, ["min"] * len(metrics), sampler=sampler, storage=storage, study_name=study
        )
        with warnings.catch_warnings(action="ignore"):  # that it is experimental
            self._ot_study.set_metric_names(metrics)
        self._tell_known()
        unlink_removed(self.store, job.spec.name)
        self._show(ledger.trials, ledger.records)

    def _show(self, trials: list[Trial], published: Container[str]) -> None:
        """Link the published stages of trials where TensorBoard finds them by recipe."""
        link_runs(self.store, self.spec.name, trials, published, self.spec.search.ladder, len(self.spec.choices))

    def _tell_known(self) -> None:
        """Bring the study up to the ledger: trials that died with an earlier run fail, results it lacks are added."""
        have = set()
        for trial in self._ot_study.get_trials(deepcopy=False):
            if trial.state == TrialState.RUNNING:
                self._ot_study.tell(trial.number, state=TrialState.FAIL)
            elif trial.state == TrialState.COMPLETE:
                have.add(Point(**trial.params))
        for point, value in self.results.items():
            if point not in have and value is not None:
                told = {"values": value} if isinstance(value, tuple) else {"value": value}
                self._ot_study.add_trial(create_trial(**told, params=self.parameters(point), distributions=self.space))  # fmt: skip

    def parameters(self, point: Point) -> dict[str, int]:
        """A point as Optuna has it: without the choice where there is only one."""
        return {name: value for name, value in asdict(point).items() if name in self.space}

    def queue(self) -> list[Point]:
        busy = self.lost.union(self.running.values())
        return [point for point in self.decision.outstanding if point not in busy]

    def ends(self) -> bool:
        """No further trial begins: the search has enough, time is spent, a round cannot be completed, or all is to end."""
        self.overran = self.overran or self.overrun()
        stuck = self.lost and not self.running and not self.queue()
        return bool(self.decision.stop or self.overran or self.cut or stuck)

    def overrun(self) -> str | None:
        """The budget of time that is spent, if one is. Runs that have begun are finished."""
        limits, hours = self.spec.search, (time.monotonic() - self.started) / 3600
        if limits.max_hours and hours >= limits.max_hours:
            return f"max_hours {limits.max_hours:g} of this command are spent"
        if limits.max_gpu_hours:
            spent = sum(self.gpu_seconds.values())
            if spent / 3600 >= limits.max_gpu_hours:
                return f"max_gpu_hours {limits.max_gpu_hours:g} are spent"
            if (spent + self.expected()) / 3600 > limits.max_gpu_hours:
                return f"max_gpu_hours {limits.max_gpu_hours:g} do not allow another run: {spent / 3600:.3g} are spent"
        return None

    def expected(self) -> float:
        """GPU time that the runs under way and the next one will take, seconds, by what a token has taken so far; 0 while
        nothing has been measured."""
        measured = {key: seconds for key, seconds in self.gpu_seconds.items() if seconds}
        if not measured:
            return 0.0
        stages: dict[str, int] = {}
        for point in [*self.running.values(), *self.queue()[:1]]:
            stages |= self.prices.stages(point)
        tokens = sum(count for key, count in stages.items() if key not in self.gpu_seconds)
        per_token: float = sum(measured.values()) / sum(self.tokens[key] for key in measured)
        return tokens * per_token

    def so_far(self) -> dict[str, Any]:
        """What the progress display adds to the board's: what stages in work are, the best run and the optimum so far.

        The optimum takes a fit of all results, which grows with them: it is asked for by those who show it, and rests
        three times as long as it took. The search itself fits once a round.
        """
        began, results = time.monotonic(), len(self.results)
        if results != self.answered and began >= self.answer_due:
            self.answer_due = math.inf  # others who ask meanwhile get the one before
            try:
                self.answer, self.answered = self._answer(), results
            finally:
                self.answer_due = time.monotonic() + 3 * (time.monotonic() - began)
        runs = {"done": results, "most": self.spec.search.max_trials}
        return {
            "runs": runs,
            "names": dict(pair for names in list(self.names.values()) for pair in names.items()),
            **self.answer,
        }

    def _answer(self) -> dict[str, Any]:
        ladder = self.spec.search.ladder
        known = {point: self.results[point] for point in self.decision.visited if point in self.results}
        if frontier := estimate_frontier(self.spec, known):
            return {"frontier": {"kept": int(frontier.kept.sum()), "of": len(frontier.kept), "known": frontier.known}}
        told = [(loss, point) for point, loss in known.items() if isinstance(loss, float)]
        best, optimum = min(told, key=itemgetter(0), default=None), estimate(self.spec, known)
        return {
            "best": {"loss": best[0], "lambda": best[1].level / ladder, "seed": best[1].seed} if best else None,
            "optimum": {"lambda": optimum.lambda_star, "ci95": optimum.ci95, "verdict": optimum.verdict}
            if optimum
            else None,
        }

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self.ends():
            finished: str = Searcher.FINISHED
            return finished
        if not self.queue():
            return None  # the round is not over: what comes next depends on all of it
        config: dict[str, Any] = super().suggest(trial_id)
        point = self.running[trial_id] = Point(**config)
        name = f"lambda {point.level / self.spec.search.ladder:g}, seed {point.seed}"
        self.names[trial_id] = dict.fromkeys(distinct([self.job.trial(config)]), name)
        return config

    def _describe(self, trial_id: str, point: Point, result: Mapping[str, Any]) -> None:
        """Note with Optuna's trial what people look for beside its parameters: lambda and the four losses."""
        said = {"lambda": point.level / self.spec.search.ladder, **{name: result[name] for name in LOSSES if math.isfinite(result.get(name, math.nan))}}  # fmt: skip
        for name, value in said.items():
            self._ot_trials[trial_id].set_user_attr(name, value)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: a trial reports once, at its end."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        point = self.running.pop(trial_id)
        self.names.pop(trial_id, None)
        self.cut = self.cut or bool((result or {}).get("cut"))
        if self.cut:
            self.lost.add(point)
            return  # there may be no room to note anything; the next run tells Optuna that the trial failed
        values = [float((result or NOTHING)[name]) for name in self.metric]
        failed = error or not all(map(math.isfinite, values))
        if (result or {}).get("settled"):
            self.results[point] = None if failed else tuple(values) if self.spec.objective.losses else values[0]
        else:
            self.lost.add(point)
        trial = self.job.trial(self.parameters(point))
        records = {key: record for key in distinct([trial]) if (record := self.store.record(key))}
        self._show([trial], records)
        for key, record in records.items():
            self.gpu_seconds[key] = _gpu_seconds(self.spec, record)
            self.tokens[key] = record["tokens"]
        self._describe(trial_id, point, result or {})
        super().on_trial_complete(trial_id, None if failed else result, error=failed)
        self.decision = self.replay.decide(self.results)
        if self.noted != self.decision.rounds:
            note(self.spec, self.job.data, self.store, self.prices.found, self.decision.rounds)
            self.noted = self.decision.rounds
        self.store.kept(self.store.sweep(self.spec.name) / STUDY)


def _gpu_seconds(spec: SweepSpec, record: Mapping[str, Any]) -> float:
    """GPU time that this sweep gave a published stage, seconds: training and evaluation, as if all by the workers that ended it."""
    if record["sweep"] != spec.name:
        return 0.0
    busy: float = record["seconds"]["train"] + record["seconds"]["evaluate"]
    workers: int = record["workers"]
    return busy * workers * spec.execution.shape(record["kind"]).gpus_per_worker


def open_search(job: Job, ledger: Ledger) -> LadderSearch:
    """The search as the ledger has it, over a journal that optuna-dashboard can read."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    store = Store(job.storage)
    path = store.brought(store.sweep(job.spec.name) / STUDY)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not is_ended(path):  # Optuna would go on in that line, and then refuse the file
        lock = JournalFileSymlinkLock(str(path))  # or another run is writing that line now
        lock.acquire()
        try:
            drop_torn_line(path)
        finally:
            lock.release()
    storage = JournalStorage(JournalFileBackend(str(path)))
    return LadderSearch(job, ledger, storage, f"{job.spec.name}-{sweep_key(job.spec, job.data)}")


def _report(job: Job, trial: Trial, failures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What a finished trial tells Tune: losses at the objective's rate and the objective, NaN if that stage failed. What
    failed here and was published by another run meanwhile has not failed: its publication took the evidence away."""
    store = Store(job.storage)
    records = {key: record for key in distinct([trial]) if (record := store.record(key))}
    failures = {key: evidence for key, evidence in failures.items() if key not in records}
    for key, evidence in failures.items():
        store.fail(key, {"kind": distinct([trial])[key].kind, **evidence})
    rows = trial_rows(job.spec, trial, records)
    done, value = settled(job.spec, trial, records, failures)
    row = next((row for row in rows if row["finetune_lr"] == job.spec.objective.finetune_lr), {})
    told: dict[str, Any] = {name: row[name] for name in LOSSES if name in row}
    told |= {METRIC: value} if isinstance(value, float) else {}
    return {**NOTHING, **told, "failed_stages": len(failures), "settled": done}


def asked(job: Job, trial: Trial) -> tuple[list[Order], list[str], dict[str, dict[str, Any]]]:
    """What a board is told of a trial: its orders, which of them are published, and which have diverged in some run."""
    store = Store(job.storage)
    published = [key for key, stage in distinct([trial]).items() if store.find(key, stage.identity.payload())]
    failures = failure_of(store, trial, store.failed())
    return job.orders(trial), published, {key: each for key, each in failures.items() if each.get("diverged")}


def drive_trial(config: dict[str, Any], job: Job, board_name: str) -> None:
    """A Tune trial: ask for the stages, wait, report once. Holds no CPU worth the name and no GPU."""
    board = ray.get_actor(board_name, NAMESPACE)
    try:
        told = _drive(config, job, board)
    except Exception as error:
        if not (cause := common_cause(error)):
            raise
        ray.get(board.close.remote(cause, withdraw=True))
        told = None
    tune.report(told or {**NOTHING, "failed_stages": 0, "cut": True})


def _drive(config: dict[str, Any], job: Job, board: ActorHandle[Board]) -> dict[str, Any] | None:
    """What the trial tells Tune; None if the sweep ends before it."""
    if ray.get(board.closed.remote()):
        return None
    trial, name = job.trial(config), job.name(config)
    stages = distinct([trial])
    keys, states = list(stages), dict[str, State]()
    began = time.monotonic()
    while True:
        if len(states) < len(keys):  # at first, and when the board has died and is empty again
            ray.get(board.submit.remote(*asked(job, trial)))
        states = ray.get(board.states.remote(keys))
        running = {stages[key].kind for key, state in states.items() if state == "running"}
        call_process(f"{name} {'+'.join(sorted(running)) or 'waiting'}")
        if len(states) == len(keys) and all(state in ("done", "failed") for state in states.values()):
            break
        if ray.get(board.closed.remote()):
            return None
        time.sleep(min(MOST_POLL_SECONDS, POLL_SECONDS + (time.monotonic() - began) / 100))
    failed = [key for key, state in states.items() if state == "failed"]
    failures = {key: ray.get(board.evidence.remote(key)) or DIED_WITH_BOARD for key in failed}
    return _report(job, trial, failures)


def search_on_ray(
    job: Job, search: LadderSearch, board_name: str, concurrency: int, folder: Path, callbacks: list[tune.Callback]
) -> None:
    """Run Tune until the search stops. Drivers are pinned to the head node, and so can never starve a worker."""
    trainable = tune.with_parameters(drive_trial, job=job, board_name=board_name)
    name = partial(_trial_name, job)
    tuner = tune.Tuner(
        tune.with_resources(trainable, ON_HEAD),
        tune_config=tune.TuneConfig(
            search_alg=search,
            num_samples=job.spec.search.max_trials,
            max_concurrent_trials=concurrency,
            reuse_actors=True,
            trial_name_creator=name,
            trial_dirname_creator=name,
        ),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            verbose=0,
            callbacks=callbacks,
            failure_config=tune.FailureConfig(max_failures=3),
        ),
    )
    try:
        tuner.fit()
    except TuneError as error:  # what the search itself met
        if cause := common_cause(error, search.store.root):
            raise cause from None
        raise


def _trial_name(job: Job, trial: Any) -> str:
    """What folders and trackers call a trial: people know it by lambda and seed."""
    return f"{job.name(trial.config)}-{trial.trial_id}"


def search_in_process(job: Job, search: LadderSearch, board: Board, work: Any) -> None:
    """The same search without Tune: one trial after another, `work()` training what the board has ready."""
    number = 0
    while isinstance(config := search.suggest(str(number)), dict):
        trial = job.trial(config)
        keys = list(distinct([trial]))
        board.submit(*asked(job, trial))
        work()
        states = board.states(keys)
        failures = {key: board.evidence(key) or {} for key, state in states.items() if state == "failed"}
        search.on_trial_complete(str(number), _report(job, trial, failures))
        number += 1
