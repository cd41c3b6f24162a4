"""Trials told to MLflow or Weights & Biases, through Ray's own callbacks for them. Off unless it is asked for.

Who they are told to is no matter of the sweep: accounts, addresses and keys come from the tracker's own environment, and
nothing of them is written into the store. A tracker is told by a thread of its own, which the sweep never waits for but
some seconds at its end: one that fails, or does not answer, is said and left.
"""

import os
import queue
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as parquet
import ray
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.air.integrations.wandb import WandbLoggerCallback
from ray.tune import Callback
from ray.tune.logger import LoggerCallback
from ray.tune.utils import flatten_dict

from ee_ray.ledger import LOSSES, trial_rows
from ee_ray.plan import Trial, distinct
from ee_ray.search import Job
from ee_ray.store import Store

# How long a finished sweep waits for what was not told yet. wandb's server is spoken to by actors of Ray, which get
# UPLOAD_SECONDS; the thread only speaks to these, and must be out of Ray before Ray ends, or Ray would end the process.
END_SECONDS = {"mlflow": 10.0, "wandb": 60.0}
UPLOAD_SECONDS = 8
HTTP = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}  # not 7 and 120 s: it is to be known soon
CREDENTIALS = re.compile(r"//[^/@\s]*@")
ENDS = {"loss": "train_loss", "tokens_per_s": "tokens_per_s", "tokens": "tokens"}


@dataclass(frozen=True)
class Run:
    """What Ray's callbacks read of a trial: a name, an id, a recipe. `tags` are sweep, lambda and seed."""

    trial_id: str
    name: str
    experiment_dir_name: str
    local_path: str
    config: dict[str, Any] = field(compare=False)
    tags: dict[str, str] = field(compare=False)

    def __str__(self) -> str:
        return self.name


def recipe(job: Job, trial: Trial) -> dict[str, Any]:
    """The recipe by dotted names, as the spec has them: lambda, seed, choice, and every setting of the three stages."""
    stages = job.spec.chosen(trial.point.choice).stages.model_dump(mode="json")
    said: dict[str, Any] = {"lambda": trial.point.level / job.spec.search.ladder, "seed": trial.point.seed}
    said |= {"choice": trial.point.choice} if len(job.spec.choices) > 1 else {}
    said |= {"sweep": job.spec.name, "setting": job.spec.setting, "precision": job.spec.precision}
    flat: dict[str, Any] = flatten_dict(stages, delimiter=".")
    return said | flat


def results(job: Job, trial: Trial) -> dict[str, float]:
    """The four losses by fine-tuning rate, and where each stage's training ended, from the store; failed stages have none."""
    store = Store(job.storage)
    records = {key: record for key in distinct([trial]) if (record := store.record(key))}
    found: dict[str, float] = {}
    for row in trial_rows(job.spec, trial, records):
        mine = row["finetune_lr"] == job.spec.objective.finetune_lr
        for name in LOSSES:
            found |= {f"{name}.lr{row['finetune_lr']:g}": row[name]} | ({name: row[name]} if mine else {})
    named = {stage.key: kind for kind, stage in _stages(trial)}
    for key, record in records.items():
        found |= {f"{named[key]}.{name}": record[field] for name, field in ENDS.items()}
        found |= _last_gradient(store, key, named[key])
    return found


def _stages(trial: Trial) -> list[tuple[str, Any]]:
    chain = len(trial.pretrains) > 1
    pairs: list[tuple[str, Any]] = [(f"pretrain{number}" if chain else "pretrain", stage) for number, stage in enumerate(trial.pretrains, 1)]  # fmt: skip
    if trial.posttrain:
        pairs.append(("posttrain", trial.posttrain))
    return pairs + [(f"finetune.lr{rate:g}", stage) for rate, stage in trial.finetunes]


def _last_gradient(store: Store, key: str, kind: str) -> dict[str, float]:
    norms = parquet.read_table(store.metrics(key), columns=["grad_norm"])["grad_norm"].to_pylist()
    seen = [norm for norm in norms if norm == norm]
    return {f"{kind}.grad_norm": seen[-1]} if seen else {}


class _Mlflow(MLflowLoggerCallback):  # type: ignore[misc]
    def log_trial_start(self, trial: Run) -> None:
        self.tags = trial.tags
        super().log_trial_start(trial)


class _Wandb(WandbLoggerCallback):  # type: ignore[misc]
    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.met: Exception | None = None

    def log_trial_start(self, trial: Run) -> None:
        """Ray would hand the key to its actor by a runtime environment, which it writes into a log. Processes of a Ray that
        was started here inherit it; on a cluster they read what `wandb login` left."""
        self.kwargs["tags"] = [f"{name}:{value}" for name, value in trial.tags.items()]
        key = os.environ.pop("WANDB_API_KEY", None)
        try:
            super().log_trial_start(trial)
        finally:
            if key is not None:
                os.environ["WANDB_API_KEY"] = key

    def _cleanup_logging_actor(self, trial: Run) -> None:
        """Ray's would not look at what its actor met: no account, no network."""
        future = self._trial_logging_futures[trial]
        done, _ = ray.wait([future], timeout=0)
        super()._cleanup_logging_actor(trial)
        try:
            if not done:
                raise TimeoutError(f"uploads did not end within {UPLOAD_SECONDS} s; `wandb sync` sends what is left")
            ray.get(done[0])
        except Exception as error:
            self.met = error

    def log_trial_end(self, trial: Run, failed: bool = False) -> None:
        super().log_trial_end(trial, failed)
        self._tell_of_actors()

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        super().on_experiment_end(trials, **info)
        self._tell_of_actors()

    def _tell_of_actors(self) -> None:
        if self.met:
            raise self.met


def _open(name: str, sweep: str) -> LoggerCallback:
    if name == "mlflow":
        for setting, value in HTTP.items():
            os.environ.setdefault(setting, value)
        return _Mlflow(experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME") or sweep)
    # Its files go where wandb would put them, not into Ray's folder of the trial, which ends with the run.
    return _Wandb(project=os.environ.get("WANDB_PROJECT") or "ee-ray", group=sweep, dir=os.environ.get("WANDB_DIR") or os.getcwd(), upload_timeout=UPLOAD_SECONDS)  # fmt: skip


Work = Callable[[LoggerCallback], None]


class _Teller:
    """Does a tracker's work in order, in a thread of its own, until the first that fails."""

    def __init__(self, open_tracker: Callable[[], LoggerCallback], failed: Callable[[Exception], None]):
        self.open_tracker, self.failed = open_tracker, failed
        self.works: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._tell, daemon=True)
        self.thread.start()

    def _tell(self) -> None:
        try:
            inner = self.open_tracker()
            while work := self.works.get():
                work(inner)
        except Exception as error:  # whatever a server, an account or a network may do
            self.failed(error)

    def end(self, seconds: float) -> bool:
        """Let it tell what is left, that long; whether it has ended."""
        self.works.put(None)
        self.thread.join(seconds)
        return not self.thread.is_alive()


class Tracked(Callback):  # type: ignore[misc]
    """Tells one tracker which trials of a sweep begin and what they give."""

    def __init__(self, name: str, job: Job, say: Callable[[str], None]):
        self.name, self.job, self.say = name, job, say
        self.teller: _Teller | None = None
        self.over = False
        self.runs: dict[str, Run] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing of a tracker goes into what Tune saves."""
        return {"name": self.name}

    def _open(self) -> LoggerCallback:
        inner = _open(self.name, self.job.spec.name)
        inner.setup()
        return inner

    def _tell(self, work: Work) -> None:
        if self.teller:
            self.teller.works.put(work)

    def _left(self, error: Exception) -> None:
        if self.over:
            return
        said = CREDENTIALS.sub("//", " ".join(str(error).split()))[:300]
        self.say(f"--track {self.name}: is left, the sweep goes on: {type(error).__name__}: {said}")

    def setup(self, stop: Any = None, num_samples: Any = None, total_num_samples: Any = None, **info: Any) -> None:
        self.teller = _Teller(self._open, self._left)

    def _run(self, trial: Any) -> Run:
        if trial.trial_id not in self.runs:
            said = recipe(self.job, self.job.trial(trial.config))
            tags = {"sweep": said["sweep"], "lambda": f"{said['lambda']:g}", "seed": str(said["seed"])}
            name = str(trial)
            self.runs[trial.trial_id] = Run(trial.trial_id, name, self.job.spec.name, trial.local_path, said, tags)
        return self.runs[trial.trial_id]

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        run = self._run(trial)
        self._tell(lambda inner: inner.log_trial_start(run))

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Mapping[str, Any], **info: Any) -> None:  # fmt: skip
        run, mine = self._run(trial), self.job.trial(trial.config)
        said = {name: result[name] for name in ("training_iteration", "failed_stages")}
        self._tell(lambda inner: inner.log_trial_result(iteration, run, results(self.job, mine) | said))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        run, failed = self._run(trial), bool((trial.last_result or {}).get("failed_stages"))
        self._tell(lambda inner: inner.log_trial_end(run, failed=failed))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        run = self._run(trial)
        self._tell(lambda inner: inner.log_trial_end(run, failed=True))

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        runs = list(self.runs.values())
        self._tell(lambda inner: inner.on_experiment_end(runs))
        seconds = END_SECONDS[self.name]
        if self.teller and not self.teller.end(seconds):
            self.over = True
            self.say(f"--track {self.name}: has not answered within {seconds:g} s of the sweep's end, and is left: it lacks what came last")  # fmt: skip
