"""TensorBoard, MLflow and Weights & Biases, each behind the same few calls. Their packages are imported when used."""

import importlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from lora_trainer.result.hyperparameters import cell, leaves
from lora_trainer.result.tensorboard import TENSORBOARD, TensorBoard, values_of
from lora_trainer.spec.config import Tracker, TrainConfig
from lora_trainer.storage.curve_records import Record

PROJECT = "lora-finetune"
"""Where runs go that name no project."""
SECRETS = ("WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
STATE = "tracker.json"
_TIMEOUT_S = 10


class UnusableError(Exception):
    """A tracker that this run cannot have, however often it is tried."""


@dataclass(slots=True, kw_only=True)
class State:
    """What the attempts of a run share: the run's name at the tracker, the last step and evaluation sent."""

    run_id: str | None = None
    step: int = 0
    evaluation: int = -1

    def is_new(self, record: Record) -> bool:
        """Whether a record was not sent yet."""
        return bool(record["step"] > (self.evaluation if "eval_loss" in record else self.step))

    def sent(self, record: Record) -> None:
        """Note a record that was sent."""
        if "eval_loss" in record:
            self.evaluation = record["step"]
        else:
            self.step = record["step"]

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


class Backend(Protocol):
    """A connection to a tracker. Its methods raise whatever the tracker's client raises."""

    where: str

    def log(self, records: Sequence[Record]) -> None:
        """Send steps and evaluations."""

    def finish(self, status: str) -> None:
        """Close the run: FINISHED, FAILED or KILLED."""


def open_backend(config: TrainConfig, folder: Path, state: State, environment: Mapping[str, str]) -> Backend:
    """Connect to the run's tracker. Raises `UnusableError`, and what the tracker's client raises."""
    try:
        if config.tracking.kind is Tracker.TENSORBOARD:
            return TensorBoard(folder / TENSORBOARD)
        if config.tracking.kind is Tracker.MLFLOW:
            return Mlflow(config, state, environment)
        return WeightsAndBiases(config, folder, environment)
    except ModuleNotFoundError as error:
        raise UnusableError(f"the package {error.name} is not installed in the trainer's image") from error


class Mlflow:
    """A run in the experiment of the project's name on a tracking server; its attempts share it."""

    def __init__(self, config: TrainConfig, state: State, environment: Mapping[str, str]) -> None:
        address = environment.get("MLFLOW_TRACKING_URI")
        if not address:
            raise UnusableError("there is no address of a tracking server (MLFLOW_TRACKING_URI)")
        # The client's own patience is that of somebody who waits: 7 retries of 120 s.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(_TIMEOUT_S))
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        mlflow: Any = importlib.import_module("mlflow")
        self._entities: Any = importlib.import_module("mlflow.entities")
        self._client: Any = mlflow.MlflowClient(tracking_uri=address)
        project = config.tracking.project or PROJECT
        if state.run_id is None:
            state.run_id = self._start(config, project)
        else:
            self._client.update_run(state.run_id, status="RUNNING")
        self._run_id = state.run_id
        self.where = f"experiment {project}, run {state.run_id}"

    def _start(self, config: TrainConfig, project: str) -> str:
        experiment = self._client.get_experiment_by_name(project)
        identity = self._client.create_experiment(project) if experiment is None else experiment.experiment_id
        tags = {"lora.namespace": config.run.namespace, "lora.uid": config.run.uid}
        run = self._client.create_run(identity, run_name=config.run.name, tags=tags)
        run_id = str(run.info.run_id)
        parameters = [self._entities.Param(name, cell(value)[:500]) for name, value in leaves(config)]
        for some in _chunks(parameters, 100):
            self._client.log_batch(run_id, params=some)
        return run_id

    def log(self, records: Sequence[Record]) -> None:
        """See `Backend`."""
        metrics = [
            self._entities.Metric(name, value, round(1000 * record.get("time", 0)), record["step"])
            for record in records
            for name, value in values_of(record).items()
        ]
        for some in _chunks(metrics, 1000):
            self._client.log_batch(self._run_id, metrics=some)

    def finish(self, status: str) -> None:
        """See `Backend`."""
        self._client.set_terminated(self._run_id, status)


def _chunks(items: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


class WeightsAndBiases:
    """A run of the project; its attempts share it by the resource's uid. Nothing but the curve and the configuration is
    sent: no console, no code, no facts about the machine."""

    def __init__(self, config: TrainConfig, folder: Path, environment: Mapping[str, str]) -> None:
        if not environment.get("WANDB_API_KEY") and environment.get("WANDB_MODE") != "offline":
            raise UnusableError("there is no key (WANDB_API_KEY): set tracking.secretRef to a Secret that has it")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        wandb: Any = importlib.import_module("wandb")
        settings = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            save_code=False,
            init_timeout=_TIMEOUT_S,
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
        )
        self._run: Any = wandb.init(
            project=config.tracking.project or PROJECT,
            id=config.run.uid,
            name=config.run.name,
            resume="allow",
            dir=str(folder),
            config={name: cell(value) for name, value in leaves(config)},
            settings=settings,
        )
        self.where = str(self._run.url or self._run.dir)

    def log(self, records: Sequence[Record]) -> None:
        """See `Backend`. Evaluations share their step's line, which the client takes once."""
        together: dict[int, dict[str, float]] = {}
        for record in records:
            together.setdefault(record["step"], {}).update(values_of(record))
        for step, values in together.items():
            self._run.log(values, step=step)

    def finish(self, status: str) -> None:
        """See `Backend`."""
        self._run.finish(exit_code=0 if status == "FINISHED" else 1)
