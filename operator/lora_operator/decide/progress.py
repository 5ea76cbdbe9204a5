"""The progress block of the status: what the trainer last said, bounded, with ready strings for the columns.

What a trainer says informs and never decides: a lie shows as a wrong number within the bounds, no more.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from lora_operator.model.objects import PodView
from lora_operator.model.stored import Stored
from lora_operator.model.wording import byte_size, decimal, duration, instant, parse_instant
from lora_trainer.spec.progress import Phase, Progress
from lora_trainer.spec.summary import Results

LARGEST = 2**63 - 1
_BEFORE_THE_FIRST_STEP = {Phase.STARTING, Phase.PREPARING, Phase.LOADING_MODEL}
_OF_THE_MOMENT = ("phase", "tokensPerSecond", "estimatedRemainingSeconds", "eta")
Block = dict[str, Any]


def follow_progress(stored: Stored, running: PodView | None, progress: Progress | None, now: datetime) -> Block:
    """The block while the run goes on. Without news the last numbers stay, without a running trainer its speed goes."""
    before = stored.progress
    if running is None or running.name != stored.pod_name:
        before = {key: value for key, value in before.items() if key not in _OF_THE_MOMENT}
    if running is None or progress is None:
        return before
    block = _block(progress)
    saved: Block = {key: before[key] for key in ("checkpointStep", "checkpointTime") if key in before}
    if block.get("checkpointStep", saved.get("checkpointStep")) == saved.get("checkpointStep"):
        block |= saved  # a pod that has just started does not know yet what the one before it saved
    else:
        block["checkpointTime"] = instant(now)
    known = {key: value for key, value in before.items() if key != "lastUpdateTime"}
    # The operator's own clock, and only where something changed: a pod's clock may be anything.
    unchanged = block == known and "lastUpdateTime" in before
    return {**block, "lastUpdateTime": before["lastUpdateTime"] if unchanged else instant(now)}


def close_progress(stored: Stored, results: Results | None) -> Block:
    """The block of a finished run: what was reached, nothing of the moment."""
    before = {key: value for key, value in stored.progress.items() if key not in _OF_THE_MOMENT}
    if results is None:
        return before
    steps = whole(results.steps)
    return {
        **before,
        "step": steps,
        "totalSteps": steps,
        "steps": f"{steps}/{steps}",
        "percentage": 100,
        "loss": decimal(results.train_loss, ".4f"),
        "evalLoss": decimal(results.eval_loss_after, ".4f"),
        "tokensPerSecond": decimal(results.tokens_per_second, ".1f"),
        "peakMemoryBytes": whole(results.peak_memory_bytes),
        "peakMemory": byte_size(whole(results.peak_memory_bytes)),
    }


def stalled_since(block: Mapping[str, Any], timeout_s: float, now: datetime) -> datetime | None:
    """When the trainer last reported something new, where that is longer ago than it may take for a step."""
    reported = parse_instant(block.get("lastUpdateTime"))
    return reported if reported is not None and now - reported > timedelta(seconds=timeout_s) else None


def next_question_s(block: Mapping[str, Any], interval_s: float, now: datetime) -> float:
    """Seconds until the trainer is to be asked again; 0 for now. Every answer is a write, so they are rationed."""
    reported = parse_instant(block.get("lastUpdateTime"))
    if reported is None or not timedelta() <= now - reported < timedelta(seconds=interval_s):
        return 0.0
    return max(1.0, interval_s - (now - reported).total_seconds())


def whole(value: int) -> int:
    """A count within what the schema allows: from 0 to 2^63 - 1."""
    return min(max(value, 0), LARGEST)


def _block(progress: Progress) -> Block:
    total = whole(progress.total_steps or 0)
    # No step lies behind the last one, whatever a trainer says.
    most = total or LARGEST
    step = min(whole(progress.step), most)
    block: Block = {"phase": progress.phase.value}
    if total:
        block |= {"totalSteps": total, "steps": f"{step}/{total}", "percentage": 100 * step // total}
    if progress.phase not in _BEFORE_THE_FIRST_STEP:
        block["step"] = step
    steps = {"checkpointStep": progress.checkpoint_step, "resumedStep": progress.resumed_step}
    block |= {key: min(whole(value), most) for key, value in steps.items() if value is not None}
    fractions = {
        "epoch": (progress.epoch, ".2f"),
        "loss": (progress.loss, ".4f"),
        "evalLoss": (progress.eval_loss, ".4f"),
        "learningRate": (progress.learning_rate, ".3g"),
        "tokensPerSecond": (progress.tokens_per_second, ".1f"),
    }
    block |= {key: decimal(value, form) for key, (value, form) in fractions.items() if value is not None}
    if progress.estimated_remaining_seconds is not None:
        seconds = whole(progress.estimated_remaining_seconds)
        block |= {"estimatedRemainingSeconds": seconds, "eta": duration(seconds)}
    if progress.peak_memory_bytes is not None:
        peak = whole(progress.peak_memory_bytes)
        block |= {"peakMemoryBytes": peak, "peakMemory": byte_size(peak)}
    return block
