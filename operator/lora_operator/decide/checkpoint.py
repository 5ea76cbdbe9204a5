"""The condition CheckpointSaved: what a restart would cost the run."""

from collections.abc import Mapping
from typing import Any

from lora_operator.decide.verdict import Verdict
from lora_operator.model.conditions import Condition, StateReason, Type
from lora_operator.model.wording import parse_instant, sentence
from lora_trainer.spec.config import TrainConfig
from lora_trainer.spec.manifest import checkpoint_claim
from lora_trainer.spec.reasons import Reason

_WITHOUT = {
    Reason.CHECKPOINT_INVALID: "No checkpoint is left that can be resumed from",
    Reason.RESUME_MISMATCH: "This attempt has saved no checkpoint",
}


def checkpoint_saved(
    train: TrainConfig | None, progress: Mapping[str, Any], verdict: Verdict | None = None
) -> Condition | None:
    """The condition CheckpointSaved; None for a spec that cannot be read. `verdict` is that of a run that has ended."""
    summary = verdict.summary if verdict else None
    if summary is not None and summary.checkpoint is not None:
        message = sentence(f"Step {summary.checkpoint.step} is saved at {summary.checkpoint.uri}")
        return _saved(StateReason(reason=Reason.CHECKPOINT_SAVED, message=message))
    if train is None:
        return None
    claim = checkpoint_claim(train)
    step, saved_at = progress.get("checkpointStep"), parse_instant(progress.get("checkpointTime"))
    unusable = verdict is not None and verdict.why.reason is Reason.CHECKPOINT_INVALID
    if step is not None and claim is not None and not unusable:
        message = f"Step {step} is saved on PersistentVolumeClaim {claim}"
        return _saved(StateReason(reason=Reason.CHECKPOINT_SAVED, message=message, since=saved_at))
    if claim is None:
        message = (
            "The run has no claim for checkpoints, so a preemption or any other restart loses what it has done: name "
            "one in spec.checkpoint.volumeClaimName of a new LoRAFineTune"
        )
        why = StateReason(reason=Reason.NO_CHECKPOINT_CLAIM, message=message)
    elif verdict is not None:
        message = _WITHOUT.get(verdict.why.reason, "The run ended before its first checkpoint")
        why = StateReason(reason=verdict.why.reason, message=message)
    else:
        every = f"{train.checkpoint.interval_s} s"
        steps = train.checkpoint.interval_steps
        often = f"{every} or {steps} steps" if steps is not None else every
        message = f"The first checkpoint is saved on PersistentVolumeClaim {claim} after {often} of training"
        why = StateReason(reason=Reason.PENDING, message=message)
    return Condition(type=Type.CHECKPOINT_SAVED, holds=False, why=why)


def _saved(why: StateReason) -> Condition:
    return Condition(type=Type.CHECKPOINT_SAVED, holds=True, why=why)
