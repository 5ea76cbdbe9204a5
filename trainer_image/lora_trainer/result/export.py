"""The trained adapter to a folder in PEFT's format, with a model card, and the manifest as the last file."""

import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

from lora_trainer.data.held_out import copy_held_out_rows
from lora_trainer.errors import storage_error
from lora_trainer.model.convert import Adapter, save_adapter
from lora_trainer.model.device import Device
from lora_trainer.plan.memory import communicators_of, outside_bytes
from lora_trainer.result.card import CARD, card_of
from lora_trainer.result.curves import write_curves
from lora_trainer.result.serving import TEMPLATE, adapter_serving
from lora_trainer.result.tensorboard import TENSORBOARD, write_events
from lora_trainer.spec.advice import Advice
from lora_trainer.spec.config import DeviceConfig, Tracker, TrainConfig
from lora_trainer.spec.run_plan import RunPlan
from lora_trainer.storage.curve_records import METRICS, read_records
from lora_trainer.storage.manifest import Manifest, Measured, write_sealed
from lora_trainer.train.account import Account
from lora_trainer.train.advising import advise_at_end
from lora_trainer.train.checkpoint import MARGIN_BYTES
from lora_trainer.train.evaluate import Evaluation, improvement_standard_error
from lora_trainer.train.session import Result
from lora_trainer.train.state import RunRecord, TrainerState
from lora_trainer.train.versions import versions

_ADAPTER_BYTES = 8
"""What a trained parameter takes in the result: fp32, and twice where PiSSA or OLoRA is written as a plain adapter."""


def write_result(account: Account, result: Result, folder: Path, make_room: Callable[[int], None]) -> None:
    """Write the result on the process that has its adapter: with its curves, and with the manifest, which completes
    it. Raises `StorageError`."""
    if result.adapter is None:
        return
    make_room(_ADAPTER_BYTES * result.resolved.trainable_parameters + MARGIN_BYTES)
    data = account.data
    copy_held_out_rows(account.prepared, folder)
    measured = measured_by(
        result.trainer_state,
        result.before,
        result.after,
        account.device,
        config=account.setup.config,
        plan=account.setup.plan,
        held_out=data.held_out,
        seconds=time.monotonic() - account.began_s,
        resumed=account.start.resumed_step if account.start else None,
    )
    advice = advise_at_end(account.facts(result.resolved, result.left_alone), result, held_out=data.held_out)
    write_adapter(result.adapter, folder, data.template)
    write_curves(folder, held_out=data.held_out)
    write_manifest(
        folder,
        account.record(result.resolved, result.before),
        measured,
        noise=result.noise,
        verbatim=data.verbatim,
        day=data.day,
        advice=advice,
    )


def write_adapter(adapter: Adapter, folder: Path, template: str | None) -> None:
    """Write weights and configuration; `template` is the chat template where the base model has none of its own."""
    try:
        save_adapter(adapter, folder)
        # safetensors writes for the owner alone; who serves an adapter is rarely who trained it.
        (folder / "adapter_model.safetensors").chmod(0o644)
        if template is not None:
            (folder / TEMPLATE).write_text(template, encoding="utf-8")
    except OSError as error:
        raise storage_error(error, "the adapter") from error
    except Exception as error:
        # safetensors reports a full disk as an error of its own kind, with the system's text inside
        if "No space left" in str(error):
            raise storage_error(OSError(28, "No space left on device"), "the adapter") from error
        raise


def measured_by(
    trainer_state: TrainerState,
    before: Evaluation,
    after: Evaluation,
    device: Device,
    *,
    config: TrainConfig,
    plan: RunPlan | None = None,
    held_out: bool,
    seconds: float,
    resumed: int | None,
) -> Measured:
    """What the manifest says of training and evaluations; `resumed` is the step at which this attempt went on, `plan`
    what was expected of it."""
    return Measured(
        steps=trainer_state.step,
        trained_tokens=trainer_state.tokens,
        train_loss=trainer_state.loss,
        eval_loss_before=before.loss,
        eval_loss_after=after.loss,
        eval_loss_before_standard_error=before.standard_error,
        eval_loss_after_standard_error=after.standard_error,
        improvement_standard_error=improvement_standard_error(before, after),
        held_out=held_out,
        duration_seconds=seconds,
        tokens_per_second=trainer_state.tokens / max(trainer_state.seconds, 1e-9),
        peak_memory_bytes=device.peak_memory_bytes(),
        best_step=trainer_state.best_step,
        stopped_early=trainer_state.stopped_early,
        micro_batch_fill=trainer_state.fill,
        resumed_step=resumed,
        estimated_peak_memory_bytes=None if plan is None else measurable_peak(plan, config.device),
        estimated_seconds=None if plan is None else plan.seconds,
    )


def measurable_peak(plan: RunPlan, device: DeviceConfig) -> int:
    """What `Device.peak_memory_bytes` should come to: a GPU's allocator sees neither the driver's memory nor NCCL's."""
    if plan.device_bytes is None:
        return plan.peak_bytes
    return plan.peak_bytes - outside_bytes(communicators_of(device, plan.sharded_over or 1))


def write_manifest(
    folder: Path,
    record: RunRecord,
    measured: Measured,
    *,
    noise: float,
    verbatim: bool,
    day: date | None,
    advice: tuple[Advice, ...] = (),
) -> Manifest:
    """Write the model card, then the manifest over all files, everything forced to the disk. Raises `StorageError`."""
    config = record.config
    manifest = Manifest(
        base_model=record.base_model,
        base_revision=record.base_revision,
        config=config,
        resolved=record.resolved,
        dataset=record.dataset,
        measured=measured,
        noise=noise,
        advice=advice,
        serving=adapter_serving(folder),
        verbatim=verbatim,
        day=day,
        dataset_revision=record.dataset_revision,
        validation_revision=record.validation_revision,
        versions=versions(record.resolved),
        files=(),
    )
    try:
        if config.tracking.kind is Tracker.TENSORBOARD:
            write_events(read_records(folder / METRICS), folder / TENSORBOARD)
        (folder / CARD).write_text(card_of(folder, manifest), encoding="utf-8")
        return write_sealed(folder, manifest)
    except OSError as error:
        raise storage_error(error, "the adapter") from error
