"""`TrainConfig`: everything that defines one training run, rendered by the operator, read by the trainer."""

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from lora_trainer.contract import codec

VERSION = "lora-operator.io/train-config/v1"


class DatasetFormat(enum.StrEnum):
    """Shape of a row; `AUTO` looks at the columns."""

    AUTO = "Auto"
    MESSAGES = "Messages"
    PROMPT_COMPLETION = "PromptCompletion"
    INSTRUCTION = "Instruction"
    TEXT = "Text"


class Layers(enum.StrEnum):
    """Preset over the linear modules of the model; `lm_head` is never among them."""

    ALL_LINEAR = "AllLinear"
    ATTENTION = "Attention"
    MLP = "MLP"
    QUERY_VALUE = "QueryValue"


class Quantization(enum.StrEnum):
    """How the frozen base weights are held in memory; `AUTO` is NF4 where nothing else fits the GPU, else none."""

    AUTO = "Auto"
    NONE = "None"
    NF4 = "NF4"
    FP4 = "FP4"
    INT8 = "INT8"


class Scaling(enum.StrEnum):
    """Factor on an adapter's product: alpha / rank, or alpha / sqrt(rank) (rsLoRA, arXiv 2312.03732)."""

    CLASSIC = "Classic"
    RANK_STABILIZED = "RankStabilized"


class Variant(enum.StrEnum):
    """Plain LoRA, or DoRA, which also learns the length of each weight column (arXiv 2402.09353)."""

    LORA = "LoRA"
    DORA = "DoRA"


class Init(enum.StrEnum):
    """Start of the adapter: random A with B zero, or the base's main directions (PiSSA, OLoRA), taken out of it."""

    DEFAULT = "Default"
    GAUSSIAN = "Gaussian"
    PISSA = "PiSSA"
    OLORA = "OLoRA"

    @property
    def changes_base(self) -> bool:
        """Whether the base weights are changed for the training, so that the adapter is converted on export."""
        return self in {Init.PISSA, Init.OLORA}


class Packing(enum.StrEnum):
    """Whether rows are laid one after the other without padding, isolated from each other, or padded."""

    ENABLED = "Enabled"
    DISABLED = "Disabled"


class Optimizer(enum.StrEnum):
    """AdamW of PyTorch (fused), or of bitsandbytes with 8-bit state, paged to main memory where asked for."""

    ADAMW = "AdamW"
    ADAMW_8BIT = "AdamW8bit"
    PAGED_ADAMW_8BIT = "PagedAdamW8bit"


class ActivationCheckpointing(enum.StrEnum):
    """Whether each layer's activations are recomputed in the backward pass, or those of its MLP alone; `AUTO` does so
    where the GPU's memory demands it, by the plan."""

    AUTO = "Auto"
    NONE = "None"
    SELECTIVE = "Selective"
    FULL = "Full"

    @property
    def recomputes(self) -> bool:
        """Whether anything is."""
        return self in {ActivationCheckpointing.SELECTIVE, ActivationCheckpointing.FULL}

    @classmethod
    def of(cls, *, recompute: bool, selective: bool) -> "ActivationCheckpointing":
        """The manner in which a run recomputes, with `selective` MLPs alone."""
        if not recompute:
            return cls.NONE
        return cls.SELECTIVE if selective else cls.FULL


class Kernels(enum.StrEnum):
    """Whether a run computes with what is fast for its model's family, or with plain PyTorch alone."""

    AUTO = "Auto"
    REFERENCE = "Reference"


class Merge(enum.StrEnum):
    """What is published: the adapter, the base model with the adapter merged into it, or both."""

    ADAPTER = "Adapter"
    MERGED = "Merged"
    BOTH = "Both"


class MergePrecision(enum.StrEnum):
    """The type of a merged model's weights: each the base's own, or fp32, in which nothing is rounded away."""

    AUTO = "Auto"
    FP32 = "FP32"


class Tracker(enum.StrEnum):
    """Where the run's curves also go."""

    NONE = "None"
    TENSORBOARD = "TensorBoard"
    MLFLOW = "MLflow"
    WANDB = "WandB"


class Schedule(enum.StrEnum):
    """Learning-rate schedule after the warm-up."""

    COSINE = "Cosine"
    LINEAR = "Linear"
    CONSTANT = "Constant"


class LossOn(enum.StrEnum):
    """Which tokens are learned: the answers alone, or everything."""

    COMPLETION = "Completion"
    ALL = "All"


class Precision(enum.StrEnum):
    """Compute type; `AUTO` is bf16 where the GPU has it natively, fp16 on older GPUs, fp32 on a CPU."""

    AUTO = "Auto"
    BF16 = "BF16"
    FP16 = "FP16"
    FP32 = "FP32"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunIdentity:
    """Which resource asked for this run; `uid` separates resources of the same name, `attempt` counts from 1."""

    namespace: str
    name: str
    uid: str
    attempt: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Base model: `hf://`, `s3://` or `pvc://`."""

    uri: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetConfig:
    """Training data; `columns` maps a role (prompt, completion, ...) to the column that plays it.

    `split` names the training split of a Hub data set. Held-out rows come from `validation_uri` where it is set, and
    else are `validation_fraction` of the rows; of either at most `max_validation_rows`, None for any number, chosen by
    `split_seed`.
    `chat_template` replaces the model's own: the name of a built-in one or `configmap://name/key`; `template_arguments`
    are its variables, see `template_fields.argument_value`.
    """

    uri: str
    format: DatasetFormat = DatasetFormat.AUTO
    columns: Mapping[str, str] = field(default_factory=dict)
    split: str = "train"
    validation_uri: str | None = None
    validation_fraction: float = 0.02
    max_validation_rows: int | None = None
    split_seed: int = 42
    chat_template: str | None = None
    template_arguments: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """The adapter: a target weight's update is s B A, s being alpha / rank (or alpha / sqrt(rank), see `Scaling`).

    `target_modules` replaces the preset `layers`; `layer_indices` restricts either to some decoder layers, counted from
    0. `rank_pattern` and `alpha_pattern` map a module's name, or the end of its path, to another rank or alpha.
    `modules_to_save` are trained whole. `target_parameters` are parameters outside of linear modules (the experts of a
    mixture), by the end of their path.
    """

    rank: int = 16
    alpha: int = 32
    layers: Layers | None = Layers.ALL_LINEAR
    target_modules: tuple[str, ...] = ()
    exclude_modules: tuple[str, ...] = ()
    layer_indices: tuple[int, ...] = ()
    dropout: float = 0.0
    scaling: Scaling = Scaling.CLASSIC
    variant: Variant = Variant.LORA
    init: Init = Init.DEFAULT
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, int] = field(default_factory=dict)
    modules_to_save: tuple[str, ...] = ()
    target_parameters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Length and manner of the training; exactly one of `epochs` and `max_steps` is set.

    `effective_batch_size` counts examples, packed or not. `eval_steps` is the distance of evaluations in optimizer
    steps, None for one before and one after; `early_stopping_patience` is how many of them may pass without a lower
    held-out loss.
    """

    epochs: float | None = 1.0
    max_steps: int | None = None
    learning_rate: float = 0.0002
    schedule: Schedule = Schedule.COSINE
    warmup_ratio: float = 0.03
    effective_batch_size: int = 16
    micro_batch_size: int | None = None
    max_sequence_length: int = 2048
    packing: Packing = Packing.ENABLED
    loss_on: LossOn = LossOn.COMPLETION
    optimizer: Optimizer = Optimizer.ADAMW
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: Precision = Precision.AUTO
    activation_checkpointing: ActivationCheckpointing = ActivationCheckpointing.AUTO
    kernels: Kernels = Kernels.AUTO
    seed: int = 42
    eval_steps: int | None = None
    early_stopping_patience: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """What each of the run's `nodes` pods was given. With `gpus` > 0 and no GPU in sight the run fails, unless
    `allow_cpu`.

    `gpu` names the GPU as far as the manifest and the operator's settings tell it, and `gpu_memory_bytes` is the least
    memory that it has; None where nothing tells it, as of a name that is not known. `gpu_sold_bytes` is the size that
    it is sold with, and so the most that it has, None where the first is its very memory. `gpu_price` is what one of
    them costs an hour, in whatever money the operator's settings are written in. `pod_memory_bytes` is the main memory
    that the manifest gives each pod, None where it leaves that to the cluster. `gpu_selected` is whether
    `scheduling.nodeSelector` asks for the GPU's nodes.
    """

    gpus: int = 1
    nodes: int = 1
    allow_cpu: bool = False
    gpu: str | None = None
    gpu_memory_bytes: int | None = None
    gpu_sold_bytes: int | None = None
    gpu_price: float | None = None
    pod_memory_bytes: int | None = None
    gpu_selected: bool = False

    @property
    def processes(self) -> int:
        """Training processes over all nodes: one for each GPU, one a node without."""
        return max(1, self.gpus) * max(1, self.nodes)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    """When the state of the training is saved (whichever comes first), how many saves are kept, and on which claim.

    `claim` None is the output's claim where it goes to one, else nowhere.
    """

    interval_s: int = 600
    interval_steps: int | None = None
    keep: int = 2
    claim: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputConfig:
    """Where the result goes: `pvc://`, `s3://`, `hf://` or `oci://`."""

    uri: str
    merge: Merge = Merge.ADAPTER
    merge_precision: MergePrecision = MergePrecision.AUTO


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingConfig:
    """A tracker of experiments. Losing it never fails a run."""

    kind: Tracker = Tracker.NONE
    project: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """How a run was settled before its training began, for a device of `device_bytes`, None for a CPU.

    It counts for what the run leaves to `Auto`. With `selective_checkpointing` MLPs alone are recomputed. `peak_bytes`
    is the estimate, of the GPU or of the process on a CPU; `room_bytes` what of it must be free at the start.
    """

    device: str
    device_bytes: int | None
    activation_checkpointing: bool
    micro_batch_tokens: int
    peak_bytes: int
    room_bytes: int
    selective_checkpointing: bool = False

    @property
    def manner(self) -> ActivationCheckpointing:
        """How it recomputes."""
        return ActivationCheckpointing.of(
            recompute=self.activation_checkpointing, selective=self.selective_checkpointing
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One training run, complete: no default is left to the trainer's own choosing.

    `resume_from` names a run of the namespace whose last valid checkpoint, on this run's checkpoint claim, is gone on
    from. A training without a step for `stall_timeout_s` is stopped and started again. `planned` is what preflight
    settled, None where there was none, or where nothing tells the device.
    """

    version: str = VERSION
    run: RunIdentity
    model: ModelConfig
    dataset: DatasetConfig
    lora: LoraConfig
    quantization: Quantization = Quantization.NONE
    training: TrainingConfig
    device: DeviceConfig
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    output: OutputConfig
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    resume_from: str | None = None
    stall_timeout_s: int = 1800
    planned: Planned | None = None

    def to_json(self, *, indent: int | None = 2) -> str:
        """Stable text: sorted keys, two spaces, a newline at the end; on one line without `indent`."""
        separators = (",", ":") if indent is None else None
        return (
            json.dumps(codec.encode(self), indent=indent, separators=separators, sort_keys=True, ensure_ascii=False)
            + "\n"
        )

    @classmethod
    def from_json(cls, text: str) -> "TrainConfig":
        """Read the text of `to_json`. Raises `codec.CodecError` for another version, an unknown key or a wrong type."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise codec.CodecError(f"the run's configuration is not JSON: {error}") from error
        version = document.get("version") if isinstance(document, dict) else None
        if version != VERSION:
            raise codec.CodecError(
                f"$.version is {version!r}: this trainer reads {VERSION}; "
                "use the trainer image of the operator's release"
            )
        return codec.decode(cls, document)
