"""One run, top-down: tokens, model, evaluation before, training, evaluation after, adapter on the volume."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from lora_trainer.artifact.curve_records import metrics_beside
from lora_trainer.contract.config import TrainConfig
from lora_trainer.contract.progress import Phase
from lora_trainer.contract.summary import ResolvedRun
from lora_trainer.data import dataset as datasets
from lora_trainer.data.chosen_template import chosen_template
from lora_trainer.data.dataset import Data
from lora_trainer.data.kept_rows import KeptRows
from lora_trainer.data.survey import Samples
from lora_trainer.data.tokenizer import load_encoder
from lora_trainer.data.tokens import Encoder
from lora_trainer.model.device import choose_device, same_type
from lora_trainer.model.options import check_options
from lora_trainer.places.base import Base, find_base
from lora_trainer.places.hub import Hub
from lora_trainer.places.volumes import Volumes
from lora_trainer.ranks.collectives import Ranks
from lora_trainer.ranks.group import join, local_rank
from lora_trainer.ranks.reports import Report, Reporter
from lora_trainer.recipe.advising import advise_at_end, facts_of, known_shape
from lora_trainer.recipe.session import Session
from lora_trainer.recipe.settling import check_lengths, peak_share, settle
from lora_trainer.recipe.starting import agreed, beginning, check_claim
from lora_trainer.recipe.telling import Teller
from lora_trainer.recipe.vocabulary import check_tokens
from lora_trainer.result.curves import write_curves
from lora_trainer.result.export import measured_by, versions, write_adapter, write_manifest
from lora_trainer.result.held_out import write_held_out_rows
from lora_trainer.training.checkpoint import MARGIN_BYTES, Checkpoints
from lora_trainer.training.evaluate import Evaluation
from lora_trainer.training.identity import Identity, identity
from lora_trainer.training.objective import objective_of
from lora_trainer.training.saver import Saver
from lora_trainer.training.state import RunRecord
from lora_trainer.training.stopping import Stop

log = logging.getLogger(__name__)
_ADAPTER_BYTES = 8
"""What a trained parameter takes in the result: fp32, and twice where PiSSA or OLoRA is written as a plain adapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """Where a training works: the run's durable folder, None where nothing outlives the pod; `tokens`, a temporary one
    that the processes of a node share; `rows`, where encoded rows outlive an attempt; `may_write` raises where another
    trainer took the run over; `stop` hears the request to stop."""

    folder: Path | None = None
    tokens: Path | None = None
    rows: KeptRows = KeptRows()  # noqa: RUF009 - frozen
    may_write: Callable[[], None] = lambda: None
    stop: Stop = field(default_factory=Stop)

    def make_room(self, size_bytes: int) -> None:
        """Have room for so much, where this process may still write."""
        self.may_write()
        self.rows.make_room(size_bytes)


def run_training(
    config: TrainConfig,
    samples: Samples,
    volumes: Volumes,
    hub: Hub,
    *,
    folder: Path,
    reporter: Reporter,
    workshop: Workshop,
) -> None:
    """Train on samples, together with the other processes of the run; the first of them writes the adapter with its
    manifest into `folder`. Raises `TrainerError`."""
    started = time.monotonic()
    device = choose_device(config.device, config.training.precision, local_rank())
    log.info("device %s, compute type %s", device.name, device.dtype_name)

    with join(device.torch_device, config.stall_timeout_s) as group:
        device = same_type(device, group)
        reporter.phase(Phase.LOADING_MODEL)
        checkpoints = _checkpoints(config, workshop, group)
        found = beginning(config, checkpoints, volumes, group)
        saved = found.saved
        base = find_base(saved.pinned(config.model.uri) if saved else config.model.uri, volumes, hub)
        chosen = chosen_template(config.dataset, volumes, found.day)
        encoder = load_encoder(
            base,
            config.training.loss_on,
            config.training.max_sequence_length,
            chosen,
            encode=objective_of(config).encode,
        )
        linear = check_options(base, config, device)
        data = datasets.encode_once(samples, encoder, workshop.tokens, workshop.rows, base.revision)
        _look_at_data(config, base, data, encoder, reporter)

        settled = settle(
            config, base, device, data, group, reporter=reporter, kept=saved.quantization if saved else None
        )
        config = settled.config
        ours = agreed(
            identity(config, base.revision, data.fingerprint, chosen.digest, day=encoder.day, capped=samples.capped),
            group,
        )
        start = saved and saved.checked(ours, config.training, len(data.training))
        if group.is_main and workshop.folder:
            check_claim(settled, workshop.folder, len(data.training), start)

        facts = partial(facts_of, settled=settled, base=base, samples=samples, data=data)
        record = partial(_record, config=config, base=base, samples=samples, data=data, ours=ours)
        session = Session.open(settled, base, data, device, group, linear=linear)
        result = session.train(
            settled,
            start=start,
            stop=workshop.stop,
            saver=partial(_saver, config, checkpoints, record),
            listener=Teller(
                reporter,
                device,
                metrics_beside(folder),
                peak_share(known_shape(base), device, group),
                facts=facts,
                start=start,
                held_out_digest=samples.held_out_digest,
                speaks=group.is_main,
            ),
        )

        if result.adapter is not None:
            workshop.make_room(_ADAPTER_BYTES * result.resolved.trainable_parameters + MARGIN_BYTES)
            write_held_out_rows(folder, config, samples)
            write_adapter(result.adapter, folder, encoder.template)
            write_curves(folder, held_out=data.held_out)
            write_manifest(
                folder,
                record(result.resolved, result.before),
                measured_by(
                    result.trained,
                    result.before,
                    result.after,
                    device,
                    plan=settled.plan,
                    held_out=data.held_out,
                    seconds=time.monotonic() - started,
                    resumed=start.resumed_step if start else None,
                ),
                noise=result.noise,
                verbatim=samples.verbatim and not encoder.has_template,
                day=encoder.day,
                advice=advise_at_end(facts(result.resolved, result.left_alone), result, data),
            )


def _look_at_data(config: TrainConfig, base: Base, data: Data, encoder: Encoder, reporter: Reporter) -> None:
    reporter.send(Report(dataset=data.stats))
    datasets.log_data(data, encoder)
    check_lengths(config, base, data)
    check_tokens(base, data, encoder)


def _checkpoints(config: TrainConfig, workshop: Workshop, ranks: Ranks) -> Checkpoints | None:
    """Those of the first process; the others need to know whether there are any, and may not see the volume."""
    folder = ranks.broadcast_value(workshop.folder, Path | None)
    if folder is None:
        log.info("no claim for checkpoints: an interrupted run starts again at the beginning")
        return None
    keep, make_room = config.checkpoint.keep, workshop.rows.make_room
    return Checkpoints(folder, keep=keep, may_write=workshop.may_write, make_room=make_room)


def _record(
    resolved: ResolvedRun,
    before: Evaluation,
    *,
    config: TrainConfig,
    base: Base,
    samples: Samples,
    data: Data,
    ours: Identity,
) -> RunRecord:
    return RunRecord(
        identity=ours,
        config=config,
        resolved=resolved,
        dataset=data.stats,
        held_out=data.held_out,
        base_model=base.name,
        base_revision=base.revision,
        versions=versions(resolved),
        before=before,
        dataset_revision=samples.dataset_revision,
        validation_revision=samples.validation_revision,
        held_out_digest=samples.held_out_digest,
    )


def _saver(
    config: TrainConfig,
    checkpoints: Checkpoints | None,
    record: Callable[[ResolvedRun, Evaluation], RunRecord],
    resolved: ResolvedRun,
    before: Evaluation,
) -> Saver | None:
    if checkpoints is None:
        return None
    return Saver(checkpoints=checkpoints, config=config.checkpoint, record=record(resolved, before))
