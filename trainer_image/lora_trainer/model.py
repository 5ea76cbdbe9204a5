"""The base model in memory, with or without 4-bit weights, and the adapter on top."""

import json
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import nn

from lora_trainer.base import Base
from lora_trainer.contract.config import LoraConfig, LossOn, Quantization
from lora_trainer.device import Device
from lora_trainer.errors import ConfigError, InternalError, explain, one_sentence
from lora_trainer.targets import choose_targets, linear_modules, short_names
from lora_trainer.tokens import Encoder, stop_token_ids

CHECKPOINTING_FROM_PARAMETERS = 1_000_000_000
"""From this size on, a GPU recomputes activations instead of keeping them: a third more time, far less memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A base model, frozen, on its device; `head` is its output embedding, `linear` its other linear modules."""

    model: Any
    head: nn.Module
    linear: dict[str, tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapted:
    """The model with a fresh adapter. Parameter counts are logical: 4-bit weights count one each."""

    model: Any
    head: nn.Module
    target_modules: tuple[str, ...]
    trainable_parameters: int
    total_parameters: int


def load_encoder(base: Base, loss_on: LossOn, max_length: int) -> Encoder:
    """The base model's tokenizer. Raises `ConfigError`."""
    from transformers import AutoTokenizer  # noqa: PLC0415 - Transformers takes seconds to import

    try:
        tokenizer = AutoTokenizer.from_pretrained(base.folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(
            f"model.uri is {base.name}: its tokenizer cannot be read ({one_sentence(error)[:300]})"
        ) from error
    # The run cuts rows itself and counts what it cut; the tokenizer's own limit would only warn.
    tokenizer.model_max_length = 2**31
    return Encoder(tokenizer, loss_on, max_length, stop_token_ids(tokenizer, _generation_eos(base)))


def _generation_eos(base: Base) -> tuple[int, ...]:
    """End-of-turn ids that the model's generation configuration names (Gemma's `<end_of_turn>` stands only there)."""
    path = base.folder / "generation_config.json"
    try:
        value = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"model.uri is {base.name}: its generation_config.json cannot be read") from error
    if isinstance(value, int):
        return (value,)
    return tuple(item for item in value if isinstance(item, int)) if isinstance(value, list) else ()


def load_model(base: Base, quantization: Quantization, device: Device) -> Loaded:
    """Read the weights and freeze them. Raises `ConfigError` for what is no complete causal language model."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - as above

    factory: Any = AutoModelForCausalLM
    try:
        model, report = factory.from_pretrained(
            base.folder,
            dtype=device.dtype,
            quantization_config=_quantization(quantization, device),
            device_map={"": device.torch_device},
            attn_implementation="sdpa",
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # a model's own code may raise anything on files that are not its own
        if not isinstance(explain(error), InternalError):
            raise
        raise ConfigError(
            f"model.uri is {base.name}: its kind {base.model_type!r} cannot be loaded as a causal language model "
            f"({one_sentence(error)[:300]})"
        ) from error
    if report["missing_keys"]:
        # Transformers would fill them with random numbers and a warning.
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise ConfigError(f"model.uri is {base.name}: its weights are incomplete ({missing} missing)")
    model.requires_grad_(False)
    model.config.use_cache = False
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Module):
        raise ConfigError(
            f"model.uri is {base.name}: its kind {base.model_type!r} has no output embeddings to train with"
        )
    return Loaded(model=model, head=head, linear=linear_modules(model, head))


def _quantization(quantization: Quantization, device: Device) -> Any:
    """4-bit always with double quantization and an explicit compute type; the library defaults to FP4, fp32, single."""
    if quantization is Quantization.NONE:
        return None
    from transformers import BitsAndBytesConfig  # noqa: PLC0415 - as above

    settings: Any = BitsAndBytesConfig
    return settings(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=device.dtype,
    )


def adapt(loaded: Loaded, config: LoraConfig, base: Base, device: Device, seed: int) -> Adapted:
    """Put a fresh adapter on the chosen modules: A random by `seed`, B zero, so that the model starts as the base."""
    from peft import LoraConfig as PeftLoraConfig  # noqa: PLC0415 - PEFT takes seconds to import
    from peft import get_peft_model  # noqa: PLC0415

    chosen = choose_targets(config, loaded.linear)
    names = short_names(chosen, loaded.linear)
    total = logical_parameters(loaded.model)
    torch.manual_seed(seed)
    model = get_peft_model(
        loaded.model,
        PeftLoraConfig(
            task_type="CAUSAL_LM",
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            bias="none",
            target_modules=list(names),
        ),
    )
    # Set afterwards: PEFT replaces a name that differs from the folder that the weights were read from.
    adapter = model.peft_config["default"]
    adapter.base_model_name_or_path = base.name
    adapter.revision = None if base.revision.startswith("sha256:") else base.revision
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    large = total >= CHECKPOINTING_FROM_PARAMETERS and model.supports_gradient_checkpointing
    if device.torch_device.type == "cuda" and large:
        recompute_activations(model)
    return Adapted(
        model=model,
        head=loaded.head,
        target_modules=names,
        trainable_parameters=trainable,
        total_parameters=total + trainable,
    )


def recompute_activations(model: Any) -> None:
    """Recompute each layer's activations in the backward pass instead of keeping them."""
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()


def set_training(model: nn.Module, *, on: bool) -> None:
    """Switch dropout on or off. 4-bit modules stay in training mode.

    On a CPU, bitsandbytes 0.50 repacks a module's weights for inference when it first runs in evaluation mode. What is
    repacked passes no gradient on, later in training mode either: all layers below would learn nothing, in silence.
    """
    model.train(on)
    for module in model.modules():
        if _is_4bit(module):
            module.train(mode=True)


def _is_4bit(module: object) -> TypeGuard[nn.Linear]:
    """By name: PEFT's own wrapper has the same, but is no `nn.Linear`; importing bitsandbytes takes seconds."""
    return isinstance(module, nn.Linear) and type(module).__name__ == "Linear4bit"


def logical_parameters(model: nn.Module) -> int:
    """Parameters as the architecture has them: `numel` counts bytes of bitsandbytes, which hold two weights each."""
    packed = {
        id(module.weight): module.in_features * module.out_features for module in model.modules() if _is_4bit(module)
    }
    return sum(packed.get(id(parameter), parameter.numel()) for parameter in model.parameters())
