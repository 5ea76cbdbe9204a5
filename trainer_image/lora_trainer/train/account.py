"""What a run says of itself: in its checkpoints, in its result, and to those that advise."""

from dataclasses import dataclass
from pathlib import Path

from lora_trainer.data.dataset import Data
from lora_trainer.errors import ConfigError
from lora_trainer.model.device import Device
from lora_trainer.plan.architecture import ArchitectureError, ModelArchitecture
from lora_trainer.plan.hint_checks import Facts, LeftAlone, Rows
from lora_trainer.spec.summary import ResolvedRun
from lora_trainer.storage.base import Base
from lora_trainer.storage.base_architecture import architecture_in
from lora_trainer.train.checkpoint import Checkpoints
from lora_trainer.train.checkpoint_policy import CheckpointPolicy
from lora_trainer.train.evaluate import Evaluation
from lora_trainer.train.identity import Identity
from lora_trainer.train.resolve_auto import RunSetup
from lora_trainer.train.resume import Saved
from lora_trainer.train.state import RunRecord
from lora_trainer.train.versions import versions


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Of a run that is settled, and is to `start` at a checkpoint, None for the beginning; `began_s` is on the clock of
    this process. Without `checkpoints` no state is saved."""

    setup: RunSetup
    base: Base
    data: Data
    prepared: Path
    identity: Identity
    device: Device
    checkpoints: Checkpoints | None
    start: Saved | None
    began_s: float

    @property
    def shape(self) -> ModelArchitecture | None:
        """The model's; None for a kind that the estimate does not know."""
        try:
            return architecture_in(self.base.folder, self.base.name)
        except (ConfigError, ArchitectureError):
            return None

    def facts(self, resolved: ResolvedRun, left_alone: LeftAlone) -> Facts:
        """What is known when the training begins."""
        data, stats = self.data, self.data.stats
        return Facts(
            config=self.setup.config,
            shape=self.shape,
            trainable_parameters=resolved.trainable_parameters,
            rows=Rows(
                training=stats.train_samples,
                held_out=data.evaluation.row_count if data.held_out else 0,
                target_tokens=stats.target_tokens,
                cut=stats.truncated_samples,
                cut_tokens=stats.truncated_tokens,
                duplicates=stats.duplicate_samples,
            ),
            columns=data.columns,
            left_alone=left_alone,
            plan=self.setup.plan,
        )

    def record(self, resolved: ResolvedRun, before: Evaluation) -> RunRecord:
        """What its checkpoints and its result say of it."""
        return RunRecord(
            identity=self.identity,
            config=self.setup.config,
            resolved=resolved,
            dataset=self.data.stats,
            held_out=self.data.held_out,
            base_model=self.base.name,
            base_revision=self.base.revision,
            versions=versions(resolved),
            before=before,
            dataset_revision=self.data.dataset_revision,
            validation_revision=self.data.validation_revision,
            held_out_digest=self.data.held_out_digest,
        )

    def checkpoint_policy(self, resolved: ResolvedRun, before: Evaluation) -> CheckpointPolicy | None:
        """What saves its states."""
        if self.checkpoints is None:
            return None
        checkpoint = self.setup.config.checkpoint
        return CheckpointPolicy(checkpoints=self.checkpoints, config=checkpoint, record=self.record(resolved, before))
