"""What a run is expected to take, and how it will compute: the plan of preflight, or of the training on its device."""

from dataclasses import dataclass, field

from lora_trainer.spec.api import Api, fact
from lora_trainer.spec.config import ActivationCheckpointing, Quantization


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """Another way to run it. `change` says by which fields, as in `quantization: NF4`."""

    change: str = field(metadata=fact("What to write into a new LoRAFineTune."))
    peak_bytes: int = field(metadata=fact("Expected peak memory, in bytes."))
    fits: bool | None = field(default=None, metadata=fact("Whether it fits the GPU of the plan; absent if unknown."))
    tokens_per_second: float | None = field(
        default=None,
        metadata=fact("Expected speed, in tokens per second; absent where the speed of the GPU is not known."),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """Estimates at the peak of the training, bytes; of a GPU, or without one of the pod's main memory.

    `device` and `device_bytes` are None where nothing tells which GPU it will be: then nothing is settled, and
    `quantization` is what the run asks for, `Auto` included, which the training settles by the same rule on the device
    that it finds. Without a GPU `device` is `cpu`, and `device_bytes` None. `fits` is None where the estimate is too
    wide, or the device not known; where it is False, `reason` is the sentence that the run ends with. `seconds` is at
    an assumed share of the device's peak. Where layers could not be counted, memory is that of the weights alone, and
    what depends on layers is 0.
    """

    quantization: Quantization = field(
        metadata=fact(
            "How the base weights are stored; Auto if the training decides on its device.",
            longest=32,
        )
    )
    activation_checkpointing: bool = field(metadata=fact("Whether activations are recomputed in the backward pass."))
    selective_checkpointing: bool = field(
        default=False, metadata=fact("Whether only the activations of MLPs are recomputed.")
    )
    micro_batch_tokens: int = field(metadata=fact("Maximum tokens on the device at once."))
    sharded: bool = field(default=False, metadata=fact("Whether the base model is sharded over processes."))
    sharded_over: int | None = field(
        default=None, metadata=fact("Over how many processes the base model is sharded: those of one node, or all.")
    )
    device: str | None = field(default=None, metadata=fact("The GPU of the plan; absent if unknown."))
    device_bytes: int | None = field(default=None, metadata=fact("Memory of that GPU, in bytes."))
    fits: bool | None = field(default=None, metadata=fact("Whether the run fits that GPU; absent if unknown."))
    peak_bytes: int = field(metadata=fact("Expected peak memory of the GPU or, without one, of the pod, in bytes."))
    weight_bytes: int = field(metadata=fact("Share of the base model in peakBytes."))
    adapter_bytes: int = field(metadata=fact("Share of the adapter, its gradients and optimizer state in peakBytes."))
    activation_bytes: int = field(metadata=fact("Share of activations and logits in peakBytes."))
    other_bytes: int = field(metadata=fact("The rest of peakBytes."))
    pod_memory_bytes: int = field(
        metadata=fact("Main memory that the pod needs, in bytes: the minimum for resources.memory.")
    )
    trainable_parameters: int = field(metadata=fact("Parameters that are trained."))
    adapter_file_bytes: int = field(metadata=fact("Size of the adapter, in bytes."))
    checkpoint_bytes: int = field(default=0, metadata=fact("Size of one checkpoint, in bytes."))
    claim_bytes: int = field(
        default=0,
        metadata=fact(
            "Maximum space on the checkpoint PVC, in bytes: checkpoint.keep and one more checkpoint, and the result."
        ),
    )
    tokens_per_second: float | None = field(
        default=None,
        metadata=fact("Expected tokens per second; absent if the GPU's speed is unknown."),
    )
    seconds: int | None = field(default=None, metadata=fact("Expected length of the training, in seconds."))
    price: float | None = field(
        default=None,
        metadata=fact("Expected cost, from the price per hour in the operator's setting gpus; absent if unknown."),
    )
    price_per_hour: float | None = field(
        default=None,
        metadata=fact("Cost per hour, from the price in the operator's setting gpus; absent if unknown."),
    )
    spread: float = field(default=0.0, metadata=fact("Relative uncertainty of the estimates."))
    reason: str = field(metadata=fact("Why it was planned so."))
    alternatives: tuple[Alternative, ...] = field(
        default=(), metadata=fact("Other ways to run it, by quantization.", most=256, item=Api(about="One other way."))
    )

    @property
    def checkpointing(self) -> ActivationCheckpointing:
        """How it recomputes."""
        return ActivationCheckpointing.of(
            recompute=self.activation_checkpointing, selective=self.selective_checkpointing
        )
