"""Advice against quantization: only where the fit model's own time does not contradict it."""

import pytest
from tests.unit.advised import Case
from tests.unit.fit_models import LLAMA_2_13B, MODELS, Config, llama

from lora_trainer.spec.gpus import KNOWN, Gpu, find_gpu

SHORT = {"tokens": 9_800 * 200, "target_tokens": 9_800 * 100, "longest_tokens": 1_000, "p95_tokens": 500}
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


def says(model: Config, quantization: str, gpu: Gpu) -> bool:
    """Whether the run is advised to go without."""
    return CODE in Case(model=model, spec={"quantization": quantization}, gpu=gpu, rows=SHORT).said()


def test_nothing_is_said_of_a_gpu_whose_speed_is_not_known() -> None:
    """Of a size alone: on some card of it 16 bits, which recompute more there, may be slower."""
    assert says(llama(), "NF4", known("H100"))
    assert not says(llama(), "NF4", find_gpu("80GiB"))


@pytest.mark.parametrize("gpu", KNOWN, ids=lambda gpu: gpu.name)
@pytest.mark.parametrize("quantization", ["NF4", "INT8"])
@pytest.mark.parametrize("model", MODELS_TRIED)
def test_16_bits_are_advised_where_they_are_no_slower(model: str, quantization: str, gpu: Gpu) -> None:
    """By the plans of both."""
    config = MODELS_TRIED[model]
    case = Case(model=config, spec={"quantization": quantization}, gpu=gpu, rows=SHORT)
    ours, theirs = case.plan(), case.changed("quantization", "None").plan()
    no_slower = bool(theirs.fits) and (theirs.tokens_per_second or 0) >= (ours.tokens_per_second or 0)
    assert says(config, quantization, gpu) is no_slower


@pytest.mark.parametrize("checkpointing", ["None", "Selective", "Full"])
@pytest.mark.parametrize("gpu", KNOWN, ids=lambda gpu: gpu.name)
def test_advice_keeps_to_the_recomputation_that_the_run_asks_for(gpu: Gpu, checkpointing: str) -> None:
    """16 bits that fit only with more recomputation than the run allows would not fit when it is followed."""
    case = Case(
        model=llama(),
        spec={
            "quantization": "NF4",
            "training": {"activationCheckpointing": checkpointing},
        },
        gpu=gpu,
        rows=SHORT,
    )
    if CODE in case.said():
        assert case.changed("quantization", "None").plan().fits
    tight = case.changed("quantization", "None")
    if "QuantizationWouldFit" in tight.said():
        assert tight.changed("quantization", "NF4").plan().fits
