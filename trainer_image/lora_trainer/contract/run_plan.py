"""What a run is expected to take, and how it will compute: the plan of preflight, or of the training on its device."""

from dataclasses import dataclass

from lora_trainer.contract.config import ActivationCheckpointing, Quantization


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """Another way to run it. `change` says by which fields, as in `quantization: NF4`; `fits` the plan's device, None
    where the estimate is too wide, or no device is known; `tokens_per_second` where the device's speed is known."""

    change: str
    peak_bytes: int
    fits: bool | None = None
    tokens_per_second: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """Estimates at the peak of the training, bytes; of a GPU, or without one of the pod's main memory.

    `device` and `device_bytes` are None where nothing tells which GPU it will be: then nothing is settled, and
    `quantization` is what the run asks for, `Auto` included, which the training settles by the same rule on the device
    that it finds. Without a GPU `device` is `cpu`, and `device_bytes` None. With `selective_checkpointing` activations
    of MLPs alone are recomputed. `micro_batch_tokens` are the most of a micro-batch. With `sharded` the base's layers
    are divided over `sharded_over` processes, those of a node or of all. `fits` is None where the estimate is too
    wide, or the device not known; where it is False, `reason` is the sentence that the run ends with.
    `pod_memory_bytes` is what `resources.memory` should be at least,
    `checkpoint_bytes` the size of one checkpoint and `claim_bytes` what the run takes at most of their claim.
    `seconds` is the length of the training at an assumed share of the device's peak, `price` what its GPUs cost as long
    as that, and `price_per_hour` what they cost an hour, where the operator's settings or `plan --price` say what one
    does. Where layers could not be counted, memory is that of the weights alone, and what depends on layers is 0.
    `reason` says in a sentence why it was chosen so; `spread` is by how much, relatively, an estimate may be off for
    what is not known.
    """

    quantization: Quantization
    activation_checkpointing: bool
    selective_checkpointing: bool = False
    micro_batch_tokens: int
    sharded: bool = False
    sharded_over: int | None = None
    device: str | None = None
    device_bytes: int | None = None
    fits: bool | None = None
    peak_bytes: int
    weight_bytes: int
    adapter_bytes: int
    activation_bytes: int
    other_bytes: int
    pod_memory_bytes: int
    trainable_parameters: int
    adapter_file_bytes: int
    checkpoint_bytes: int = 0
    claim_bytes: int = 0
    tokens_per_second: float | None = None
    seconds: int | None = None
    price: float | None = None
    price_per_hour: float | None = None
    spread: float = 0.0
    reason: str
    alternatives: tuple[Alternative, ...] = ()

    @property
    def manner(self) -> ActivationCheckpointing:
        """How it recomputes."""
        return ActivationCheckpointing.of(
            recompute=self.activation_checkpointing, selective=self.selective_checkpointing
        )
