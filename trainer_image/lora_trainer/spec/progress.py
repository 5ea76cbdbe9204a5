"""What a running trainer answers at `/progress`: JSON of at most 4 KiB. It informs and never decides a verdict."""

import enum
import json
from dataclasses import dataclass, field

from lora_trainer.spec import codec
from lora_trainer.spec.api import fact
from lora_trainer.spec.summary import ResolvedRun

PORT = 9090
MAX_BYTES = 4096


class Phase(enum.StrEnum):
    """What the trainer is doing; each is also a reason of the vocabulary."""

    STARTING = "Starting"
    PREPARING = "Preparing"
    LOADING_MODEL = "LoadingModel"
    TRAINING = "Training"
    CHECKPOINTING = "Checkpointing"
    EVALUATING = "Evaluating"
    PUBLISHING = "Publishing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A moment of a run. `checkpoint_step` is that of the last valid save, `resumed_step` that at which this attempt
    went on from one. `epoch` counts passes over the data, `updated_at` is seconds since 1970 on the pod's clock."""

    phase: Phase = field(default=Phase.STARTING, metadata=fact("What the trainer is doing.", longest=64))
    step: int = field(default=0, metadata=fact("Optimizer steps done."))
    total_steps: int | None = field(default=None, metadata=fact("Optimizer steps planned."))
    epoch: float | None = field(default=None, metadata=fact("Passes over the data so far."))
    loss: float | None = field(
        default=None, metadata=fact("Training loss of the last reported steps, per loss token in nats.")
    )
    eval_loss: float | None = field(default=None, metadata=fact("Last validation loss, per loss token in nats."))
    learning_rate: float | None = field(default=None, metadata=fact("Current learning rate."))
    tokens_per_second: float | None = field(default=None, metadata=fact("Training speed, in tokens per second."))
    estimated_remaining_seconds: int | None = field(
        default=None, metadata=fact("Estimated seconds until the last step.")
    )
    peak_memory_bytes: int | None = field(
        default=None, metadata=fact("Peak memory so far, of the GPU or, on a CPU, of the process.")
    )
    checkpoint_step: int | None = field(default=None, metadata=fact("Optimizer step of the last checkpoint."))
    resumed_step: int | None = field(default=None, metadata=fact("Optimizer step at which the current pod resumed."))
    updated_at: float = 0.0
    resolved: ResolvedRun | None = None

    def to_json(self) -> str:
        """JSON text of at most `MAX_BYTES`; what was resolved is left out where it would not fit."""
        document = codec.encode(self)
        text = json.dumps(document)
        if len(text.encode()) > MAX_BYTES:
            document.pop("resolved", None)
            text = json.dumps(document)
        return text

    @classmethod
    def from_json(cls, text: str | bytes) -> "Progress":
        """Read the text of `to_json`. Raises `codec.CodecError`, also for text that is too long or no JSON."""
        if len(text) > MAX_BYTES:
            raise codec.CodecError(f"$ has {len(text)} bytes: must have at most {MAX_BYTES}")
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise codec.CodecError(f"$ is not JSON: {error}") from error
        if isinstance(document, dict) and "phase" not in document:
            raise codec.CodecError("$ has no phase: every trainer says its phase")
        return codec.decode(cls, document)
