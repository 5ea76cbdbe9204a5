"""What is said of a run of whose base only the number of parameters is known."""

import pytest
from tests.unit.test_fit_choice import run

from lora_trainer.plan.limits import CPU_TOKEN_BUDGET, TOKEN_BUDGET
from lora_trainer.plan.planning import plan_by_weights, resolved_by_weights, settled
from lora_trainer.spec.config import DeviceConfig, Init, LoraConfig, Precision, Quantization, TrainConfig
from lora_trainer.spec.config import TrainingConfig as Training
from lora_trainer.spec.gpus import GIB, Gpu

GPU = Gpu(name="Zebra", memory_bytes=16 * GIB)
TWO = DeviceConfig(gpus=2)
NONE, NF4 = Quantization.NONE, Quantization.NF4


@pytest.mark.parametrize(
    ("config", "billions", "quantization", "why"),
    [
        (run(), 6.4, NONE, "unquantized weights take 11.9 GiB of the 12.0 GiB that weights alone may take of Zebra"),
        (run(), 6.5, NF4, "unquantized weights take 12.1 GiB, more than the 12.0 GiB that weights alone may take of Z"),
        (run(device=TWO), 12.8, NONE, "unquantized weights divided over 2 GPUs take 11.9 GiB of the 12.0 GiB"),
        (run(device=TWO), 13.0, NF4, "unquantized weights take 24.2 GiB, more than"),
        (run(lora=LoraConfig(init=Init.PISSA)), 6.5, NONE, "unquantized weights take 12.1 GiB, more than the 12.0"),
        (run(training=Training(precision=Precision.FP32)), 3.3, NF4, "unquantized weights take 12.3 GiB, more than"),
    ],
)
def test_weights_decide_where_layers_cannot(
    config: TrainConfig, billions: float, quantization: Quantization, why: str
) -> None:
    """By the share of the memory that they may take where there is no plan."""
    found = resolved_by_weights(config, round(billions * 1e9), GPU)
    assert found[0] is quantization
    assert found[1].startswith(why)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (run(), "the training settles Auto by them: they decide on the GPU that the training finds"),
        (
            run(device=DeviceConfig(gpu="Zebra", gpu_memory_bytes=16 * GIB)),
            "the training settles Auto by them: it would be NF4, since unquantized weights take 14.9 GiB, more than",
        ),
        (run(quantization=Quantization.INT8), "that memory is that of its unquantized weights alone"),
        (run(device=DeviceConfig(gpus=0)), "that memory is that of its unquantized weights alone"),
    ],
)
def test_such_a_plan_settles_nothing_and_says_why(config: TrainConfig, reason: str) -> None:
    """Whether the model can be quantized is not known before its modules are."""
    found = plan_by_weights(config, 8_000_000_000, longest=300)
    assert reason in found.reason
    assert settled(config, found) is config
    assert (found.fits, found.device, found.trainable_parameters, found.spread) == (None, None, 0, 0.3)
    assert found.weight_bytes == (32 if config.device.gpus == 0 else 16) * 10**9
    assert found.peak_bytes == found.weight_bytes + found.other_bytes
    assert found.micro_batch_tokens == (CPU_TOKEN_BUDGET if config.device.gpus == 0 else TOKEN_BUDGET)
    assert found.activation_checkpointing is (config.device.gpus > 0)
