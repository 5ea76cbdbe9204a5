"""One run, top-down: tokens, model, evaluation before, training, evaluation after, adapter on the volume."""

import logging
import math
import time
from pathlib import Path

from lora_trainer import data as datasets
from lora_trainer.artifact import Measured
from lora_trainer.base import Base, find_base
from lora_trainer.batches import Budget, evaluation_budget
from lora_trainer.contract.config import TrainConfig
from lora_trainer.contract.progress import Phase
from lora_trainer.contract.summary import ResolvedRun
from lora_trainer.data import Data, Samples
from lora_trainer.device import Device, choose_device
from lora_trainer.evaluate import Evaluation, evaluate, improvement_standard_error
from lora_trainer.export import write_adapter, write_manifest
from lora_trainer.hub import Hub
from lora_trainer.loop import Step, Trained, train
from lora_trainer.model import Adapted, adapt, load_encoder, load_model
from lora_trainer.options import check_options
from lora_trainer.reports import Counters, Report, Reporter
from lora_trainer.store import Examples
from lora_trainer.volumes import Volumes

log = logging.getLogger(__name__)


def run_training(
    config: TrainConfig, samples: Samples, volumes: Volumes, hub: Hub, *, folder: Path, reporter: Reporter
) -> None:
    """Train on samples, write the adapter with its manifest into `folder`. Raises `TrainerError`."""
    started = time.monotonic()
    device = choose_device(config.device, config.training.precision)
    log.info("device %s, compute type %s", device.name, device.dtype_name)

    reporter.phase(Phase.LOADING_MODEL)
    base = find_base(config.model.uri, volumes, hub)
    encoder = load_encoder(base, config.training.loss_on, config.training.max_sequence_length)
    check_options(base, config, device)
    data = datasets.encode(samples, encoder)
    reporter.send(Report(dataset=data.stats))
    _log_data(data)

    adapted = adapt(
        load_model(base, config.quantization, device),
        config.lora,
        base,
        device,
        config.training.seed,
        checkpointing=config.training.activation_checkpointing,
    )
    for sentence in adapted.advice:
        log.warning("%s", sentence)
    budget = Budget.of(config.training.micro_batch_size, data.stats.longest_tokens)
    resolved = _resolved(config=config, base=base, data=data, adapted=adapted, device=device, budget=budget)
    log.info(
        "trainable parameters %d of %d (%.3f %%) in %s",
        adapted.trainable_parameters,
        adapted.total_parameters,
        100 * adapted.trainable_parameters / adapted.total_parameters,
        ", ".join(adapted.target_modules),
    )

    reporter.phase(Phase.EVALUATING, resolved)
    evaluation = evaluation_budget(config.training.micro_batch_size, data.stats.longest_tokens)
    before = _evaluate(adapted, data, device, "before training", evaluation)
    reporter.progress(phase=Phase.TRAINING, eval_loss=before.loss)
    device.reset_peak_memory()
    trained = train(
        adapted,
        data.training,
        config=config.training,
        budget=budget,
        device=device,
        on_step=StepReporter(reporter, device),
    )
    reporter.phase(Phase.EVALUATING)
    after = _evaluate(adapted, data, device, "after training", evaluation)
    reporter.progress(phase=Phase.PUBLISHING, eval_loss=after.loss)

    measured = _measured(trained, before, after, device, held_out=data.held_out, seconds=time.monotonic() - started)
    write_adapter(adapted, folder, encoder.template)
    write_manifest(folder, base=base, config=config, resolved=resolved, dataset=data.stats, measured=measured)


def _evaluate(adapted: Adapted, data: Data, device: Device, when: str, budget: Budget) -> Evaluation:
    def done(rows: int) -> None:
        log.debug("evaluated %d of %d rows", rows, len(data.evaluation))

    result = evaluate(adapted.model, adapted.head, data.evaluation, device, done, budget=budget)
    kind = "held-out" if data.held_out else "training"
    log.info("loss %s %.4f ± %.4f on %d %s rows", when, result.loss, result.standard_error, len(data.evaluation), kind)
    return result


class StepReporter:
    """Reports every step, and logs about one in twenty."""

    def __init__(self, reporter: Reporter, device: Device) -> None:
        self._reporter = reporter
        self._device = device
        self._tokens = 0
        self._rows = 0

    def __call__(self, step: Step) -> None:
        """Take one finished step."""
        self._tokens += step.tokens
        self._rows += step.rows
        self._reporter.progress(
            counters=Counters(
                tokens=self._tokens, rows=self._rows, gradient_norm=step.gradient_norm, step_seconds=step.seconds
            ),
            step=step.number,
            total_steps=step.total,
            epoch=step.epoch,
            loss=step.loss,
            learning_rate=step.learning_rate,
            tokens_per_second=step.tokens_per_second,
            estimated_remaining_seconds=round(step.remaining_seconds),
            peak_memory_bytes=self._device.peak_memory_bytes(),
        )
        if step.number in (1, step.total) or step.number % max(1, step.total // 20) == 0:
            log.info(
                "step %d/%d  loss %.4f  lr %.2e  %.0f tokens/s  %.0f s left",
                step.number,
                step.total,
                step.loss,
                step.learning_rate,
                step.tokens_per_second,
                step.remaining_seconds,
            )


def _log_data(data: Data) -> None:
    stats = data.stats
    log.info(
        "%s: %d training rows (%d tokens, %d learned), %d held out; %d cut, %d skipped, %d duplicates",
        data.kind.value,
        stats.train_samples,
        stats.train_tokens,
        stats.target_tokens,
        stats.validation_samples,
        stats.truncated_samples,
        stats.skipped_samples,
        stats.duplicate_samples,
    )


def _resolved(
    *, config: TrainConfig, base: Base, data: Data, adapted: Adapted, device: Device, budget: Budget
) -> ResolvedRun:
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
        micro_batch_size=min(budget.rows, config.training.effective_batch_size),
        gradient_accumulation_steps=math.ceil(config.training.effective_batch_size / budget.rows),
        quantization=config.quantization.value,
        optimizer=config.training.optimizer.value,
        activation_checkpointing=adapted.checkpointing,
    )


def _measured(
    trained: Trained, before: Evaluation, after: Evaluation, device: Device, *, held_out: bool, seconds: float
) -> Measured:
    return Measured(
        steps=trained.steps,
        trained_tokens=trained.tokens,
        train_loss=trained.loss,
        eval_loss_before=before.loss,
        eval_loss_after=after.loss,
        eval_loss_before_standard_error=before.standard_error,
        eval_loss_after_standard_error=after.standard_error,
        improvement_standard_error=improvement_standard_error(before, after),
        held_out=held_out,
        duration_seconds=seconds,
        tokens_per_second=trained.tokens / max(trained.seconds, 1e-9),
        peak_memory_bytes=device.peak_memory_bytes(),
    )


def evaluation_rows(config: TrainConfig, volumes: Volumes, hub: Hub, base: Base) -> tuple[Examples, str]:
    """The rows that a run with this configuration evaluates on, read afresh, and the fingerprint of their data set."""
    samples = datasets.load_samples(config, volumes, hub)
    encoder = load_encoder(base, config.training.loss_on, config.training.max_sequence_length)
    return datasets.encode_evaluation(samples, encoder), samples.fingerprint
