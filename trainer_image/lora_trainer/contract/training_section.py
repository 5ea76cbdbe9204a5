"""`spec.training` of a manifest: defaults, bounds and rules between its fields."""

from typing import TypeVar

from lora_trainer.contract.config import (
    ActivationCheckpointing,
    Kernels,
    LossOn,
    Optimizer,
    Packing,
    Precision,
    Schedule,
    TrainingConfig,
)
from lora_trainer.contract.fields import Reader

N = TypeVar("N", int, float)


def read_training(section: Reader, *, strict: bool) -> TrainingConfig:
    """The training's configuration; what is wrong is added to the section's problems."""
    max_steps = section.integer("maxSteps", None, 1, 10_000_000)
    epochs = section.decimal(
        "epochs", None, rule="more than 0 and at most 100", low=0, high=100, open_low=True, or_whole=True
    )
    if max_steps is not None and section.get("epochs") is not None:
        section.complain("maxSteps", max_steps, "must not be set together with epochs: remove one of the two")
    rate = section.decimal("learningRate", 0.0002, rule="more than 0 and at most 1", low=0, high=1, open_low=True)
    decay = section.decimal("weightDecay", 0.0, rule="from 0 to 1", low=0, high=1)
    norm = section.decimal("maxGradNorm", 1.0, rule="more than 0 and at most 1000", low=0, high=1000, open_low=True)
    effective, micro = _batch(section)
    config = TrainingConfig(
        epochs=None if max_steps is not None else (epochs or 1.0),
        max_steps=max_steps,
        learning_rate=rate or 0.0002,
        schedule=section.choice("schedule", Schedule.COSINE, Schedule),
        warmup_ratio=or_default(section.decimal("warmupRatio", 0.03, rule="from 0 to 1", low=0, high=1), 0.03),
        effective_batch_size=effective,
        micro_batch_size=micro,
        max_sequence_length=section.integer("maxSequenceLength", 2048, 8, 1_048_576) or 2048,
        packing=section.choice("packing", Packing.ENABLED, Packing),
        loss_on=section.choice("lossOn", LossOn.COMPLETION, LossOn),
        optimizer=section.choice("optimizer", Optimizer.ADAMW, Optimizer),
        weight_decay=decay or 0.0,
        max_grad_norm=norm or 1.0,
        precision=section.choice("precision", Precision.AUTO, Precision),
        activation_checkpointing=section.choice(
            "activationCheckpointing", ActivationCheckpointing.AUTO, ActivationCheckpointing
        ),
        kernels=section.choice("kernels", Kernels.AUTO, Kernels),
        seed=or_default(section.integer("seed", 42, 0, 2**31 - 1), 42),
        eval_steps=section.integer("evalSteps", None, 1, 10_000_000),
        early_stopping_patience=section.integer("earlyStoppingPatience", None, 1, 1000),
    )
    if config.early_stopping_patience is not None and config.eval_steps is None:
        rule = "needs evalSteps, the distance of the evaluations that it counts: set evalSteps too"
        section.complain("earlyStoppingPatience", config.early_stopping_patience, rule)
    section.finish(strict=strict)
    return config


def _batch(section: Reader) -> tuple[int, int | None]:
    effective = section.integer("effectiveBatchSize", 16, 1, 65536) or 16
    micro = section.integer("microBatchSize", None, 1, 65536)
    if micro is not None and effective % micro:
        section.complain("microBatchSize", micro, f"must divide effectiveBatchSize ({effective})")
    return effective, micro


def or_default(value: N | None, default: N) -> N:
    """`value`, or the default where it is None; 0 is a value."""
    return default if value is None else value
