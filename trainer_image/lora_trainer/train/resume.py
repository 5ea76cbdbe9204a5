"""Where a training starts: at its own last checkpoint, at that of another run, or at the beginning."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from lora_trainer.errors import CheckpointError
from lora_trainer.model.convert import Start
from lora_trainer.spec.config import Quantization, TrainConfig, TrainingConfig
from lora_trainer.spec.manifest import checkpoint_claim
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.summary import ResolvedRun
from lora_trainer.spec.uri import at_commit
from lora_trainer.storage.run_folders import folders_of_name
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train.checkpoint import Checkpoint, Checkpoints, newest_in
from lora_trainer.train.identity import Identity, day_of, difference, same_training, weights_difference
from lora_trainer.train.loop import Training
from lora_trainer.train.schedule import total_steps
from lora_trainer.train.state import (
    RunRecord,
    State,
    read_record,
    read_starts,
    read_state,
    read_trainer_state,
    state_on_all,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A whole checkpoint to start from. It is this run's own, or of the run that `resumeFrom` names; its steps saw so
    many `rows`, repetitions counted. The run looked for its best weights where there is a `best_step`. The training
    `goes_on` at its step, or begins at step 0 with the weights that its run publishes."""

    checkpoint: Checkpoint
    record: RunRecord
    own: bool
    rows: int = 0
    best_step: int | None = None
    goes_on: bool = True

    @property
    def resumed_step(self) -> int | None:
        """At which the training goes on; None where it begins with the weights alone."""
        return self.checkpoint.step if self.goes_on else None

    def checked(self, ours: Identity, training: TrainingConfig, rows: int) -> "Saved":
        """The same, knowing whether a run goes on at its step. Raises `CheckpointError` (`ResumeMismatch`).

        An attempt goes on from its own run's state and needs all deciding fields to be equal. From another run's state
        one goes on at its step where rows, their order and the optimizer are the same; where only the adapter is of the
        same kind, its weights are the start of a new `training`, on so many `rows`.
        """
        saved = self.record.identity
        found = difference(saved, ours) if self.own else weights_difference(saved, ours)
        if found is not None:
            remedy = (
                "restore the model, the data and the configuration that made it, or start a run of another name"
                if self.own
                else "set it as in that run, or start without resumeFrom"
            )
            raise CheckpointError(
                f"the checkpoint {self.checkpoint.folder.name} of {self.record.config.run.name} has {found}: {remedy}",
                Reason.RESUME_MISMATCH,
            )
        goes_on = self.own or same_training(saved, ours)
        steps = total_steps(training, rows, self.checkpoint.step, self.rows)
        if goes_on and not self.own and self.checkpoint.step >= steps:
            raise CheckpointError(
                f"resumeFrom.name is {self.record.config.run.name}: its checkpoint is after step "
                f"{self.checkpoint.step}, and this run has {steps} steps in all: raise training.maxSteps or "
                "training.epochs",
                Reason.RESUME_MISMATCH,
            )
        return replace(self, goes_on=goes_on)

    def log_start(self) -> None:
        """Log where the training begins."""
        step, name = self.checkpoint.step, self.record.config.run.name
        if self.own:
            log.info("continuing after step %d, which an earlier attempt saved", step)
        elif self.goes_on:
            log.info("continuing after step %d of the run %s, optimizer included", step, name)
        else:
            step = self.best_step or step
            log.info("starting at step 0 from the weights that the run %s had after step %d", name, step)

    def warn_of_changes(self, resolved: ResolvedRun, versions: Mapping[str, str]) -> None:
        """Log what differs and is no reason to refuse, but makes the result another one in the last digits."""
        before = self.record
        changes = [
            f"{name} {before.versions.get(name, 'absent')} is now {version}"
            for name, version in versions.items()
            if before.versions.get(name) != version
        ]
        for what in ("device", "compute_dtype", "processes", "attention", "kernels"):
            old, new = (_shown(getattr(run, what)) for run in (before.resolved, resolved))
            changes += [f"{what} {old} is now {new}"] if old != new else []
        if changes:
            log.warning("continuing under other conditions than the state was saved under: %s", "; ".join(changes))

    def warn_of_split(self, held_out_digest: str | None) -> None:
        """Log that this run holds out other rows than the one that it starts from, which was trained on all others."""
        if held_out_digest not in {None, self.record.held_out_digest}:
            log.warning(
                "other rows are held out than in the run %s, which may have been trained on these, so that their loss "
                "flatters: hold out the same, by the same data, training.seed, dataset.validationFraction and "
                "maxValidationRows, or those of a dataset.validationUri that no run was trained on",
                self.record.config.run.name,
            )

    def progress(self) -> dict[str, Any]:
        """What a run's progress says of this start."""
        step = self.checkpoint.step
        return {"resumed_step": step, "step": step} if self.goes_on else {}

    @property
    def quantization(self) -> Quantization:
        """How the base's weights were held."""
        return self.record.config.quantization

    @property
    def day(self) -> date | None:
        """The day that its rows may have from the chat template: also those of a run that goes on from it, to be the
        same rows. None of a template that reads no clock."""
        return day_of(self.record.identity)

    @property
    def limit_tokens(self) -> int | None:
        """Most tokens of a micro-batch as it began, which cut the packs of a training that goes on; None for another
        one, and where `microBatchSize` says so."""
        chosen = self.record.config.training.micro_batch_size is not None
        return self.record.resolved.micro_batch_tokens if self.goes_on and not chosen else None

    def pinned(self, uri: str) -> str:
        """The model's address at the commit that the run began with, whatever its branch points to by now."""
        return at_commit(uri, self.record.base_revision) if self.own else uri

    def starts(self) -> Mapping[str, Start]:
        """The start values that PiSSA and OLoRA took out of the base model. Raises `CheckpointError`."""
        return read_starts(self.checkpoint.folder)

    def state(self) -> State:
        """The state itself. Raises `CheckpointError`."""
        return read_state(self.checkpoint.folder)

    def restore(self, training: Training) -> None:
        """Have a training begin here; all its processes call this, and the first one reads.

        The state is read as late as this, and let go of: in main memory it takes as much as the training holds on its
        device. Raises `CheckpointError`.
        """
        ranks, patient = training.ranks, training.config.early_stopping_patience is not None
        here = self.state() if ranks.is_main else None
        if here is not None and not self.goes_on:
            here = here.published()
        state = state_on_all(here, ranks, training.device.torch_device)
        training.restore(state if self.own else state.taken_over(patient=patient), weights_only=not self.goes_on)


def _shown(value: Any) -> str:
    return ", ".join(value) or "none" if isinstance(value, tuple) else str(value)


def find_saved(config: TrainConfig, own: Checkpoints, volumes: Volumes) -> Saved | None:
    """The checkpoint to start from, None for a start at the beginning; `own` are those in the run's folder.

    Raises `CheckpointError`.
    """
    checkpoint = own.newest()
    if checkpoint is not None:
        return _saved(checkpoint, own=True)
    claim = checkpoint_claim(config)
    if config.resume_from is None or claim is None:
        return None
    folders = [path for path in folders_of_name(config.resume_from, claim, volumes) if path != own.folder]
    newest = newest_in(folders)
    if newest is None:
        raise CheckpointError(
            f"resumeFrom.name is {config.resume_from}: the claim {claim} holds no checkpoint of a run of that name; "
            "set checkpoint.volumeClaimName to the claim that does, or start without resumeFrom"
        )
    return _saved(newest, own=False)


def _saved(checkpoint: Checkpoint, *, own: bool) -> Saved:
    trainer_state = read_trainer_state(checkpoint.folder)
    best = None if trainer_state.best is None else trainer_state.best.step
    record = read_record(checkpoint.folder)
    return Saved(checkpoint=checkpoint, record=record, own=own, rows=trainer_state.rows, best_step=best)
