"""One run, top-down: tokens, model, evaluation before, training, evaluation after, adapter on the volume."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from lora_trainer.artifact.curve_records import MetricsFile, metrics_beside
from lora_trainer.artifact.manifest import Measured
from lora_trainer.contract.advice.codes import Advice
from lora_trainer.contract.config import ActivationCheckpointing, TrainConfig
from lora_trainer.contract.progress import Phase
from lora_trainer.contract.summary import ResolvedRun
from lora_trainer.contract.uri import at_commit
from lora_trainer.data.dataset import Data, log_data, open_data
from lora_trainer.data.held_out import copy_held_out_rows
from lora_trainer.data.kept_rows import KeptRows
from lora_trainer.errors import TransientError
from lora_trainer.model.classes import class_name
from lora_trainer.model.convert import Start
from lora_trainer.model.device import Device, choose_device, same_type
from lora_trainer.model.loading import Adapted
from lora_trainer.model.options import check_options
from lora_trainer.places.base import Base, find_base
from lora_trainer.places.hub import Hub
from lora_trainer.places.volumes import Volumes
from lora_trainer.ranks.collectives import Ranks
from lora_trainer.ranks.group import join, local_rank
from lora_trainer.ranks.reports import Report, Reporter
from lora_trainer.recipe.adapting import adapted_on_all
from lora_trainer.recipe.advising import advise_at_end, advise_before, ended_of, facts_of
from lora_trainer.recipe.claim_room import check_room
from lora_trainer.recipe.evaluator import Evaluator, budget_for
from lora_trainer.recipe.settling import Settled, peak_share, settle
from lora_trainer.recipe.way import Way, way_of
from lora_trainer.result.curves import write_curves
from lora_trainer.result.export import measured_by, versions, write_adapter, write_manifest
from lora_trainer.training.checkpoint import MARGIN_BYTES, Checkpoints
from lora_trainer.training.evaluate import Evaluation
from lora_trainer.training.identity import Identity, difference, identity
from lora_trainer.training.loop import Training
from lora_trainer.training.narrator import Narrator
from lora_trainer.training.objective import objective_of
from lora_trainer.training.packs import accumulation
from lora_trainer.training.resume import Saved, find_saved
from lora_trainer.training.saver import Saver
from lora_trainer.training.schedule import total_steps
from lora_trainer.training.state import RunRecord, state_on_all
from lora_trainer.training.stopping import Stop

log = logging.getLogger(__name__)
_ADAPTER_BYTES = 8
"""What a trained parameter takes in the result: fp32, and twice where PiSSA or OLoRA is written as a plain adapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """Where a training works: the run's durable folder, None where nothing outlives the pod;
    `rows`, where encoded rows outlive an attempt; `may_write` raises where another trainer took the run over; `stop`
    hears the request to stop."""

    folder: Path | None = None
    rows: KeptRows = KeptRows()  # noqa: RUF009 - frozen
    may_write: Callable[[], None] = lambda: None
    stop: Stop = field(default_factory=Stop)

    def make_room(self, size_bytes: int) -> None:
        """Have room for so much, where this process may still write."""
        self.may_write()
        self.rows.make_room(size_bytes)


def run_training(
    config: TrainConfig,
    prepared: Path,
    volumes: Volumes,
    hub: Hub,
    *,
    folder: Path,
    reporter: Reporter,
    workshop: Workshop,
) -> None:
    """Train on what was `prepared` in a folder, together with the other processes of the run; the first of them writes
    the adapter with its manifest into `folder`. Raises `TrainerError`."""
    started = time.monotonic()
    device = choose_device(config.device, config.training.precision, local_rank())
    log.info("device %s, compute type %s", device.name, device.dtype_name)

    with join(device.torch_device, config.stall_timeout_s) as group:
        device = same_type(device, group)
        reporter.phase(Phase.LOADING_MODEL)
        checkpoints = _checkpoints(config, workshop, group)
        saved = _start(config, workshop, checkpoints, volumes, group)
        data = open_data(prepared)
        base = _base(config, data, volumes, hub)
        linear = check_options(base, config, device)
        reporter.send(Report(dataset=data.stats))
        log_data(data)

        settled = settle(
            config, base, device, data, group, reporter=reporter, kept=saved.quantization if saved else None
        )
        config = settled.config
        ours = _agreed(
            identity(config, base.revision, data.fingerprint, data.template_digest, day=data.day, capped=data.capped),
            group,
        )
        goes_on = saved is not None and saved.check(ours, config.training, len(data.training))
        _check_claim(settled, workshop, len(data.training), saved if goes_on else None, group)
        adapted, ranks = adapted_on_all(settled, base, device, _starts(saved, group), group, linear=linear)
        way = way_of(settled, adapted, data, device, ranks, saved=saved, goes_on=goes_on)
        resolved = _resolved(config, base, data, adapted, device=device, way=way, ranks=ranks)

        facts = facts_of(settled, base, data, adapted)
        advise_before(facts, speaks=ranks.is_main)

        reporter.phase(Phase.EVALUATING, resolved)
        curves = _curves(folder, saved if goes_on else None)
        narrator = Narrator(reporter, device, curves, peak_share(facts.shape, device, ranks))
        evaluation = Evaluator(
            adapted=adapted,
            data=data,
            objective=objective_of(config),
            budget=budget_for(config, way.budget, device),
            device=device,
            ranks=ranks,
            alive=narrator.alive,
            stop=workshop.stop,
        )
        before = saved.record.before if saved and goes_on else evaluation(trained=False)
        reporter.progress(phase=Phase.TRAINING, eval_loss=before.loss)
        if not goes_on:
            curves.evaluated(0, loss=before.loss, standard_error=before.standard_error)
        device.reset_peak_memory()
        record = _record(config, base, data, resolved, identity=ours, before=before)
        training = Training(
            adapted=adapted,
            examples=data.training,
            config=config.training,
            objective=objective_of(config),
            budget=way.budget,
            device=device,
            ranks=ranks,
            listener=narrator,
            stop=workshop.stop,
            saver=_saver(config, checkpoints, record),
            evaluate=evaluation.on_the_way,
        )
        if saved:
            _go_on(training, saved, record, reporter, goes_on=goes_on)
        trained = training.run()
        reporter.phase(Phase.EVALUATING)
        after = evaluation(trained=True)
        noise = evaluation.noise(after)
        reporter.progress(phase=Phase.PUBLISHING, eval_loss=after.loss)
        # Of these weights, which need not be the last ones.
        curves.evaluated(trained.best_step or trained.steps, loss=after.loss, standard_error=after.standard_error)

        measured = measured_by(
            trained,
            before,
            after,
            device,
            plan=settled.plan,
            held_out=data.held_out,
            seconds=time.monotonic() - started,
            resumed=saved.checkpoint.step if saved and goes_on else None,
        )
        if ranks.is_main:
            workshop.make_room(_ADAPTER_BYTES * adapted.trainable_parameters + MARGIN_BYTES)
            copy_held_out_rows(prepared, folder)
            ended = ended_of(trained, before, after, training.total, held_out=data.held_out)
            _write(
                folder,
                record,
                base,
                adapted,
                data.template,
                measured=measured,
                noise=noise,
                verbatim=data.verbatim,
                day=data.day,
                advice=advise_at_end(facts, ended),
            )


def _starts(saved: Saved | None, ranks: Ranks) -> Mapping[str, Start] | None:
    return saved.starts() if saved and ranks.is_main else None


def _curves(folder: Path, goes_on: Saved | None) -> MetricsFile:
    curves = metrics_beside(folder)
    curves.begin(goes_on.checkpoint.step if goes_on else 0)
    return curves


def _base(config: TrainConfig, data: Data, volumes: Volumes, hub: Hub) -> Base:
    """The model whose tokenizer made the data. Raises `TransientError` where it was replaced since."""
    base = find_base(at_commit(config.model.uri, data.model_revision), volumes, hub)
    if base.revision != data.model_revision:
        raise TransientError(
            f"the base model {base.name} was changed while the run's data was prepared: both are read again"
        )
    return base


def _check_claim(settled: Settled, workshop: Workshop, rows: int, saved: Saved | None, ranks: Ranks) -> None:
    """The first process sees the volume; a full one would end the run hours later."""
    if ranks.is_main and workshop.folder and settled.plan:
        step, seen = (saved.checkpoint.step, saved.rows) if saved else (0, 0)
        total = total_steps(settled.config.training, rows, step, seen)
        check_room(settled.config, settled.plan, workshop.folder, step=step, total=total)


def _go_on(training: Training, saved: Saved, record: RunRecord, reporter: Reporter, *, goes_on: bool) -> None:
    """Begin at a saved step, or with `goes_on` false at step 0 with the weights that the saved run publishes. The state
    is read as late as this, and let go of: in main memory it takes as much as the training holds on its device."""
    saved.log_start(goes_on=goes_on)
    saved.warn_of_changes(record.resolved, record.versions)
    saved.warn_of_split(record.held_out_digest)
    patient = training.config.early_stopping_patience is not None
    ranks = training.ranks
    here = saved.state() if ranks.is_main else None
    if here is not None and not goes_on:
        here = here.published()
    state = state_on_all(here, ranks, training.device.torch_device)
    training.restore(state if saved.own else state.taken_over(patient=patient), weights_only=not goes_on)
    reporter.progress(**saved.progress(goes_on=goes_on))


def _write(
    folder: Path,
    record: RunRecord,
    base: Base,
    adapted: Adapted,
    template: str | None,
    *,
    measured: Measured,
    noise: float,
    verbatim: bool,
    day: date | None,
    advice: tuple[Advice, ...],
) -> None:
    """The adapter with its curves, and the manifest, which completes it."""
    write_adapter(adapted, folder, template)
    write_curves(folder, held_out=record.held_out)
    write_manifest(
        folder,
        base=base,
        config=record.config,
        resolved=record.resolved,
        dataset=record.dataset,
        measured=measured,
        noise=noise,
        verbatim=verbatim,
        day=day,
        dataset_revision=record.dataset_revision,
        validation_revision=record.validation_revision,
        advice=advice,
    )


def _record(
    config: TrainConfig,
    base: Base,
    data: Data,
    resolved: ResolvedRun,
    *,
    identity: Identity,
    before: Evaluation,
) -> RunRecord:
    return RunRecord(
        identity=identity,
        config=config,
        resolved=resolved,
        dataset=data.stats,
        held_out=data.held_out,
        base_model=base.name,
        base_revision=base.revision,
        versions=versions(resolved),
        before=before,
        dataset_revision=data.dataset_revision,
        validation_revision=data.validation_revision,
        held_out_digest=data.held_out_digest,
    )


def _checkpoints(config: TrainConfig, workshop: Workshop, ranks: Ranks) -> Checkpoints | None:
    """Those of the first process; the others need to know whether there are any, and may not see the volume."""
    folder = ranks.broadcast_value(workshop.folder, Path | None)
    if folder is None:
        log.info("no claim for checkpoints: an interrupted run starts again at the beginning")
        return None
    keep, make_room = config.checkpoint.keep, workshop.rows.make_room
    return Checkpoints(folder, keep=keep, may_write=workshop.may_write, make_room=make_room)


def _start(
    config: TrainConfig, workshop: Workshop, checkpoints: Checkpoints | None, volumes: Volumes, ranks: Ranks
) -> Saved | None:
    """What the run goes on from, which one process finds for all."""
    found = None
    if ranks.is_main and workshop.folder and checkpoints:
        found = find_saved(config, workshop.folder, checkpoints, volumes)
    return ranks.broadcast_value(found, Saved | None)


def _saver(config: TrainConfig, checkpoints: Checkpoints | None, record: RunRecord) -> Saver | None:
    return None if checkpoints is None else Saver(checkpoints=checkpoints, config=config.checkpoint, record=record)


def _agreed(ours: Identity, ranks: Ranks) -> Identity:
    """The identity that all processes have.

    Raises `TransientError` where a branch or a data set was moved on while the processes looked it up.
    """
    found = next((found for theirs in ranks.gather(ours, Identity) if (found := difference(theirs, ours))), None)
    if found is not None:
        raise TransientError(f"the processes of the run found different inputs, {found}: they are looked up again")
    return ours


def _resolved(
    config: TrainConfig,
    base: Base,
    data: Data,
    adapted: Adapted,
    *,
    device: Device,
    way: Way,
    ranks: Ranks,
) -> ResolvedRun:
    budget = way.budget
    share = math.ceil(config.training.effective_batch_size / ranks.world)
    return ResolvedRun(
        device=device.name,
        compute_dtype=device.dtype_name,
        model_type=base.model_type,
        model_revision=base.revision,
        dataset_format=data.kind.value,
        dataset_fingerprint=data.fingerprint,
        target_modules=adapted.target_modules,
        trainable_parameters=adapted.trainable_parameters,
        total_parameters=adapted.total_parameters,
        micro_batch_size=min(budget.rows, share),
        micro_batch_tokens=budget.tokens,
        gradient_accumulation_steps=accumulation(
            data.training.room(packed=budget.packed),
            budget,
            config.training.effective_batch_size,
            config.training.seed,
            ranks.world,
        ),
        quantization=config.quantization.value,
        packing=budget.packed,
        attention=way.attention,
        optimizer=config.training.optimizer.value,
        activation_checkpointing=adapted.checkpointing.recomputes,
        selective_checkpointing=adapted.checkpointing is ActivationCheckpointing.SELECTIVE,
        processes=ranks.world,
        sharded=adapted.sharded_over is not None,
        sharded_over=adapted.sharded_over,
        model_class=class_name(adapted.model.config, base.name),
        kernels=way.kernels.names,
        kernels_left_out=way.kernels.left_out,
        kernels_unchecked=way.kernels.unchecked,
    )
