"""A verified adapter of any checkpoint: what is done of a run that was stopped can be kept."""

import logging
from dataclasses import replace
from pathlib import Path

from lora_trainer.data.held_out import copy_held_out_rows
from lora_trainer.data.store import Examples
from lora_trainer.errors import CheckpointError, ConfigError, storage_error
from lora_trainer.model.convert import copy_adapter
from lora_trainer.model.device import Device, choose_anywhere
from lora_trainer.model.loading import Adapted, adapt, load_model
from lora_trainer.model.rope import frequencies_of
from lora_trainer.result.export import measured_by, write_adapter, write_manifest
from lora_trainer.result.inputs import prepare_anew, sources_of
from lora_trainer.result.verify import verify
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.summary import Verification
from lora_trainer.storage.base import Base, find_base
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.sealed import aside
from lora_trainer.storage.temporary import temporary_folder
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train.batches import evaluation_limit
from lora_trainer.train.checkpoint import read_checkpoint
from lora_trainer.train.evaluate import Evaluation, evaluate
from lora_trainer.train.guards import check_trained
from lora_trainer.train.noise import measure_noise
from lora_trainer.train.objective import objective_of
from lora_trainer.train.resume import Saved
from lora_trainer.train.state import RunRecord, State, put_back, read_record, trainable

log = logging.getLogger(__name__)


def export_checkpoint(checkpoint: Path, output: Path, volumes: Volumes, hub: Hub) -> Verification:
    """Write the adapter that the run would have published, had it ended at this checkpoint, into a new folder.

    Where the run looked for its best weights, these are taken. Model and data are read where the run had them, on a CPU
    where there is no GPU. Raises `CheckpointError`, `ConfigError`, `NonFiniteLossError`, `VerificationError` and what
    reading can raise.
    """
    if output.exists():
        raise ConfigError(f"--output is {output}: it exists already and is not overwritten; name a new folder")
    saved = Saved(checkpoint=read_checkpoint(checkpoint), record=read_record(checkpoint), own=True)
    record, state = saved.record, saved.state()
    check_trained(state.trainer_state.step, len(state.trainer_state.losses))
    config = record.config
    device = choose_anywhere(config.device, config.training.precision)
    base = find_base(saved.pinned(config.model.uri), volumes, hub)
    adapted = _adapted(record, base, device, state)
    sources = sources_of(record, volumes, hub)
    if sources.fingerprint != record.resolved.dataset_fingerprint:
        raise CheckpointError(
            f"the data set {config.dataset.uri} has changed since the checkpoint was saved: restore the data that was "
            "used",
            Reason.RESUME_MISMATCH,
        )
    try:
        with temporary_folder("lora-tokens-") as prepared, aside(output) as partial:
            data = prepare_anew(record, sources, base, saved.day, volumes, folder=prepared / "data")
            # Of commits that are gone by now, the same rows were found at others.
            commits = {name: getattr(data, name) for name in ("dataset_revision", "validation_revision")}
            after, noise = _evaluated(record, adapted, device, data.evaluation)
            copy_held_out_rows(prepared / "data", partial)
            write_adapter(copy_adapter(adapted.model, adapted.starts), partial, data.template)
            write_manifest(
                partial,
                replace(record, **commits),
                measured_by(
                    state.trainer_state,
                    record.before,
                    after,
                    device,
                    config=config,
                    held_out=record.held_out,
                    seconds=state.trainer_state.seconds,
                    resumed=None,
                ),
                noise=noise,
                verbatim=data.verbatim,
                day=data.day,
            )
            verification = verify(partial, volumes, hub, anywhere=True, data=prepared / "data")
            partial.rename(output)
    except OSError as error:
        raise storage_error(error, str(output)) from error
    return verification


def _adapted(record: RunRecord, base: Base, device: Device, state: State) -> Adapted:
    config = record.config
    if base.revision != record.base_revision:
        raise CheckpointError(
            f"the base model {base.name} is at {base.revision} now, the checkpoint is of {record.base_revision}: "
            "restore the model that was used",
            Reason.RESUME_MISMATCH,
        )
    loaded = load_model(base, config.quantization, device)
    adapted = adapt(loaded, config.lora, base, device, config.training.seed, starts=state.starts or None)
    put_back(trainable(adapted.model), state.best or state.adapter)
    return adapted


def _evaluated(record: RunRecord, adapted: Adapted, device: Device, examples: Examples) -> tuple[Evaluation, float]:
    """The loss of the adapted model, and its noise."""
    config = record.config
    if tuple(examples.targets.tolist()) != tuple(record.before.tokens):
        raise CheckpointError(
            "rows have other tokens here than when the checkpoint was saved, so its first loss cannot be compared: use "
            "the trainer image that wrote it",
            Reason.RESUME_MISMATCH,
        )
    model, head = adapted.model, adapted.head
    limit = evaluation_limit(
        config.training.micro_batch_size,
        record.dataset.longest_tokens,
        frequencies_of(model),
        device.torch_device,
        trained=record.resolved.micro_batch_tokens,
    )
    minimised = objective_of(config)
    after = evaluate(model, head, examples, device, lambda _rows: None, limit=limit, objective=minimised)
    noise = measure_noise(
        model, head, examples, device, lambda _rows: None, first=after, limit=limit, objective=minimised
    )
    return after, noise
