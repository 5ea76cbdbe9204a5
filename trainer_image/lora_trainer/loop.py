"""The training loop: optimizer steps over micro-batches, normalised by the learned tokens of the whole step."""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lora_trainer.batches import Budget, step_rows
from lora_trainer.contract.config import Schedule, TrainingConfig
from lora_trainer.device import Device
from lora_trainer.errors import NonFiniteLossError
from lora_trainer.model import Adapted, set_training
from lora_trainer.ranks import Ranks
from lora_trainer.step import run_step
from lora_trainer.tokens import Example

MAX_GRADIENT_NORM = 1.0
_SPEED_WINDOW = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One optimizer step that was taken; `number` counts from 1, `tokens` are the step's without padding."""

    number: int
    total: int
    epoch: float
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    rows: int
    seconds: float
    tokens_per_second: float
    remaining_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What the loop did; `loss` is the mean over the learned tokens of the last tenth of the steps."""

    steps: int
    tokens: int
    loss: float
    seconds: float


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


def train(
    adapted: Adapted,
    examples: Sequence[Example],
    *,
    config: TrainingConfig,
    budget: Budget,
    device: Device,
    on_step: Callable[[Step], None],
    clock: Callable[[], float] = time.monotonic,
) -> Trained:
    """Train the adapter in place. Raises `NonFiniteLossError`."""
    effective = config.effective_batch_size
    wanted_rows = _wanted_rows(config, len(examples))
    total = math.ceil(wanted_rows / effective)
    parameters = [parameter for parameter in adapted.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0, fused=True)
    scaler = torch.amp.GradScaler(device.torch_device.type, enabled=device.dtype == torch.float16)
    set_training(adapted.model, on=True)
    started = last = clock()
    recent: deque[Step] = deque(maxlen=_SPEED_WINDOW)
    losses: list[tuple[float, int]] = []
    tokens = rows_done = 0
    for number, rows in enumerate(step_rows(len(examples), effective, wanted_rows, config.seed), start=1):
        factor = learning_rate_factor(number - 1, total, config.warmup_ratio, config.schedule)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * factor
        chosen = [examples[row] for row in rows]
        targets = sum(example.targets for example in chosen)
        loss = run_step(adapted, chosen, targets=targets, budget=budget, device=device, scaler=scaler, ranks=Ranks())
        scaler.unscale_(optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM))
        check_finite(number, loss, norm, scaler.get_scale() if scaler.is_enabled() else None)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        now = clock()
        rows_done += len(rows)
        tokens += sum(example.length for example in chosen)
        losses.append((loss, targets))
        speed, remaining = _speed(recent, chosen, now - last, total - number)
        step = Step(
            number=number,
            total=total,
            epoch=rows_done / len(examples),
            loss=loss,
            learning_rate=config.learning_rate * factor,
            gradient_norm=norm,
            tokens=sum(example.length for example in chosen),
            rows=len(rows),
            seconds=now - last,
            tokens_per_second=speed,
            remaining_seconds=remaining,
        )
        recent.append(step)
        last = now
        on_step(step)
    return Trained(steps=total, tokens=tokens, loss=_final_loss(losses), seconds=last - started)


def _wanted_rows(config: TrainingConfig, rows: int) -> int:
    """Rows that the whole run sees, repetitions counted."""
    if config.max_steps is not None:
        return config.max_steps * config.effective_batch_size
    return max(1, round((config.epochs or 1.0) * rows))


def check_finite(step: int, loss: float, norm: float, scale: float | None) -> None:
    """Raise `NonFiniteLossError` where going on is in vain. `scale` is the factor on an fp16 loss, None elsewhere."""
    # With fp16 an infinite gradient mostly means that the scale was too high: the scaler skips the step and lowers it.
    # Below 1 it has nothing left to gain, and would skip every step of a run that then ends as if it had learned.
    if not math.isfinite(loss) or (not math.isfinite(norm) and (scale is None or scale < 1)):
        what = f"loss is {loss}" if not math.isfinite(loss) else f"norm of the gradient is {norm}"
        raise NonFiniteLossError(
            f"the {what} at step {step}: lower training.learningRate, and use BF16 or FP32 instead of FP16"
        )


def _speed(recent: Sequence[Step], examples: Sequence[Example], seconds: float, left: int) -> tuple[float, float]:
    """Tokens per second over the last steps, and the seconds that the remaining ones will take at that pace."""
    # The first step of a process also warms caches and allocators up: it counts only until there is another.
    steady = [step for step in recent if step.number > 1]
    tokens = sum(step.tokens for step in steady) + sum(example.length for example in examples)
    spent = sum(step.seconds for step in steady) + seconds
    return tokens / max(spent, 1e-9), left * spent / (len(steady) + 1)


def _final_loss(losses: Sequence[tuple[float, int]]) -> float:
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(loss * tokens for loss, tokens in tail) / sum(tokens for _, tokens in tail)
