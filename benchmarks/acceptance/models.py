"""Models of random weights from configurations, in memory or as files, and rows to train them with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from torch import nn

from lora_trainer.data.store import Examples
from lora_trainer.data.tokens import IGNORED, Example
from lora_trainer.distributed.collectives import ALONE, Ranks
from lora_trainer.model.device import Device
from lora_trainer.model.fast import isolate
from lora_trainer.model.linear import linear_modules
from lora_trainer.model.loading import Adapted, Loaded, adapt, load_model, set_training
from lora_trainer.model.quantize import is_4bit
from lora_trainer.spec.config import ActivationCheckpointing, LoraConfig, Optimizer, Quantization, TrainingConfig
from lora_trainer.storage.base import Base
from lora_trainer.train.batches import MicroBatchLimit
from lora_trainer.train.callbacks import Step, TrainerCallback
from lora_trainer.train.loop import Training
from lora_trainer.train.stopping import Stop

if TYPE_CHECKING:
    from benchmarks.acceptance.bench import Bench


def random_model(kind: str, options: Mapping[str, Any], device: Device) -> Any:
    """A causal language model of random weights, on the device, in its type."""
    library: Any = transformers
    torch.manual_seed(0)
    with device.torch_device:
        return library.AutoModelForCausalLM.from_config(
            library.AutoConfig.for_model(kind, **options), dtype=device.dtype
        )


def adapted_on(
    config: Mapping[str, Any],
    lora: LoraConfig,
    device: Device,
    *,
    quantization: Quantization,
    recompute: bool,
    selective: bool = False,
) -> tuple[Adapted, bool]:
    """The model that a `config.json` describes, with random weights and an adapter, and whether its rows can be packed.

    Quantized on the device: no file, and no copy in main memory.
    """
    kind = str(config["model_type"])
    options = {name: value for name, value in config.items() if name != "model_type"}
    if quantization is Quantization.NONE:
        model = random_model(kind, options, device)
    else:
        model = quantized_model(kind, options, device, quantization)
    model.config.use_cache = False
    head = model.get_output_embeddings()
    model.requires_grad_(False)
    base = Base(folder=Path(), name="random", revision="sha256:0", model_type=kind)
    loaded = Loaded(model=model, head=head, linear=linear_modules(model, head), quantization=quantization)
    checkpointing = ActivationCheckpointing.of(recompute=recompute, selective=selective)
    adapted = adapt(loaded, lora, base, device, 1, checkpointing=checkpointing)
    packs = isolate(adapted.model)
    set_training(adapted.model, on=True)
    return adapted, packs


def quantized_model(kind: str, options: Mapping[str, Any], device: Device, quantization: Quantization) -> Any:
    """The same with its linear modules in 4 bits. One of them at a time is in 16 bits on the device, as where a
    checkpoint is loaded: GPUs that have no room for the whole model train it in 4."""
    model = random_model(kind, options, replace(device, torch_device=torch.device("meta")))
    _quantize(model, device, quantization)
    for module in model.modules():
        if not is_4bit(module):
            module.to_empty(device=device.torch_device, recurse=False)
    # First, so that a tied head is no second random matrix.
    model.tie_weights()
    model.initialize_weights()
    return model


def _quantize(model: Any, device: Device, quantization: Quantization) -> None:
    """Replace the linear modules, which are without weights, by 4-bit ones with random weights."""
    kind, spread = quantization.value.lower(), float(model.config.initializer_range)
    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child is not head:
                setattr(parent, name, _in_4_bits(child, device, kind, spread))
    # By this PEFT knows which of its modules to wrap them in; the fused adapter takes no other.
    vars(model)["is_loaded_in_4bit"] = True


def _in_4_bits(module: nn.Linear, device: Device, kind: str, spread: float) -> nn.Module:
    import bitsandbytes  # noqa: PLC0415 - takes seconds to import

    library: Any = bitsandbytes
    small = library.nn.Linear4bit(
        module.in_features,
        module.out_features,
        bias=module.bias is not None,
        compute_dtype=device.dtype,
        compress_statistics=True,
        quant_type=kind,
        device="meta",
    )
    weight = torch.empty_like(module.weight, device=device.torch_device, requires_grad=False).normal_(std=spread)
    packed = library.nn.Params4bit(weight, requires_grad=False, compress_statistics=True, quant_type=kind)
    small.weight = packed.to(device.torch_device)
    if module.bias is not None:
        small.bias = nn.Parameter(torch.zeros_like(module.bias, device=device.torch_device), requires_grad=False)
    # Else Transformers would initialize the packed bytes.
    small._is_hf_initialized = True
    found: nn.Module = small
    return found


def random_base(folder: Path, kind: str, options: Mapping[str, Any], device: Device) -> Base:
    """The same as files, as a run reads them."""
    # A file at a time is in main memory.
    random_model(kind, options, device).save_pretrained(folder, max_shard_size="2GB")
    return Base(folder=folder, name="random", revision="sha256:0", model_type=kind)


def one_row(tokens: int, vocabulary: int) -> Example:
    """A row of random tokens, all of which are learned."""
    ids = np.random.default_rng(1).integers(3, vocabulary, size=tokens)
    return Example(input_ids=ids, labels=ids, truncated=False)


def learnable_rows(lengths: Sequence[int], vocabulary: int) -> list[Example]:
    """Rows that count in steps of their own, whose first quarter is a prompt."""
    found = []
    for row, length in enumerate(lengths):
        ids = 3 + (row * 7 + (1 + row % 3) * np.arange(length)) % min(vocabulary - 3, 50)
        labels = np.where(np.arange(length) < length // 4, IGNORED, ids)
        found.append(Example(input_ids=ids, labels=labels, truncated=False))
    return found


class Taken(TrainerCallback):
    """Keeps what a training reports."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.limits: list[int] = []
        self.left_out_steps: list[int] = []

    def stepped(self, step: Step) -> None:
        """Keep it."""
        self.steps.append(step)

    def left_out(self, step: int, *, bad: bool) -> None:
        """Count it."""
        self.left_out_steps.append(step)

    def halved(self, limit: MicroBatchLimit, accumulation: int) -> None:
        """Keep what a micro-batch may hold from now on."""
        self.limits.append(limit.tokens)

    @property
    def losses(self) -> list[float]:
        """Of the steps."""
        return [step.loss for step in self.steps]


def adapter_for(optimizer: Optimizer, *, dropout: float = 0.0) -> LoraConfig:
    """One whose state the optimizer keeps as it is meant to: bitsandbytes pages no tensor of fewer than 100,000 values.
    The rank changes the size of an update no more than it has to."""
    return LoraConfig(rank=256 if optimizer is Optimizer.PAGED_ADAMW_8BIT else 8, alpha=16, dropout=dropout)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A short training of a small model."""

    lora: LoraConfig = field(default_factory=lambda: LoraConfig(rank=8, alpha=16))
    quantization: Quantization = Quantization.NONE
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            epochs=None, max_steps=8, learning_rate=0.01, warmup_ratio=0.0, effective_batch_size=8
        )
    )
    checkpointing: ActivationCheckpointing = ActivationCheckpointing.NONE
    tokens: int | None = None


def prepared(
    base: Base, recipe: Recipe, device: Device, bench: "Bench", callback: TrainerCallback, *, stop: Stop | None = None
) -> Training:
    """The trainer's own loop on a model that was read from its files, rows packed where it can."""
    loaded = load_model(base, recipe.quantization, device)
    adapted = adapt(loaded, recipe.lora, base, device, 3, checkpointing=recipe.checkpointing)
    return training_of(adapted, recipe, device, bench, callback, stop=stop or Stop())


def training_of(
    adapted: Adapted,
    recipe: Recipe,
    device: Device,
    bench: "Bench",
    callback: TrainerCallback,
    *,
    stop: Stop,
    ranks: Ranks = ALONE,
) -> Training:
    """The same of a model at hand, with other processes."""
    packs = isolate(adapted.model)
    lengths = [max(4, length) for length in bench.lengths] * 4
    examples = Examples.of(learnable_rows(lengths, int(adapted.model.config.vocab_size)))
    longest = max(lengths)
    return Training(
        adapted=adapted,
        examples=examples,
        config=recipe.training,
        limit=MicroBatchLimit.of(None, longest, packed=packs, tokens=recipe.tokens or 2 * longest),
        device=device,
        ranks=ranks,
        callback=callback,
        stop=stop,
    )
