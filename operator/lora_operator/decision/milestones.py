"""Two conditions that tell how far a run is safe: whether model and data were fetched, and whether a checkpoint is."""

from collections.abc import Mapping
from typing import Any

from lora_operator.decision.children import Children
from lora_operator.decision.verdict import Verdict, judge_preparation
from lora_operator.views.conditions import Condition, Finding, Type, previous_condition
from lora_operator.views.config import OperatorConfig
from lora_operator.views.model import FineTune
from lora_operator.views.request import Policy
from lora_operator.views.wording import parse_instant, sentence
from lora_trainer.contract.config import TrainConfig
from lora_trainer.contract.manifest import checkpoint_claim
from lora_trainer.contract.reasons import Reason
from lora_trainer.contract.uri import HubUri, S3Uri, parse_uri


def needs_preparation(train: TrainConfig, config: OperatorConfig) -> bool:
    """Whether something is to be fetched, and there is a claim to fetch it to."""
    addresses = (train.model.uri, train.dataset.uri, train.dataset.validation_uri)
    return bool(config.cache_claim) and any(isinstance(parse_uri(a), HubUri | S3Uri) for a in addresses if a)


def was_prepared(finetune: FineTune) -> bool:
    """Whether the status says so: model and data are fetched once for a run, not for each of its attempts."""
    return previous_condition(finetune, Type.PREFLIGHT_PASSED).get("status") == "True"


def preflight_passed(
    finetune: FineTune, children: Children, config: OperatorConfig, policy: Policy, state: Finding
) -> Condition | None:
    """The condition PreflightPassed of a run that has not failed in it; None where nothing is fetched beforehand."""
    if was_prepared(finetune):
        told = str(previous_condition(finetune, Type.PREFLIGHT_PASSED).get("message", ""))
        return Condition(type=Type.PREFLIGHT_PASSED, holds=True, finding=Finding(reason=Reason.PREPARED, message=told))
    job = children.preparing
    if job is None:
        return None
    verdict = judge_preparation(job, children.preparing_pods, config.prepare_memory, policy)
    if verdict is not None and verdict.succeeded:
        return Condition(type=Type.PREFLIGHT_PASSED, holds=True, finding=verdict.finding)
    return Condition(type=Type.PREFLIGHT_PASSED, holds=None, finding=state)


def checkpoint_saved(
    finetune: FineTune, train: TrainConfig | None, progress: Mapping[str, Any], verdict: Verdict | None = None
) -> Condition | None:
    """The condition CheckpointSaved; None for a spec that cannot be read. `verdict` is that of a run that has ended."""
    summary = verdict.summary if verdict else None
    if summary is not None and summary.checkpoint is not None:
        message = sentence(f"Step {summary.checkpoint.step} is saved at {summary.checkpoint.uri}")
        return _saved(Finding(reason=Reason.CHECKPOINT_SAVED, message=message))
    if train is None:
        return None
    claim = checkpoint_claim(train)
    step, saved_at = progress.get("checkpointStep"), parse_instant(progress.get("checkpointTime"))
    if step is not None and claim is not None:
        message = f"Step {step} is saved on PersistentVolumeClaim {claim}"
        return _saved(Finding(reason=Reason.CHECKPOINT_SAVED, message=message, since=saved_at))
    if claim is None:
        message = (
            "The run has no claim for checkpoints, so a preemption or any other restart loses what it has done: name "
            "one in spec.checkpoint.volumeClaimName of a new LoRAFineTune"
        )
        finding = Finding(reason=Reason.NO_CHECKPOINT_CLAIM, message=message)
    elif verdict is not None:
        finding = Finding(reason=verdict.finding.reason, message="The run ended before its first checkpoint")
    else:
        every = f"{train.checkpoint.interval_s} s"
        steps = train.checkpoint.interval_steps
        often = f"{every} or {steps} steps" if steps is not None else every
        message = f"The first checkpoint is saved on PersistentVolumeClaim {claim} after {often} of training"
        finding = Finding(reason=Reason.PENDING, message=message)
    return Condition(type=Type.CHECKPOINT_SAVED, holds=False, finding=finding)


def _saved(finding: Finding) -> Condition:
    return Condition(type=Type.CHECKPOINT_SAVED, holds=True, finding=finding)
