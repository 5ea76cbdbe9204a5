"""`TrainConfig`: everything that defines one training run, rendered by the operator, read by the trainer."""

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_trainer.spec import codec, template_fields
from lora_trainer.spec.addresses import DATASET_RULES, MODEL_RULES, OUTPUT_RULES
from lora_trainer.spec.api import Api, Decimal, Rule, api, keys_matching, matching
from lora_trainer.spec.column_roles import MOST_COLUMNS, ROLES_DIFFER, ROLES_EXIST, ROLES_GO_TOGETHER
from lora_trainer.spec.uri import CLAIM_NAME

VERSION = "lora-operator.io/train-config/v1"
LARGEST_RANK = 1024
LARGEST_ALPHA = 4096
LARGEST_LAYER_INDEX = 1023
_MODULE = "[A-Za-z0-9_]+([.][A-Za-z0-9_]+)*"
_MODULE_KEYS = keys_matching(
    _MODULE,
    128,
    'there is a key that is not the name of a module: write letters, digits and "_", with "." between the parts of a '
    "path, as in q_proj (patterns are not supported)",
)


def _names(example: str, path: str = "", noun: str = "module") -> Any:
    says = (
        f'is not the name of a {noun}: write letters, digits and "_", with "." between the parts of a path, as in '
        f"{example + ' or ' + path if path else example} (patterns are not supported)"
    )
    about = f"A {noun}'s name, or the end of its path."
    named = matching(_MODULE, says)
    return {"fewest": 1, "most": 64, "item": Api(about=about, longest=128, rules=(named,))}


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
    """The base model."""

    uri: str = field(
        metadata=api(
            "Address of the base model: hf://org/name[@revision] on the Hugging Face Hub (a branch, tag or commit; "
            "absent: main), s3://bucket/prefix, or pvc://claim/path on a PVC of the namespace. S3 and PVC hold a "
            "folder in the format of save_pretrained. Weights must be safetensors; the model's own code is never "
            "run. status.resolved.modelRevision shows the commit.",
            longest=512,
            rules=MODEL_RULES,
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetConfig:
    """Training data.

    Held-out rows come from `validation_uri` where it is set, and else are `validation_fraction` of the rows; of either
    at most `max_validation_rows`, None for any number, chosen by `split_seed`. `template_arguments` are read by
    `template_fields.argument_value`.
    """

    uri: str = field(
        metadata=api(
            "Address of the data: hf://org/name[@revision] (the files of split), s3://bucket/path (an object, or all "
            "directly below a prefix), pvc://claim/path (a file or a folder) or configmap://name/key (at most 1 "
            "MiB). Files end in .jsonl, .ndjson, .json, .csv or .parquet; text may be compressed, as in .jsonl.gz or "
            ".csv.zst.",
            longest=512,
            rules=DATASET_RULES,
        )
    )
    format: DatasetFormat = field(
        default=DatasetFormat.AUTO,
        metadata=api(
            "Format of a row. Messages has a column messages with role and content, and optionally tools. "
            "PromptCompletion has prompt and completion. Instruction has instruction, output and optionally input. "
            "Text has text, all of which is learned. Auto picks the first format whose columns exist in the first "
            "row, after mapping; it also knows conversations, and question with answer. If none fits, the error "
            "lists the columns."
        ),
    )
    columns: Mapping[str, str] = field(
        default_factory=dict,
        metadata=api(
            "Your columns by the role that they play, if their names differ: messages, tools, system, prompt, "
            "completion, instruction, input, output or text. Name roles of one format, and each column once. "
            "Example: prompt: ticket, completion: reply.",
            fewest=1,
            most=MOST_COLUMNS,
            item=Api(about="The column that plays this role.", shortest=1, longest=128),
            rules=(ROLES_EXIST,),
            between=(ROLES_GO_TOGETHER, ROLES_DIFFER),
        ),
    )
    split: str = field(
        default="train",
        metadata=api(
            "Split of a Hub dataset to train on, for example train_sft. Only for hf://.",
            longest=64,
            rules=(
                matching(
                    "[A-Za-z0-9_][-A-Za-z0-9_.]*",
                    'is not the name of a split: write letters, digits, "_", "-" and ".", as in train or train_sft',
                ),
            ),
            between=(
                Rule(
                    cel="self.split == 'train' || !self.uri.matches('^(pvc|configmap|s3)://')",
                    forbidden=True,
                    message="cannot be chosen here, since only data sets on the Hub have splits: remove split, and "
                    "name the file itself in uri",
                    quoted=True,
                    broken=lambda dataset, _: (
                        dataset.split != "train" and dataset.uri.startswith(("pvc://", "configmap://", "s3://"))
                    ),
                ),
            ),
        ),
    )
    validation_uri: str | None = field(
        default=None,
        metadata=api(
            "Address of the validation set, in the same forms and with the same columns as uri. Not with "
            "validationFraction. Of a Hub dataset the split validation or test is used; if there is neither, and uri "
            "names another dataset, the one in split.",
            longest=512,
            rules=DATASET_RULES,
        ),
    )
    validation_fraction: float = field(
        default=0.02,
        metadata=api(
            'Share of the rows held out as the validation set: a quoted number from "0" to below "1". Absent: '
            '"0.02". The seed chooses the rows; equal rows stay together. With "0" the loss is measured on training '
            "rows. Not with validationUri.",
            low=0,
            high=1,
            filled=False,
            decimal=Decimal(noun="a share", examples=("0.02",), below_high=True),
            between=(
                Rule(
                    cel="!(has(self.validationFraction) && has(self.validationUri))",
                    forbidden=True,
                    message="is set together with validationUri, and either would choose the held-out rows: keep one "
                    "and remove the other",
                    quoted=True,
                    broken=lambda _, has: has("validationFraction") and has("validationUri"),
                ),
            ),
        ),
    )
    max_validation_rows: int | None = field(
        default=None,
        metadata=api(
            "Maximum rows of the validation set, each of which is evaluated at least three times. With "
            "validationFraction the rest is trained on; with validationUri it is not used. held_out_rows.json beside "
            "the result lists the chosen rows. Absent: 2000 with validationFraction, all with validationUri.",
            low=1,
            high=10_000_000,
        ),
    )
    split_seed: int = field(
        default=42,
        metadata=api(
            "Seed that chooses the validation set. Runs with the same data and splitSeed are measured on the same "
            "rows. Absent: training.seed.",
            low=0,
            high=2**31 - 1,
            filled=False,
        ),
    )
    chat_template: str | None = field(
        default=None,
        metadata=api(
            "Chat template to use instead of the model's own: ChatML, Llama3, Mistral, Gemma, Qwen, Alpaca, or your "
            "own in Jinja at configmap://name/key. It is saved beside the adapter as chat_template.jinja, for "
            "serving.",
            longest=512,
            rules=(template_fields.IS_TEMPLATE,),
        ),
    )
    template_arguments: Mapping[str, str] | None = field(
        default=None,
        metadata=api(
            'Variables of the chat template, as quoted text. "true", "false", "null" and numbers are converted. '
            'Example: enable_thinking: "false".',
            fewest=1,
            most=template_fields.MOST,
            item=Api(about="The variable's value.", longest=template_fields.LONGEST),
            rules=(template_fields.ARE_VARIABLES,),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """The adapter: a target weight's update is s B A, s being alpha / rank (or alpha / sqrt(rank), see `Scaling`).

    `layers` is None with `target_modules`.
    """

    rank: int = field(
        default=16,
        metadata=api(
            "Rank of the adapter; its trainable parameters grow in proportion. Rule of thumb: 16 for most runs; 64 "
            "and more for code, recall of facts, or more than 50,000 rows. vLLM serves ranks above 16 with "
            "--max-lora-rank.",
            low=1,
            high=LARGEST_RANK,
        ),
    )
    alpha: int = field(
        default=32,
        metadata=api(
            "The adapter's output is multiplied by alpha / rank (see scaling), which acts like a factor on the "
            "learning rate. Absent: 2 x rank. Use alpha = rank if the loss is noisy or diverges. From rank 128 on, "
            "with 2 x rank, lower learningRate too.",
            low=1,
            high=LARGEST_ALPHA,
            filled=False,
        ),
    )
    layers: Layers | None = field(
        default=Layers.ALL_LINEAR,
        metadata=api(
            "Linear layers that get an adapter: AllLinear (absent: this one) for attention and MLP but never "
            "lm_head, Attention, MLP, or QueryValue as in the first LoRA paper. AllLinear learns most, even with the "
            "same number of parameters (LoRA Without Regret). Not with targetModules.",
            filled=False,
            between=(
                Rule(
                    cel="!(has(self.layers) && has(self.targetModules))",
                    forbidden=True,
                    message="is set together with targetModules: keep the preset in layers or the list in "
                    "targetModules, and remove the other",
                    quoted=True,
                    broken=lambda lora, has: has("layers") and lora.target_modules,
                ),
            ),
        ),
    )
    target_modules: tuple[str, ...] = field(
        default=(),
        metadata=api(
            "Names of the linear modules that get an adapter, for example q_proj, instead of layers. A name matches "
            "every module whose path ends in it. A name that the model lacks fails the run, with a list of the names "
            "it has.",
            **_names("q_proj", "self_attn.q_proj"),
        ),
    )
    exclude_modules: tuple[str, ...] = field(
        default=(),
        metadata=api(
            "Names of modules that get no adapter although layers or targetModules select them, matched in the same "
            "way.",
            **_names("down_proj", "mlp.down_proj"),
            between=(
                Rule(
                    cel="!has(self.targetModules) || !has(self.excludeModules) || "
                    "!self.targetModules.exists(m, m in self.excludeModules)",
                    message="a module is in both targetModules and excludeModules: remove it from one of them",
                    broken=lambda lora, _: not set(lora.target_modules).isdisjoint(lora.exclude_modules),
                ),
            ),
        ),
    )
    dropout: float = field(
        default=0.0,
        metadata=api(
            'Probability that an input of the adapter is dropped during training: a quoted number from "0" to below '
            '"1". Any value above 0 increases activation memory, unless activations are recomputed: for Llama-3-8B '
            'by 39 %. Not with targetParameters. Try "0.05" if the validation loss rises while the training loss '
            "falls.",
            low=0,
            high=1,
            decimal=Decimal(noun="a dropout", examples=("0.05",), below_high=True),
            between=(
                Rule(
                    cel="!has(self.targetParameters) || self.dropout.matches('^0+([.]0+)?([eE].*)?$')",
                    forbidden=True,
                    message="does not go with targetParameters, whose inputs cannot be dropped: write dropout: "
                    '"0", or remove targetParameters',
                    quoted=True,
                    broken=lambda lora, _: lora.target_parameters and lora.dropout > 0,
                ),
            ),
        ),
    )
    layer_indices: tuple[int, ...] = field(
        default=(),
        metadata=api(
            "Numbers of the decoder layers that get an adapter, counted from 0, for example [0, 1, 2]. Restricts "
            "layers or targetModules. Absent: all. A number that the model lacks fails the run before weights are "
            "loaded.",
            fewest=1,
            most=256,
            item=Api(about="Number of a layer.", low=0, high=LARGEST_LAYER_INDEX),
        ),
    )
    scaling: Scaling = field(
        default=Scaling.CLASSIC,
        metadata=api(
            "Factor on the adapter's output: Classic is alpha / rank; RankStabilized (rsLoRA) is alpha / sqrt(rank), "
            "which keeps learning stable from rank 64 on."
        ),
    )
    variant: Variant = field(
        default=Variant.LORA,
        metadata=api(
            "LoRA, or DoRA, which also learns the magnitude of each weight column. DoRA is often a little better at "
            "low ranks, and slower. vLLM serves it only merged (output.merge). Not with targetParameters.",
            between=(
                Rule(
                    cel="!has(self.targetParameters) || self.variant != 'DoRA'",
                    forbidden=True,
                    message="DoRA needs the weight of a linear module, which targetParameters are not: write variant: "
                    "LoRA, or remove targetParameters",
                    broken=lambda lora, _: lora.target_parameters and lora.variant is Variant.DORA,
                ),
            ),
        ),
    )
    init: Init = field(
        default=Init.DEFAULT,
        metadata=api(
            "Initial weights of the adapter. Default and Gaussian start from no change. PiSSA and OLoRA start from "
            "the principal directions of the base weights and often learn faster; the result is converted to a plain "
            "adapter of up to twice the rank (status.artifact.rank). Not with quantization, DoRA or "
            "targetParameters.",
            between=(
                Rule(
                    cel="!has(self.variant) || !has(self.init) || self.variant != 'DoRA' || !(self.init in ['PiSSA', "
                    "'OLoRA'])",
                    forbidden=True,
                    message="does not go with variant DoRA, as the result could not be converted to a plain adapter: "
                    "write init: Default or variant: LoRA",
                    quoted=True,
                    broken=lambda lora, _: lora.init.changes_base and lora.variant is Variant.DORA,
                ),
                Rule(
                    cel="!has(self.targetParameters) || self.variant == 'DoRA' || !(self.init in ['PiSSA', 'OLoRA'])",
                    forbidden=True,
                    message="does not go with targetParameters, as its start values are computed for linear modules "
                    "only: write init: Default, or remove targetParameters",
                    quoted=True,
                    broken=lambda lora, _: (
                        lora.target_parameters and lora.init.changes_base and lora.variant is not Variant.DORA
                    ),
                ),
            ),
        ),
    )
    rank_pattern: Mapping[str, int] = field(
        default_factory=dict,
        metadata=api(
            "Ranks of single modules that differ from rank, by a module's name or the end of its path. Example: "
            "q_proj: 32.",
            fewest=1,
            most=64,
            rules=(_MODULE_KEYS,),
            item=Api(about="The rank of the modules with this name.", low=1, high=LARGEST_RANK),
        ),
    )
    alpha_pattern: Mapping[str, int] = field(
        default_factory=dict,
        metadata=api(
            "Alphas of single modules that differ from alpha, by a module's name or the end of its path. Example: "
            "q_proj: 64.",
            fewest=1,
            most=64,
            rules=(_MODULE_KEYS,),
            item=Api(about="The alpha of the modules with this name.", low=1, high=LARGEST_ALPHA),
        ),
    )
    modules_to_save: tuple[str, ...] = field(
        default=(),
        metadata=api(
            "Names of modules that are trained in full and saved with the adapter, for example embed_tokens and "
            "lm_head after adding tokens. They need memory for full weights and their optimizer state. vLLM serves "
            "such an adapter only merged.",
            **_names("lm_head"),
        ),
    )
    target_parameters: tuple[str, ...] = field(
        default=(),
        metadata=api(
            "Names of parameters outside of linear modules that get an adapter, in addition to layers or "
            "targetModules. Example for the experts of an MoE: mlp.experts.gate_up_proj, mlp.experts.down_proj.",
            **_names("mlp.experts.gate_up_proj", noun="parameter"),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Length and manner of the training; exactly one of `epochs` and `max_steps` is set."""

    epochs: float | None = field(
        default=1.0,
        metadata=api(
            'Passes over the data: a whole number, or a quoted one as in "0.5", above 0 up to 100. Absent, and '
            "without maxSteps: 1. Not with maxSteps. More passes help recall of facts, and may overfit on "
            "instructions; then set evalSteps and earlyStoppingPatience, which keep the best step.",
            low=0,
            high=100,
            filled=False,
            decimal=Decimal(noun="a number of epochs", examples=("1", "0.5"), above_low=True, or_whole=True),
            between=(
                Rule(
                    cel="!(has(self.epochs) && has(self.maxSteps))",
                    forbidden=True,
                    message="is set together with maxSteps, and either would decide when to stop: keep one and remove "
                    "the other",
                    quoted=True,
                    broken=lambda _, has: has("epochs") and has("maxSteps"),
                ),
            ),
        ),
    )
    max_steps: int | None = field(
        default=None,
        metadata=api(
            "Optimizer steps after which training stops, instead of epochs. The data is repeated as often as needed.",
            low=1,
            high=10_000_000,
        ),
    )
    learning_rate: float = field(
        default=0.0002,
        metadata=api(
            'Peak learning rate: a quoted number above "0" up to "1", as in "0.0002" or "2e-4". LoRA takes about ten '
            "times that of full fine-tuning; a run of few steps may need more.",
            low=0,
            high=1,
            decimal=Decimal(noun="a learning rate", examples=("0.0002", "2e-4"), above_low=True),
        ),
    )
    schedule: Schedule = field(
        default=Schedule.COSINE,
        metadata=api("Learning rate after warm-up: Cosine and Linear fall towards zero, Constant stays."),
    )
    warmup_ratio: float = field(
        default=0.03,
        metadata=api(
            'Share of the steps in which the learning rate rises from zero to its peak: a quoted number from "0" '
            'to "1".',
            low=0,
            high=1,
            decimal=Decimal(noun="a share of the steps", examples=("0.03",)),
        ),
    )
    effective_batch_size: int = field(
        default=16,
        metadata=api(
            "Examples per optimizer step, over all micro-batches, GPUs and nodes, packed or not; at least one per "
            "training process. More than 32 tends to hurt LoRA.",
            low=1,
            high=65536,
        ),
    )
    micro_batch_size: int | None = field(
        default=None,
        metadata=api(
            "Examples of the maximum length on a device at once; a divisor of effectiveBatchSize. It changes memory "
            "and speed, not the result. Absent: chosen by the trainer (status.resolved.microBatchSize).",
            low=1,
            high=65536,
            between=(
                Rule(
                    cel="!has(self.microBatchSize) || self.microBatchSize < 1 || self.effectiveBatchSize % "
                    "self.microBatchSize == 0",
                    message="must divide effectiveBatchSize without remainder: for an effectiveBatchSize of 16 use "
                    "1, 2, 4, 8 or 16",
                    broken=lambda training, _: (
                        training.micro_batch_size and training.effective_batch_size % training.micro_batch_size
                    ),
                ),
            ),
        ),
    )
    max_sequence_length: int = field(
        default=2048,
        metadata=api(
            "Maximum length of an example in tokens. Longer examples are truncated, and counted in "
            "status.dataset.truncatedSamples.",
            low=8,
            high=1_048_576,
        ),
    )
    loss_on: LossOn = field(
        default=LossOn.COMPLETION,
        metadata=api(
            "Loss tokens: Completion for the answers only (assistant turns, completion, output), All for the prompts "
            "too. In the format Text everything is learned."
        ),
    )
    precision: Precision = field(
        default=Precision.AUTO,
        metadata=api(
            "Compute type. Auto takes BF16 on GPUs with native support, FP16 on older GPUs and FP32 on CPUs; "
            "status.resolved.computeDtype shows the choice."
        ),
    )
    seed: int = field(
        default=42,
        metadata=api(
            "Seed of everything random: the validation set (see dataset.splitSeed), the order of the examples, the "
            "adapter's initial weights and dropout.",
            low=0,
            high=2**31 - 1,
        ),
    )
    packing: Packing = field(
        default=Packing.ENABLED,
        metadata=api(
            "Enabled packs examples into micro-batches without padding, isolated from each other, which saves time "
            "and does not change the result. Disabled pads to the longest example."
        ),
    )
    optimizer: Optimizer = field(
        default=Optimizer.ADAMW,
        metadata=api(
            "AdamW, or AdamW of bitsandbytes with 8-bit state, optionally paged to main memory. 8-bit state pays off "
            "only with modulesToSave or very high ranks."
        ),
    )
    weight_decay: float = field(
        default=0.0,
        metadata=api(
            'Decoupled weight decay: a quoted number from "0" to "1".',
            low=0,
            high=1,
            decimal=Decimal(noun="a weight decay", examples=("0.01",)),
        ),
    )
    max_grad_norm: float = field(
        default=1.0,
        metadata=api(
            "Maximum gradient norm over all trained weights; larger gradients are scaled down: a quoted number above "
            '"0" up to "1000".',
            low=0,
            high=1000,
            decimal=Decimal(noun="a norm of gradients", examples=("1",), above_low=True),
        ),
    )
    activation_checkpointing: ActivationCheckpointing = field(
        default=ActivationCheckpointing.AUTO,
        metadata=api(
            "Full recomputes each layer's activations in the backward pass, which saves most of their memory and "
            "takes up to half more time. Selective recomputes those of MLPs only. Auto recomputes as much as the "
            "GPU's memory requires, and nothing on a CPU; status.resolved shows it."
        ),
    )
    kernels: Kernels = field(
        default=Kernels.AUTO,
        metadata=api(
            "Auto uses the fast kernels of the model's family: fused adapters, Liger kernels and attention over "
            "packs. On a GPU they are compared with plain PyTorch before the first step, and a kernel that deviates "
            "too far is left out; status.resolved.kernels lists those in use. Reference uses plain PyTorch only."
        ),
    )
    eval_steps: int | None = field(
        default=None,
        metadata=api(
            "Optimizer steps between evaluations on the validation set. Absent: one evaluation before and one after "
            "training.",
            low=1,
            high=10_000_000,
        ),
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata=api(
            "Evaluations in a row without a lower validation loss after which training stops. The weights with the "
            "lowest loss are published. Needs evalSteps and a validation set. Absent: training continues to its last "
            "step, whose weights are published.",
            low=1,
            high=1000,
            between=(
                Rule(
                    cel="!has(self.earlyStoppingPatience) || has(self.evalSteps)",
                    forbidden=True,
                    message="it counts evaluations, of which there are none on the way without evalSteps: set "
                    "evalSteps too",
                    broken=lambda training, has: has("earlyStoppingPatience") and not has("evalSteps"),
                ),
            ),
        ),
    )


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
    """When the state of the training is saved, how many saves are kept, and on which claim.

    `claim` None is the output's claim where it goes to one, else nowhere.
    """

    interval_s: int = field(
        default=600,
        metadata=api(
            "Seconds between checkpoints. A sudden end loses the steps since the last one.",
            name="intervalSeconds",
            low=1,
            high=604_800,
        ),
    )
    interval_steps: int | None = field(
        default=None,
        metadata=api(
            "Optimizer steps between checkpoints, in addition to intervalSeconds; whichever comes first. Absent: "
            "time alone decides.",
            low=1,
            high=10_000_000,
        ),
    )
    keep: int = field(
        default=2,
        metadata=api(
            "Checkpoints kept during the run; the oldest is deleted after a newer one is verified. The newest stays "
            "after the end, for resumeFrom.",
            low=1,
            high=100,
        ),
    )
    claim: str | None = field(
        default=None,
        metadata=api(
            "PVC of the namespace for checkpoints. Absent: the output's PVC, otherwise the operator's default (the "
            "chart's defaults.checkpointClaim). Without a PVC an interrupted run starts over, and a run with several "
            "nodes or resumeFrom fails with ConfigInvalid.",
            name="volumeClaimName",
            longest=253,
            rules=(
                matching(
                    CLAIM_NAME,
                    'cannot be the name of a PersistentVolumeClaim: use lower-case letters, digits, "-" and ".", '
                    "starting and ending with a letter or digit",
                ),
            ),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputConfig:
    "Where the result goes, and in which form."

    uri: str = field(
        metadata=api(
            "Destination of the result: pvc://claim/path, s3://bucket/prefix, hf://org/name (created private if it "
            "does not exist) or oci://registry/repository:tag (absent: latest). Existing files are never overwritten "
            "or deleted; a repository on the Hub gets a new commit on main. status.artifact.uri shows the final "
            "address.",
            longest=512,
            rules=OUTPUT_RULES,
        )
    )
    merge: Merge = field(
        default=Merge.ADAPTER,
        metadata=api(
            "What to publish: Adapter; Merged, the base model with the adapter merged into it, for servers that load "
            "no adapters; or Both, with the merged model in the folder merged. Merging happens on the CPU."
        ),
    )
    merge_precision: MergePrecision = field(
        default=MergePrecision.AUTO,
        metadata=api(
            "Type of the merged weights. Auto keeps the base model's type; with 16 bits, small updates are rounded "
            "away. FP32 rounds nothing away and takes twice the space of 16 bits. Only with merge Merged or Both.",
            between=(
                Rule(
                    cel="self.mergePrecision == 'Auto' || self.merge != 'Adapter'",
                    forbidden=True,
                    message="merge Adapter merges nothing: remove mergePrecision, or write merge: Merged or Both",
                    broken=lambda output, _: (
                        output.merge_precision is not MergePrecision.AUTO and output.merge is Merge.ADAPTER
                    ),
                ),
            ),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingConfig:
    """A tracker of experiments. Losing it never fails a run."""

    kind: Tracker = field(
        default=Tracker.NONE,
        metadata=api(
            "TensorBoard writes event files beside the result. MLflow and WandB use the server that the "
            "administrator configured."
        ),
    )
    project: str | None = field(
        default=None,
        metadata=api(
            "Experiment of MLflow or project of W&B for the run. Absent: lora-finetune. Only with these two.",
            shortest=1,
            longest=128,
            between=(
                Rule(
                    cel="!has(self.project) || !(self.kind in ['None', 'TensorBoard'])",
                    forbidden=True,
                    message="kinds None and TensorBoard know no projects: remove project, or write kind: MLflow or "
                    "WandB",
                    broken=lambda tracking, has: (
                        has("project") and tracking.kind in {Tracker.NONE, Tracker.TENSORBOARD}
                    ),
                ),
            ),
        ),
    )


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
    def checkpointing(self) -> ActivationCheckpointing:
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
