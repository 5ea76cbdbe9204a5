"""`TrainConfig`: everything one training run is told, rendered by the operator, read by the trainer."""

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
    """How the frozen base weights are held in memory."""

    NONE = "None"
    NF4 = "NF4"


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
    """Which resource asked for this run; `uid` tells two resources of the same name apart, `attempt` counts from 1."""

    namespace: str
    name: str
    uid: str
    attempt: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Base model: `hf://` or `pvc://`."""

    uri: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetConfig:
    """Training data; `columns` maps a role (prompt, completion, ...) to the column that plays it."""

    uri: str
    format: DatasetFormat = DatasetFormat.AUTO
    columns: Mapping[str, str] = field(default_factory=dict)
    validation_fraction: float = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """The adapter: a target weight's update is (alpha / rank) B A. `target_modules` replaces the preset `layers`."""

    rank: int = 16
    alpha: int = 32
    layers: Layers | None = Layers.ALL_LINEAR
    target_modules: tuple[str, ...] = ()
    exclude_modules: tuple[str, ...] = ()
    dropout: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Length and manner of the training; exactly one of `epochs` and `max_steps` is set."""

    epochs: float | None = 1.0
    max_steps: int | None = None
    learning_rate: float = 0.0002
    schedule: Schedule = Schedule.COSINE
    warmup_ratio: float = 0.03
    effective_batch_size: int = 16
    micro_batch_size: int | None = None
    max_sequence_length: int = 2048
    loss_on: LossOn = LossOn.COMPLETION
    precision: Precision = Precision.AUTO
    seed: int = 42


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """What the pod was given. With `gpus` > 0 and no GPU in sight the run fails, unless `allow_cpu`."""

    gpus: int = 1
    allow_cpu: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputConfig:
    """Where the adapter goes: `pvc://`."""

    uri: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One training run, complete: no default is left to the trainer's own choosing."""

    version: str = VERSION
    run: RunIdentity
    model: ModelConfig
    dataset: DatasetConfig
    lora: LoraConfig
    quantization: Quantization = Quantization.NONE
    training: TrainingConfig
    device: DeviceConfig
    output: OutputConfig

    def to_json(self) -> str:
        """Stable text: sorted keys, two spaces, a newline at the end."""
        return json.dumps(codec.encode(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

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
