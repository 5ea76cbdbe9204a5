"""What was asked for against the device and the model's names and shapes, before any weight is read."""

from lora_trainer.contract.config import TrainConfig
from lora_trainer.model.adapter import check_on, plan_adapter
from lora_trainer.model.device import Device
from lora_trainer.model.experts import check_experts
from lora_trainer.model.loading import skeleton
from lora_trainer.model.quantize import check_kernels, check_kind
from lora_trainer.places.base import Base


def check_options(base: Base, config: TrainConfig, device: Device) -> None:
    """Raise `ConfigError` for what cannot be honoured: within a second, and not after minutes of reading weights."""
    check_kernels(config.quantization, config.lora.variant, device)
    empty = skeleton(base)
    check_kind(config.quantization, empty.model.config.get_text_config().model_type)
    check_experts(empty.model, config.quantization)
    plan = plan_adapter(config.lora, empty.model, empty.linear, config.quantization)
    check_on(empty.model, plan)
