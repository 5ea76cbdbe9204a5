"""What a run is expected to take, and how it will compute: the plan of preflight, or of the training on its device."""

from dataclasses import dataclass, field

from lora_trainer.spec.api import Api, fact
from lora_trainer.spec.config import ActivationCheckpointing, Quantization


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """Another way to run it. `change` says by which fields, as in `quantization: NF4`."""

    change: str = field(metadata=fact("What to write into the spec of a new LoRAFineTune."))
    peak_bytes: int = field(metadata=fact("Highest memory that the training would be expected to use, in bytes."))
    fits: bool | None = field(
        default=None, metadata=fact("Whether it would fit the GPU of the plan; absent where that cannot be determined.")
    )
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
            "How the base weights will be stored; Auto where that is left to the device that the training finds.",
            longest=32,
        )
    )
    activation_checkpointing: bool = field(metadata=fact("Whether activations are recomputed in the backward pass."))
    selective_checkpointing: bool = field(
        default=False, metadata=fact("Whether only those of MLPs are recomputed, and those of attention kept.")
    )
    micro_batch_tokens: int = field(metadata=fact("Most tokens on the device at once."))
    sharded: bool = field(default=False, metadata=fact("Whether each process holds only a part of the base model."))
    sharded_over: int | None = field(
        default=None, metadata=fact("Over how many processes the base model is divided, those of one node or of all.")
    )
    device: str | None = field(
        default=None, metadata=fact("The GPU that the plan is for; absent where it is not known which one it will be.")
    )
    device_bytes: int | None = field(default=None, metadata=fact("Memory of that GPU, in bytes."))
    fits: bool | None = field(
        default=None, metadata=fact("Whether the run fits that GPU; absent where that cannot be determined.")
    )
    peak_bytes: int = field(
        metadata=fact(
            "Highest memory that the training is expected to use, of the GPU or, without one, of the pod, in bytes."
        )
    )
    weight_bytes: int = field(metadata=fact("What the base model takes of it, in bytes."))
    adapter_bytes: int = field(
        metadata=fact("What the adapter takes of it, with gradients and optimizer states, in bytes.")
    )
    activation_bytes: int = field(metadata=fact("What activations and logits take of it, in bytes."))
    other_bytes: int = field(metadata=fact("What the rest takes of it, in bytes."))
    pod_memory_bytes: int = field(
        metadata=fact("Main memory that the pod needs, in bytes: what resources.memory should be at least.")
    )
    trainable_parameters: int = field(metadata=fact("Number of parameters that are trained."))
    adapter_file_bytes: int = field(metadata=fact("Size of the adapter, in bytes."))
    checkpoint_bytes: int = field(default=0, metadata=fact("Size of one checkpoint, in bytes."))
    claim_bytes: int = field(
        default=0,
        metadata=fact(
            "What the run takes at most of the claim for its checkpoints, in bytes: one checkpoint more than "
            "checkpoint.keep says, and the result, which waits there to be published."
        ),
    )
    tokens_per_second: float | None = field(
        default=None,
        metadata=fact(
            "Expected speed of the training, in tokens per second; absent where the speed of the GPU is not known."
        ),
    )
    seconds: int | None = field(default=None, metadata=fact("Expected length of the training, in seconds."))
    price: float | None = field(
        default=None,
        metadata=fact(
            "What the run's GPUs cost for so long, by the price an hour in the operator's setting gpus; absent "
            "where that or the length is not known."
        ),
    )
    price_per_hour: float | None = field(
        default=None,
        metadata=fact(
            "What the run's GPUs cost an hour, by the price in the operator's setting gpus; absent where that is "
            "not known."
        ),
    )
    spread: float = field(default=0.0, metadata=fact("By which share the estimates may be off."))
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
