"""Trainings of the tiny model within the test's own process, with a place for their states."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from tests.trainer.conftest import make_config

from lora_trainer.data.formats import PlainText
from lora_trainer.data.store import Examples
from lora_trainer.data.tokens import Encoder
from lora_trainer.model.convert import Start
from lora_trainer.model.device import Device
from lora_trainer.model.loading import Adapted, adapt, load_model
from lora_trainer.spec.config import CheckpointConfig, LoraConfig, Quantization, TrainConfig
from lora_trainer.spec.preflight import RowFacts
from lora_trainer.spec.summary import DatasetStats, ResolvedRun
from lora_trainer.storage.base import Base
from lora_trainer.train.batches import MicroBatchLimit
from lora_trainer.train.callbacks import Step, TrainerCallback
from lora_trainer.train.checkpoint import Checkpoints
from lora_trainer.train.checkpoint_policy import CheckpointPolicy
from lora_trainer.train.evaluate import Evaluation
from lora_trainer.train.identity import identity
from lora_trainer.train.loop import Training
from lora_trainer.train.state import RunRecord, State, copy_of, read_state
from lora_trainer.train.stopping import Stop

STATS = DatasetStats(
    train_samples=12,
    validation_samples=0,
    train_tokens=100,
    target_tokens=100,
    longest_tokens=40,
    truncated_samples=0,
    skipped_samples=0,
    duplicate_samples=0,
)
ROWS = RowFacts(
    format="Text",
    fingerprint="sha256:2",
    train_samples=12,
    validation_samples=0,
    tokens=100,
    target_tokens=100,
    p50_tokens=8,
    p95_tokens=40,
    longest_tokens=40,
    truncated_samples=0,
    truncated_tokens=0,
    skipped_samples=0,
    duplicate_samples=0,
)
RESOLVED = ResolvedRun(
    device="cpu",
    compute_dtype="fp32",
    model_type="llama",
    model_revision="sha256:1",
    dataset_format="Text",
    dataset_fingerprint="sha256:2",
    target_modules=("q_proj",),
    trainable_parameters=1,
    total_parameters=2,
    micro_batch_size=2,
    micro_batch_tokens=4096,
    gradient_accumulation_steps=2,
)


def record_of(config: TrainConfig, revision: str = "sha256:1", fingerprint: str = "sha256:2") -> RunRecord:
    """What checkpoints of a run with this configuration say of it."""
    return RunRecord(
        identity=identity(config, revision, fingerprint),
        config=config,
        resolved=RESOLVED,
        dataset=STATS,
        held_out=True,
        base_model="pvc://models/tiny",
        base_revision=revision,
        versions={"torch": "1"},
        before=Evaluation(sums=(1.0, 2.0), tokens=(2, 3)),
    )


class Kept(TrainerCallback):
    """Keeps what is reported; `after` is called with each step's number."""

    def __init__(self, after: Callable[[int], None] = lambda step: None) -> None:
        self.steps: list[Step] = []
        self.evaluations: list[tuple[int, float]] = []
        self.saves: list[int] = []
        self.left_out_steps: list[int] = []
        self.bad_steps: list[int] = []
        self.limits: list[int] = []
        self.accumulations: list[int] = []
        self.passes = 0
        self._after = after

    def stepped(self, step: Step) -> None:
        """Keep it."""
        self.steps.append(step)
        self._after(step.number)

    def evaluated(self, step: int, result: Evaluation) -> None:
        """Keep it."""
        self.evaluations.append((step, result.loss))

    def saved(self, step: int) -> None:
        """Keep it."""
        self.saves.append(step)

    def left_out(self, step: int, *, bad: bool) -> None:
        """Keep it."""
        self.left_out_steps.append(step)
        self.bad_steps += [step] if bad else []

    def halved(self, limit: MicroBatchLimit, accumulation: int) -> None:
        """Keep it."""
        self.limits.append(limit.tokens)
        self.accumulations.append(accumulation)

    def alive(self) -> None:
        """Count it."""
        self.passes += 1


class Bench:
    """Makes trainings on one folder for checkpoints."""

    def __init__(self, folder: Path, base: Base, encoder: Encoder, device: Device) -> None:
        self.folder, self.base, self.device = folder, base, device
        self.rows = Examples.of(
            encoder.encode(PlainText(where=f"{i}", text=f"Ahoy {i}! " + "Fair winds. " * (i % 4))) for i in range(12)
        )
        self.lora = LoraConfig(rank=4, alpha=8, dropout=0.1)
        self.checkpoint = CheckpointConfig(interval_s=3600, interval_steps=1, keep=2)
        self.evaluate: Callable[[], Evaluation] | None = None

    def adapted(self, starts: Mapping[str, Start] | None = None) -> Adapted:
        """The tiny model with a fresh adapter."""
        loaded = load_model(self.base, Quantization.NONE, self.device)
        return adapt(loaded, self.lora, self.base, self.device, 3, starts=starts or None)

    def training(
        self,
        callback: TrainerCallback | None = None,
        stop: Stop | None = None,
        *,
        save: bool = True,
        starts: Mapping[str, Start] | None = None,
        **changes: object,
    ) -> Training:
        """A training from its beginning, with dropout."""
        config = make_config(training={"maxSteps": 4, "effectiveBatchSize": 6, "learningRate": "0.01"})
        config = replace(config, training=replace(config.training, seed=5, **changes))  # type: ignore[arg-type]
        checkpoints = Checkpoints(self.folder, keep=self.checkpoint.keep)
        return Training(
            adapted=self.adapted(starts),
            examples=self.rows,
            config=config.training,
            limit=MicroBatchLimit.of(2, int(self.rows.lengths.max())),
            device=self.device,
            callback=callback or TrainerCallback(),
            stop=stop or Stop(),
            checkpoint_policy=CheckpointPolicy(
                checkpoints=checkpoints,
                config=self.checkpoint,
                record=record_of(config),
            )
            if save
            else None,
            evaluate=self.evaluate,
        )

    def newest_state(self) -> State:
        """The state in the newest whole checkpoint."""
        checkpoint = Checkpoints(self.folder, keep=2).newest()
        assert checkpoint is not None
        return read_state(checkpoint.folder)


def same(first: State, second: State) -> bool:
    """Whether two states are equal bit for bit, but for the seconds that they took."""
    left, right = replace(first.trainer_state, seconds=0.0), replace(second.trainer_state, seconds=0.0)
    return (
        left == right
        and _equal(dict(first.adapter), dict(second.adapter))
        and _equal(first.best, second.best)
        and _equal(dict(first.optimizer), dict(second.optimizer))
    )


def _equal(first: object, second: object) -> bool:
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return torch.equal(first.cpu(), second.cpu())
    if isinstance(first, dict) and isinstance(second, dict):
        return list(first) == list(second) and all(_equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(_equal, first, second))
    return first == second


def weights(training: Training) -> dict[str, torch.Tensor]:
    """The adapter's weights as they are."""
    return copy_of(training.parameters)
