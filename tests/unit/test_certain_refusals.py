"""A run is refused where it cannot fit, and not where the estimate holds more than the training may take."""

from dataclasses import replace
from typing import Any

import pytest
from tests.unit.fit_models import FURTHER, MIXTRAL, Config, llama
from tests.unit.test_fit_choice import run

from lora_trainer.plan.adapter import plan_adapter
from lora_trainer.plan.families import architecture_of
from lora_trainer.plan.planning import plan_of
from lora_trainer.spec.config import (
    ActivationCheckpointing,
    DeviceConfig,
    Kernels,
    LoraConfig,
    Merge,
    Optimizer,
    OutputConfig,
    Quantization,
    TrainConfig,
    TrainingConfig,
)
from lora_trainer.spec.gpus import find_gpu
from lora_trainer.spec.run_plan import RunPlan

WHOLE = LoraConfig(rank=128, alpha=128, modules_to_save=("embed_tokens", "lm_head"))
PAGED = TrainingConfig(max_sequence_length=1024, optimizer=Optimizer.PAGED_ADAMW_8BIT)
KEPT = TrainingConfig(max_sequence_length=2816, activation_checkpointing=ActivationCheckpointing.NONE)
EXPERTS = LoraConfig(rank=8, target_parameters=("experts.gate_up_proj",))


def plan(gpu: str, config: TrainConfig, model: Config | None = None) -> RunPlan:
    """On that GPU, of rows as long as they may be."""
    shape = architecture_of(model or llama())
    adapter = plan_adapter(config.lora, shape)
    return plan_of(
        config,
        shape,
        adapter,
        gpu=find_gpu(gpu),
        tokens=5_000_000,
        rows=10_000,
        target_share=0.4,
        longest=config.training.max_sequence_length,
    )


@pytest.mark.parametrize(
    ("config", "other"),
    [
        (run(quantization=Quantization.NF4, lora=WHOLE, training=PAGED), {"optimizer": Optimizer.ADAMW_8BIT}),
        (run(quantization=Quantization.NF4, training=KEPT), {"kernels": Kernels.REFERENCE}),
    ],
    ids=["optimizer state that leaves the GPU", "fast paths that keep less"],
)
def test_what_may_take_less_than_was_counted_is_tried(config: TrainConfig, other: dict[str, Any]) -> None:
    """By the GPU's own word: the estimate is above what it has, and what it may be spared is more than the difference.
    Where nothing is spared, the same number is certain."""
    assert plan("L4", config).fits is None
    certain = replace(config, training=replace(config.training, **other))
    assert plan("L4", certain).fits is False


@pytest.mark.parametrize(
    ("gpu", "config", "model", "remedy"),
    [
        ("A100 40", run(device=DeviceConfig(gpus=8), lora=EXPERTS), MIXTRAL, "lora.targetParameters: []"),
        (
            "H100",
            run(
                device=DeviceConfig(gpus=8),
                quantization=Quantization.NONE,
                output=replace(OutputConfig(uri="pvc://a/b"), merge=Merge.MERGED),
            ),
            FURTHER["Llama-3-70B"],
            "output.merge: Adapter",
        ),
    ],
    ids=["experts", "merged"],
)
def test_what_keeps_a_base_from_being_divided_is_named(
    gpu: str, config: TrainConfig, model: Config, remedy: str
) -> None:
    """One line suffices, where larger GPUs cost money."""
    found = plan(gpu, config, model)
    assert found.fits is False
    assert remedy in found.reason
