"""The base model in memory, in full or quantized, and the adapter on top."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import nn

from lora_trainer.distributed.collectives import ALONE, Ranks
from lora_trainer.errors import ConfigError, InternalError, explain, one_sentence
from lora_trainer.model.adapter import ADAPTER, plan_adapter, put_on
from lora_trainer.model.classes import auto_class
from lora_trainer.model.convert import Start, take_directions
from lora_trainer.model.device import Device
from lora_trainer.model.linear import linear_modules
from lora_trainer.model.quantize import is_4bit, leave_packing, quantization_settings, take_any_shape
from lora_trainer.model.recompute import check_recomputation, recomputable, recompute_activations, recompute_mlps
from lora_trainer.model.rope import forget_lengths
from lora_trainer.model.sharding import weight_bytes
from lora_trainer.plan.choice import is_large
from lora_trainer.plan.hint_checks import LeftAlone
from lora_trainer.spec.config import ActivationCheckpointing, LoraConfig, Quantization
from lora_trainer.storage.base import Base
from lora_trainer.storage.model_folder import weights_in


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A base model, frozen, on its device; `head` is its output embedding, `linear` its other linear modules."""

    model: Any
    head: nn.Module
    linear: dict[str, tuple[int, int]]
    quantization: Quantization = Quantization.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapted:
    """The model with a fresh adapter. Parameter counts are logical: 4-bit weights count one each.

    `head` is the output embedding that computes, a trained copy where it is trained whole. `starts` are the start
    values of PiSSA and OLoRA by module, which a checkpoint keeps; empty for other adapters. `checkpointing` says
    which activations are recomputed, `may_recompute` whether all may be where memory does not suffice, `left_alone`
    what the adapter leaves alone.
    """

    model: Any
    head: nn.Module
    target_modules: tuple[str, ...]
    trainable_parameters: int
    total_parameters: int
    starts: Mapping[str, Start] = field(default_factory=dict)
    checkpointing: ActivationCheckpointing = ActivationCheckpointing.NONE
    may_recompute: bool = False
    left_alone: LeftAlone = field(default_factory=LeftAlone)


def skeleton(base: Base) -> Loaded:
    """The model without weights, to check names and shapes with. Raises `ConfigError` as `load_model`."""
    configuration = _configuration(base)
    factory = auto_class(configuration, base.name)
    try:
        with torch.device("meta"):
            model = factory.from_config(configuration, trust_remote_code=False)
    except Exception as error:  # a model's own code may raise anything on a configuration that is not its own
        raise _not_loadable(base, error) from error
    return _loaded(model, base, Quantization.NONE)


def held_bytes(base: Base, device: Device, quantization: Quantization) -> float:
    """Memory that the model's weights take on a device; of quantized ones those of linear modules are counted."""
    linear = 0 if quantization is Quantization.NONE else sum(map(prod, skeleton(base).linear.values()))
    return weight_bytes(weights_in(base.folder), device.dtype, quantization, linear)


def _configuration(base: Base) -> Any:
    from transformers import AutoConfig  # noqa: PLC0415 - Transformers takes seconds to import

    factory: Any = AutoConfig
    try:
        return factory.from_pretrained(base.folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # as above
        raise _not_loadable(base, error) from error


def load_model(base: Base, quantization: Quantization, device: Device, *, packs_later: bool = False) -> Loaded:
    """Read the weights and freeze them. With `packs_later` 4-bit weights stay in full for now, see `leave_packing`.
    Raises `ConfigError` for what is no complete causal language model."""
    factory = auto_class(_configuration(base), base.name)
    settings = quantization_settings(quantization, device)
    packs_later = packs_later and settings is not None
    try:
        model, report = factory.from_pretrained(
            base.folder,
            dtype=device.dtype,
            quantization_config=None if packs_later else settings,
            device_map={"": device.torch_device},
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # as above
        if not isinstance(explain(error), InternalError):
            raise
        raise _not_loadable(base, error) from error
    if report["missing_keys"]:
        # Transformers would fill them with random numbers and a warning.
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise ConfigError(f"model.uri is {base.name}: its weights are incomplete ({missing} missing)")
    if packs_later:
        leave_packing(model, settings)
    model.requires_grad_(False)
    model.config.use_cache = False
    set_training(model, on=False)
    take_any_shape(model)
    forget_lengths(model)
    return _loaded(model, base, quantization)


def _not_loadable(base: Base, error: Exception) -> ConfigError:
    return ConfigError(
        f"model.uri is {base.name}: its kind {base.model_type!r} cannot be loaded as a causal language model "
        f"({one_sentence(error)[:300]})"
    )


def _loaded(model: Any, base: Base, quantization: Quantization) -> Loaded:
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Module):
        raise ConfigError(
            f"model.uri is {base.name}: its kind {base.model_type!r} has no output embeddings to train with"
        )
    return Loaded(model=model, head=head, linear=linear_modules(model, head), quantization=quantization)


def adapt(
    loaded: Loaded,
    config: LoraConfig,
    base: Base,
    device: Device,
    seed: int,
    *,
    checkpointing: ActivationCheckpointing = ActivationCheckpointing.AUTO,
    planned: ActivationCheckpointing | None = None,
    starts: Mapping[str, Start] | None = None,
    ranks: Ranks = ALONE,
) -> Adapted:
    """Put a fresh adapter on the chosen modules: the model starts as the base, with random values by `seed`.

    `planned` says which activations a plan recomputes, where that is left to it; None where there is no plan.
    `starts` are those of a checkpoint, for PiSSA and OLoRA; without them all of `ranks` take those of the first. Raises
    `ConfigError`.
    """
    plan = plan_adapter(config, loaded.model, loaded.linear, loaded.quantization)
    total = logical_parameters(loaded.model)
    torch.manual_seed(seed)
    model = put_on(loaded.model, plan)
    found = take_directions(model, str(plan.init), starts, ranks) if config.init.changes_base else {}
    _train_in_fp32(model)
    # Set afterwards: PEFT replaces a name that differs from the folder that the weights were read from.
    adapter = model.peft_config[ADAPTER]
    adapter.init_lora_weights = plan.init
    adapter.base_model_name_or_path = base.name
    adapter.revision = None if base.revision.startswith("sha256:") else base.revision
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    recomputed = _recomputed(checkpointing, model, total, device, planned=planned)
    if recomputed is ActivationCheckpointing.SELECTIVE:
        recompute_mlps(model)
    elif recomputed is ActivationCheckpointing.FULL:
        recompute_activations(model)
    may_recompute = bool(
        checkpointing is ActivationCheckpointing.AUTO
        and recomputed is not ActivationCheckpointing.FULL
        and model.supports_gradient_checkpointing
    )
    return Adapted(
        model=model,
        head=_head(model),
        target_modules=plan.names,
        trainable_parameters=trainable,
        total_parameters=total + trainable,
        starts=found,
        checkpointing=recomputed,
        may_recompute=may_recompute,
        left_alone=plan.left_alone,
    )


def _train_in_fp32(model: Any) -> None:
    """What is trained whole is a copy in the base's type: 16 bits would round small updates away, and the scaler of
    fp16 losses takes no fp16 gradients."""
    from peft.utils import ModulesToSaveWrapper  # noqa: PLC0415 - PEFT takes seconds to import

    for module in list(model.modules()):
        if isinstance(module, ModulesToSaveWrapper):
            copy: Any = module.modules_to_save[ADAPTER]
            if copy is not _head(model):
                answer_in(copy, next(copy.parameters()).dtype)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def answer_in(module: nn.Module, dtype: torch.dtype) -> None:
    """Let a module whose weights are fp32 give what the model around it computes in, as the base's module did.

    fp32 from the embeddings would go through all layers, and LayerNorm takes none beside 16-bit weights.
    """

    def hook(_module: nn.Module, _inputs: object, output: object) -> object:
        return output.to(dtype) if isinstance(output, torch.Tensor) else output

    module.register_forward_hook(hook)


def _head(model: Any) -> nn.Module:
    """The output embedding that computes: behind PEFT's wrapper the copy that is trained."""
    head: Any = model.get_base_model().get_output_embeddings()
    copies: Any = getattr(head, "modules_to_save", None)
    found: nn.Module = copies[ADAPTER] if copies is not None else head
    return found


def _recomputed(
    wanted: ActivationCheckpointing,
    model: Any,
    parameters: int,
    device: Device,
    *,
    planned: ActivationCheckpointing | None,
) -> ActivationCheckpointing:
    """Which activations are recomputed. What a plan recomputes in MLPs, which this kind of model has not, are all."""
    none, full = ActivationCheckpointing.NONE, ActivationCheckpointing.FULL
    check_recomputation(wanted, model)
    if wanted is not ActivationCheckpointing.AUTO:
        return wanted
    possible = recomputable(model)
    if planned is None:
        planned = full if is_large(parameters) and device.torch_device.type == "cuda" else none
    return next(one for one in (planned, full, none) if possible[one])


def set_training(model: nn.Module, *, on: bool) -> None:
    """Switch dropout on or off. 4-bit modules stay in training mode.

    On a CPU, bitsandbytes 0.50 repacks a module's weights for inference when it first runs in evaluation mode. What is
    repacked passes no gradient on, later in training mode either: all layers below would learn nothing, in silence.
    """
    model.train(on)
    for module in model.modules():
        if is_4bit(module):
            module.train(mode=True)


def set_input_casts(model: nn.Module, *, on: bool) -> bool:
    """Have adapted modules cast what they are given to the type of their adapter, or leave that to autocast; whether
    they did before, which they do from the start.

    PEFT keeps adapters in fp32, and would cast the inputs of 16-bit modules to fp32 and keep the copies. Steps in 16
    bits do without, backward passes too: with checkpointing these run forward passes again, which must do the same.
    Evaluations keep nothing, and cast: DoRA takes the norms of its weights in the type of its inputs.
    """
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "cast_input_dtype_enabled")]
    before = all(layer.cast_input_dtype_enabled for layer in layers)
    for layer in layers:
        layer.cast_input_dtype_enabled = on
    return before


def logical_parameters(model: nn.Module) -> int:
    """Parameters as the architecture has them: `numel` counts bytes of bitsandbytes, which hold two weights each."""
    packed = {
        id(module.weight): module.in_features * module.out_features for module in model.modules() if is_4bit(module)
    }
    return sum(packed.get(id(parameter), parameter.numel()) for parameter in model.parameters())
