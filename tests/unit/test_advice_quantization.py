"""Advice against quantization: only where the fit model's own time does not contradict it."""

import pytest
from tests.unit.advised import Case, Spec
from tests.unit.fit_models import LLAMA_2_13B, MODELS, Config, llama

from lora_trainer.contract.gpus import KNOWN, Gpu

SHORT = {"tokens": 9_800 * 200, "target_tokens": 9_800 * 100, "longest_tokens": 1_000, "p95_tokens": 500}
SOLD = {16: ("T4",), 24: ("L4", "A10", "RTX 4090"), 40: ("A100 40",), 48: ("L40S",), 80: ("A100 80", "H100")}
"""Cards of the table by the GiB that they are sold with."""
MODELS_TRIED = {
    "1B": MODELS["SmolLM2-135M"][0],
    "7B": MODELS["Mistral-7B"][0],
    "8B": llama(),
    "12B": llama(num_hidden_layers=48),
    "13B": LLAMA_2_13B,
}
CODE = "QuantizationNotNeeded"


def known(name: str) -> Gpu:
    """A GPU of the table."""
    return next(gpu for gpu in KNOWN if gpu.name == name)


def says(model: Config, quantization: str, *, gib: int | None = None, gpu: Gpu | None = None, **training: str) -> bool:
    """Whether the run is advised to go without."""
    spec: Spec = {"quantization": quantization, "training": training}
    if gib is not None:
        spec["resources"] = {"gpuMinMemoryGiB": gib}
    return CODE in Case(model=model, spec=spec, gpu=gpu, rows=SHORT).said()


def test_16_bits_that_recompute_more_are_not_called_no_slower_where_no_speed_is_known() -> None:
    """On 24 GB the 16 bits of 8B recompute, and 4 bits do not: each known card of that size is slower so."""
    assert not says(llama(), "NF4", gib=24)
    assert says(llama(), "NF4", gib=80)


@pytest.mark.parametrize("size", SOLD)
@pytest.mark.parametrize("quantization", ["NF4", "INT8"])
@pytest.mark.parametrize("model", MODELS_TRIED)
def test_no_size_gets_advice_that_no_card_of_that_size_gets(model: str, quantization: str, size: int) -> None:
    """What is said of a size alone is true of some known card that is sold with it."""
    config = MODELS_TRIED[model]
    by_name = [says(config, quantization, gpu=known(name)) for name in SOLD[size]]
    assert says(config, quantization, gib=size) <= any(by_name)


@pytest.mark.parametrize("manner", ["None", "Selective", "Full"])
@pytest.mark.parametrize("size", SOLD)
def test_advice_keeps_to_the_recomputation_that_the_run_asks_for(size: int, manner: str) -> None:
    """16 bits that fit only with more recomputation than the run allows would not fit when it is followed."""
    case = Case(
        model=llama(),
        spec={
            "quantization": "NF4",
            "resources": {"gpuMinMemoryGiB": size},
            "training": {"activationCheckpointing": manner},
        },
        rows=SHORT,
    )
    if CODE in case.said():
        assert case.changed("quantization", "None").plan().fits
    tight = case.changed("quantization", "None")
    if "QuantizationWouldFit" in tight.said():
        assert tight.changed("quantization", "NF4").plan().fits
