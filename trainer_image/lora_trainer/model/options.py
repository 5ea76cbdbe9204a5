"""What was asked for against the device and the model's names and shapes, before any weight is read."""

from lora_trainer.model.adapter import check_apart, check_on, plan_adapter
from lora_trainer.model.device import Device
from lora_trainer.model.experts import check_experts
from lora_trainer.model.loading import skeleton
from lora_trainer.model.quantize import check_kernels, check_kind
from lora_trainer.model.recompute import check_recomputation
from lora_trainer.spec.config import Merge, Quantization, TrainConfig
from lora_trainer.storage.base import Base


def check_options(base: Base, config: TrainConfig, device: Device) -> None:
    """Raise `ConfigError` for what cannot be honoured: within a second, and not after minutes of reading rows and
    weights. Where the quantization is not settled, what goes without one is honoured."""
    auto = config.quantization is Quantization.AUTO
    quantization = Quantization.NONE if auto else config.quantization
    check_kernels(quantization, config.lora.variant, device)
    empty = skeleton(base)
    check_kind(quantization, empty.model.config.get_text_config().model_type)
    check_experts(empty.model, quantization)
    check_recomputation(config.training.activation_checkpointing, empty.model)
    plan = plan_adapter(config.lora, empty.model, empty.linear, quantization)
    if config.output.merge is not Merge.ADAPTER:
        check_apart(empty.model, plan.modules, f"output.merge is {config.output.merge.value}")
    check_on(empty.model, plan)
