"""Experts of a mixture, whose weights are stacked parameters, and the names by which PEFT still knows them."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from lora_trainer.errors import ConfigError
from lora_trainer.model.linear import language_model
from lora_trainer.model.targets import inside
from lora_trainer.plan.adapter import kinds
from lora_trainer.plan.families import STATE_SPACE
from lora_trainer.plan.hint_checks import LeftAlone
from lora_trainer.plan.limits import LARGEST_UNQUANTIZED_SHARE
from lora_trainer.spec.config import Quantization

_READ_BY_KERNELS = frozenset({"out_proj", "conv1d"})
"""Modules whose weights the kernels of some kinds read by themselves."""


def reserved_names(model: Any) -> frozenset[str]:
    """Last parts of the names of modules that PEFT does not adapt in a model of this kind.

    Old files of some mixtures had these names for their experts, and PEFT reads them so whatever bears them today:
    dense layers, shared experts.
    """
    from peft.utils import transformers_weight_conversion as conversion  # noqa: PLC0415 - PEFT takes seconds to import

    kind = str(model.config.get_text_config().model_type)
    tables: Any = conversion
    pattern = tables._MODEL_TO_CONVERSION_PATTERN.get(kind)
    old = tables._MOE_TARGET_MODULE_MAPPING.get(pattern, {})
    return frozenset(old) | (_READ_BY_KERNELS if kind in STATE_SPACE else frozenset())


def check_experts(model: Any, quantization: Quantization) -> None:
    """Refuse to quantize a mixture whose experts, most of it, would stay as they are. Counts an unquantized model."""
    share = sum(_experts(model).values()) / sum(parameter.numel() for parameter in model.parameters())
    if quantization is not Quantization.NONE and share > LARGEST_UNQUANTIZED_SHARE:
        raise ConfigError(
            f"quantization is {quantization.value}: {share:.0%} of the model's weights are experts of a mixture, which "
            "bitsandbytes does not quantize, so that it would hardly become smaller; set quantization: None"
        )


def _experts(model: Any) -> dict[str, int]:
    """Parameters that hold the same matrix of many experts, and their sizes."""
    convolutions, part = (nn.Conv1d, nn.Conv2d, nn.Conv3d), language_model(model)
    return {
        f"{name}.{own}": parameter.numel()
        for name, module in model.named_modules()
        if inside(name, part) and not isinstance(module, convolutions)
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3
    }


def left_alone(model: Any, parameters: Sequence[str], passed_over: Iterable[str]) -> LeftAlone:
    """What an adapter on these parameters leaves alone; modules that a preset `passed_over` among it."""
    experts = dict.fromkeys(".".join(name.split(".")[-2:]) for name in _experts(model) if name not in parameters)
    return LeftAlone(
        kind=str(model.config.model_type),
        experts=f"experts ({', '.join(experts)})" if experts else "",
        passed_over=", ".join(kinds(passed_over)),
        language_part=language_model(model),
    )
