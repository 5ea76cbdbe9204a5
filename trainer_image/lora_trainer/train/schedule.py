"""How long a training is and which learning rate each of its steps has."""

import math

from lora_trainer.spec.config import Schedule, TrainingConfig


def wanted_rows(config: TrainingConfig, rows: int, step: int = 0, seen: int = 0) -> int:
    """Rows that the whole run sees of a data set of `rows`, repetitions counted; the first `step` steps saw `seen`."""
    if config.max_steps is not None:
        return seen + (config.max_steps - step) * config.effective_batch_size
    return max(1, round((config.epochs or 1.0) * rows))


def total_steps(config: TrainingConfig, rows: int, step: int = 0, seen: int = 0) -> int:
    """Optimizer steps of the whole run, of which the first `step` saw `seen` rows. The last one of a run by epochs may
    have fewer rows than others, and so may that of a run before it. Of rows that have become fewer, more may have been
    seen than there are."""
    left = max(0, wanted_rows(config, rows, step, seen) - seen)
    return step + math.ceil(left / config.effective_batch_size)


def learning_rate_factor(step: int, total: int, warmup_ratio: float, schedule: Schedule) -> float:
    """Share of the learning rate at optimizer step `step` of `total`, counted from 0.

    A linear warm-up, then the schedule. The first and the last step always learn something.
    """
    warmup = math.ceil(total * warmup_ratio)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total - warmup)
    if schedule is Schedule.COSINE:
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1 - progress if schedule is Schedule.LINEAR else 1.0
