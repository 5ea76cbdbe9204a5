"""Words of PEFT, TRL, Transformers and Axolotl for what this API calls otherwise: pure tables."""

import functools
import re
from collections.abc import Mapping
from typing import get_type_hints

from lora_client.spec import Spec
from lora_trainer.spec.config import (
    ActivationCheckpointing,
    DatasetFormat,
    Init,
    Layers,
    LossOn,
    Merge,
    Optimizer,
    Packing,
    Precision,
    Quantization,
    Scaling,
    Schedule,
    Tracker,
    Variant,
)
from lora_trainer.spec.fields import nearest

_BNB_8BIT = dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "adamw8bit"), Optimizer.ADAMW_8BIT)
_ADAMW = dict.fromkeys(
    ("adamw", "adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused", "adamw_torch_xla"), Optimizer.ADAMW
)
VALUES: Mapping[str, Mapping[str, str]] = {
    "spec.lora.layers": {
        "all-linear": Layers.ALL_LINEAR,
        "all_linear": Layers.ALL_LINEAR,
        "all": Layers.ALL_LINEAR,
        "attn": Layers.ATTENTION,
        "attention": Layers.ATTENTION,
        "qv": Layers.QUERY_VALUE,
        "q_proj,v_proj": Layers.QUERY_VALUE,
        "mlp": Layers.MLP,
        "ffn": Layers.MLP,
    },
    "spec.lora.variant": {"dora": Variant.DORA, "lora": Variant.LORA, "use_dora": Variant.DORA, "qlora": Variant.LORA},
    "spec.lora.scaling": {"rslora": Scaling.RANK_STABILIZED, "use_rslora": Scaling.RANK_STABILIZED},
    "spec.lora.init": {
        "gaussian": Init.GAUSSIAN,
        **dict.fromkeys(("pissa", *(f"pissa_niter_{count}" for count in range(1, 65))), Init.PISSA),
        "olora": Init.OLORA,
        "true": Init.DEFAULT,
        "kaiming": Init.DEFAULT,
    },
    "spec.quantization": {
        "nf4": Quantization.NF4,
        "4bit": Quantization.NF4,
        "load_in_4bit": Quantization.NF4,
        "4": Quantization.NF4,
        "qlora": Quantization.NF4,
        "fp4": Quantization.FP4,
        "8bit": Quantization.INT8,
        "8": Quantization.INT8,
        "load_in_8bit": Quantization.INT8,
        "int8": Quantization.INT8,
        "bf16": Quantization.NONE,
        "none": Quantization.NONE,
        "false": Quantization.NONE,
    },
    "spec.training.schedule": {
        "cosine": Schedule.COSINE,
        "linear": Schedule.LINEAR,
        "constant": Schedule.CONSTANT,
        "constant_with_warmup": Schedule.CONSTANT,
    },
    "spec.training.optimizer": {**_ADAMW, **_BNB_8BIT, "paged_adamw_8bit": Optimizer.PAGED_ADAMW_8BIT},
    "spec.training.precision": {
        "bf16": Precision.BF16,
        "bfloat16": Precision.BF16,
        "fp16": Precision.FP16,
        "float16": Precision.FP16,
        "fp32": Precision.FP32,
        "float32": Precision.FP32,
        "auto": Precision.AUTO,
    },
    "spec.training.activationCheckpointing": {
        "true": ActivationCheckpointing.FULL,
        "unsloth": ActivationCheckpointing.FULL,
        **dict.fromkeys(("false", "no", "none", "off", "0"), ActivationCheckpointing.NONE),
    },
    "spec.training.packing": {"true": Packing.ENABLED, "false": Packing.DISABLED},
    "spec.training.lossOn": {
        "assistant_only_loss": LossOn.COMPLETION,
        "completion_only_loss": LossOn.COMPLETION,
        "assistant": LossOn.COMPLETION,
        "train_on_inputs": LossOn.ALL,
    },
    "spec.dataset.format": {
        "alpaca": DatasetFormat.INSTRUCTION,
        "sharegpt": DatasetFormat.MESSAGES,
        "chat_template": DatasetFormat.MESSAGES,
        "chatml": DatasetFormat.MESSAGES,
        "openai": DatasetFormat.MESSAGES,
        "conversational": DatasetFormat.MESSAGES,
        "completion": DatasetFormat.TEXT,
        "pretrain": DatasetFormat.TEXT,
    },
    "spec.output.merge": {"true": Merge.MERGED, "false": Merge.ADAPTER, "lora": Merge.ADAPTER},
    "spec.tracking.kind": {"wandb": Tracker.WANDB, "tensorboard": Tracker.TENSORBOARD, "mlflow": Tracker.MLFLOW},
}
"""Field to foreign word, in lower case, to ours."""
FIELDS: Mapping[str, str] = {
    "r": "spec.lora.rank",
    "lora_r": "spec.lora.rank",
    "lora_rank": "spec.lora.rank",
    "lora_alpha": "spec.lora.alpha",
    "lora_dropout": "spec.lora.dropout",
    "target_modules": "spec.lora.targetModules",
    "lora_target": "spec.lora.layers or spec.lora.targetModules",
    "lora_target_modules": "spec.lora.targetModules",
    "lora_target_linear": "spec.lora.layers",
    "modules_to_save": "spec.lora.modulesToSave",
    "use_rslora": "spec.lora.scaling",
    "use_dora": "spec.lora.variant",
    "load_in_4bit": "spec.quantization",
    "load_in_8bit": "spec.quantization",
    "num_epochs": "spec.training.epochs",
    "num_train_epochs": "spec.training.epochs",
    "max_steps": "spec.training.maxSteps",
    "learning_rate": "spec.training.learningRate",
    "lr": "spec.training.learningRate",
    "lr_scheduler": "spec.training.schedule",
    "lr_scheduler_type": "spec.training.schedule",
    "warmup_ratio": "spec.training.warmupRatio",
    "batch_size": "spec.training.effectiveBatchSize",
    "micro_batch_size": "spec.training.microBatchSize",
    "per_device_train_batch_size": "spec.training.microBatchSize",
    "gradient_accumulation_steps": "spec.training.effectiveBatchSize",
    "gradient_checkpointing": "spec.training.activationCheckpointing",
    "max_length": "spec.training.maxSequenceLength",
    "max_seq_length": "spec.training.maxSequenceLength",
    "sequence_len": "spec.training.maxSequenceLength",
    "cutoff_len": "spec.training.maxSequenceLength",
    "optim": "spec.training.optimizer",
    "weight_decay": "spec.training.weightDecay",
    "max_grad_norm": "spec.training.maxGradNorm",
    "bf16": "spec.training.precision",
    "fp16": "spec.training.precision",
    "base_model": "spec.model.uri",
    "model_name_or_path": "spec.model.uri",
    "dataset_name": "spec.dataset.uri",
    "datasets": "spec.dataset.uri",
    "output_dir": "spec.output.uri",
    "val_set_size": "spec.dataset.validationFraction",
    "limits": "spec.resources.gpus or spec.resources.cpu or spec.resources.memory",
    "requests": "spec.resources.gpus or spec.resources.cpu or spec.resources.memory",
}
"""Names of options of the other tools and of Kubernetes, and the field that does the same here."""
_MOST_PLACES = 2
"""Of one name: `uri` and `name` are in many."""

_ON_THE_HUB = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9_.-]+")
_PAGE = re.compile(
    r"(?:https?://(?:www\.)?(?:huggingface\.co|hf\.co)/|hf://)(?:datasets/|models/)?"
    rf"(?P<name>{_ON_THE_HUB.pattern})(?:/(?:tree|blob|resolve)/.*)?/?"
)
"""The address of a repository in a browser, or as the Hub's own libraries write it."""
_FILE = re.compile(r"\.(jsonl?|csv|parquet)(\.(gz|bz2|xz|zst))?$", re.IGNORECASE)


def known(field: str, value: object) -> str | None:
    """Our word for exactly what another tool means by this value in this field, None where there is none."""
    ours = VALUES.get(field, {}).get(_plain(value))
    return None if ours is None else str(ours)


def meant(field: str, value: object) -> str | None:
    """What was probably meant by this value in this field, None where nothing is near: to be asked, not to be taken."""
    near = known(field, value) or nearest(_plain(value), {str(ours) for ours in VALUES.get(field, {}).values()})
    return None if near is None or near == value else near


def _plain(value: object) -> str:
    return str(value).strip().strip('"').lower()


def hint(field: str, value: object) -> str:
    """The end of a sentence that names our word; empty where there is none."""
    ours = meant(field, value)
    return f"; did you mean {ours}?" if ours else ""


def is_file(name: str) -> bool:
    """Whether a name is that of a file of rows, which is no data set on the Hub even where it has one slash."""
    return bool(_FILE.search(name))


def address_hint(field: str, value: object) -> str:
    """The end of a sentence about an address of another form: a name or a page on the Hub, or a file that the cluster
    lacks."""
    text = str(value)
    if page := _PAGE.fullmatch(text):
        return f"; did you mean hf://{page['name']}?"
    if field.startswith("spec.dataset.") and is_file(text) and "://" not in text:
        return (
            "; a file of this machine gets there by kubectl create configmap NAME --from-file=FILE, as "
            "configmap://NAME/FILE of at most 1 MiB, or on a claim"
        )
    if field.startswith(("spec.model.", "spec.dataset.")) and _ON_THE_HUB.fullmatch(text):
        return f"; did you mean hf://{text}?"
    return ""


def field_hint(path: str) -> str:
    """The end of a sentence about an unknown field that is another tool's, or in another place here; empty where it is
    neither."""
    leaf = path.rpartition(".")[2]
    ours = "spec.model.uri" if path == "spec.model.name" else FIELDS.get(leaf.lower())
    if ours:
        return f"; {ours} does this here"
    places = [] if leaf == "name" else _places().get(leaf, [])
    return f"; did you mean {' or '.join(places)}?" if 0 < len(places) <= _MOST_PLACES else ""


@functools.cache
def _places() -> Mapping[str, list[str]]:
    """Name of a field to its paths."""
    found: dict[str, list[str]] = {}
    for section, kind in get_type_hints(Spec).items():
        found.setdefault(section, []).append(f"spec.{section}")
        for leaf in getattr(kind, "__annotations__", {}):
            found.setdefault(leaf, []).append(f"spec.{section}.{leaf}")
    return found
