"""What published runs took of a GPU is what the fit model says of them."""

from dataclasses import replace

import pytest
from tests.unit.fit_models import LLAMA_2_7B, LLAMA_2_13B, Config

from lora_trainer.plan.adapter import plan_adapter
from lora_trainer.plan.families import architecture_of
from lora_trainer.plan.memory import Setting, gpu_memory
from lora_trainer.spec.config import Layers, LoraConfig, Quantization

THEIRS = Setting(quantization=Quantization.NONE, recompute=False, tokens=1304, row=1304, dropout=True, fused_loss=False)
"""Of the published runs: the dropout of 0.05 that their program defaults to, and a loss over all logits."""
THEIRS_NF4 = replace(THEIRS, quantization=Quantization.NF4, saves_inputs=True, double_quantized=False)
"""With bitsandbytes of 2023, which kept the inputs of 4-bit modules; the run did not quantize twice."""
FITTED = {"Llama-2-7B, bf16": (LLAMA_2_7B, THEIRS, 21.33)}
OTHERS: dict[str, tuple[Config, Setting, float]] = {
    "Llama-2-7B, NF4": (LLAMA_2_7B, THEIRS_NF4, 14.18),
    "Llama-2-13B, bf16": (LLAMA_2_13B, THEIRS, 38.12),
}
"""The constant of 0.75 GB, CUDA's context, is the only one that a GPU would have to tell; it meets the first run."""


def gigabytes(config: Config, setting: Setting, lora: LoraConfig) -> float:
    """Of the GPU at the peak, 10^9 bytes."""
    shape = architecture_of(config)
    return gpu_memory(shape, plan_adapter(lora, shape), setting).total / 1e9


@pytest.mark.parametrize("name", [*FITTED, *OTHERS])
def test_a_published_run_is_met_within_five_per_cent(name: str) -> None:
    """By its own settings: query and value, rank 8, 1,304 tokens, dropout, all logits at once."""
    config, setting, published = (FITTED | OTHERS)[name]
    estimated = gigabytes(config, setting, LoraConfig(rank=8, layers=Layers.QUERY_VALUE))
    assert abs(estimated / published - 1) <= 0.05


def test_runs_that_nothing_was_fitted_on_are_met_on_average() -> None:
    """Within 5 %, the worst within 10."""
    small = LoraConfig(rank=8, layers=Layers.QUERY_VALUE)
    errors = [abs(gigabytes(one, how, small) / published - 1) for one, how, published in OTHERS.values()]
    assert sum(errors) / len(errors) <= 0.05
    assert max(errors) <= 0.1
