"""The speed that the acceptance of a GPU measures: in the manner in which a run would train there."""

import itertools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks.acceptance import speed
from benchmarks.acceptance.bench import Bench
from benchmarks.acceptance.findings import Outcome, State
from benchmarks.acceptance.models import adapted_on
from benchmarks.acceptance.shapes import LLAMA_3_2_1B, LLAMA_3_8B, MIXTURE_24_LAYERS, ModelArchitecture
from tests.unit.test_fit_choice import run

from lora_trainer.model.device import Device
from lora_trainer.plan.adapter import plan_adapter
from lora_trainer.plan.choice import Fit, choose
from lora_trainer.plan.families import architecture_of
from lora_trainer.plan.memory import Setting
from lora_trainer.plan.speed import flops_per_token
from lora_trainer.spec.config import ActivationCheckpointing, LoraConfig, Quantization
from lora_trainer.spec.gpus import KNOWN, Gpu, by_product
from lora_trainer.train.resolve_auto import gpu_of

H100 = Device(
    torch_device=torch.device("cuda", 0), name="NVIDIA H100 80GB HBM3", dtype=torch.bfloat16, capability=(9, 0)
)
SHAPES = {"Llama-3-8B": LLAMA_3_8B, "Llama-3.2-1B": LLAMA_3_2_1B, "24-layer mixture": MIXTURE_24_LAYERS}
MOST_OF_THE_PEAK = 0.5
"""Of all operations that are done: what well-run trainings reach is 0.4, see `plan.speed`."""
LORA = LoraConfig(rank=speed.RANK, alpha=2 * speed.RANK)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def tiny(cpu: Device) -> Bench:
    """Tiny models on a CPU that takes itself for an H100."""
    return Bench(device=replace(cpu, name=H100.name, dtype=torch.bfloat16), tiny=True)


def measured(bench: Bench) -> Outcome:
    """What the part finds of its tiny model."""
    (check,) = speed.checks(bench)
    return check.run()


def test_an_h100_keeps_the_activations_of_llama_3_8b(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a run there does: recomputed, 45 % of the peak would be 68 % of it."""
    properties = SimpleNamespace(total_memory=85_500_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    gpu = gpu_of(H100)
    assert gpu is not None
    found = speed.modes(gpu, LLAMA_3_8B, Quantization.NONE, 4096)
    assert found[0] is ActivationCheckpointing.NONE


@pytest.mark.parametrize("gpu", KNOWN, ids=lambda gpu: gpu.name)
def test_the_manner_is_the_one_that_a_run_would_choose(gpu: Gpu) -> None:
    """On every GPU whose memory takes the model in some way, the mixture's, too."""
    compared = 0
    for (name, shape), quantization, tokens in itertools.product(
        SHAPES.items(), (Quantization.NONE, Quantization.NF4), speed.TOKENS
    ):
        if name == "24-layer mixture" and quantization is not Quantization.NONE:
            continue
        chosen = planned(shape, gpu, quantization, tokens)
        if chosen is not None:
            assert speed.modes(gpu, shape, quantization, tokens)[0] is chosen, (name, quantization, tokens)
            compared += 1
    assert compared


def planned(
    shape: ModelArchitecture, gpu: Gpu, quantization: Quantization, tokens: int
) -> ActivationCheckpointing | None:
    """By the plan of a run with one such row in a micro-batch; None where none fits."""
    config = run()
    training = replace(config.training, max_sequence_length=tokens, micro_batch_size=1)
    config = replace(config, quantization=quantization, lora=LORA, training=training)
    counted = architecture_of(shape)
    found = choose(config, counted, plan_adapter(LORA, counted), gpu)
    return found.option.checkpointing if found.option.fit is Fit.FITS else None


@pytest.mark.parametrize("wanted", speed.WANTED, ids=str)
def test_a_sound_gpu_can_reach_what_is_wanted(wanted: tuple[str, Quantization, int]) -> None:
    """With all the operations that the measured step does, those that are done again included."""
    name, quantization, tokens = wanted
    gpu = by_product(H100.name)
    assert gpu is not None
    checkpointing = speed.modes(gpu, SHAPES[name], quantization, tokens)[0]
    shape = architecture_of(SHAPES[name])
    setting = Setting(
        quantization=quantization,
        recompute=checkpointing.recomputes,
        selective=checkpointing is ActivationCheckpointing.SELECTIVE,
        tokens=tokens,
        row=tokens,
    )
    done = flops_per_token(shape, plan_adapter(LORA, shape), setting)
    assert speed.WANTED[wanted] * done / (4 * shape.parameters) <= MOST_OF_THE_PEAK


def test_a_speed_below_what_is_wanted_is_told_and_fails_no_gpu(tiny: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures stay, with the manner in which they were measured."""
    monkeypatch.setitem(speed.WANTED, ("tiny", Quantization.NF4, 64), 0.45)
    outcome = measured(tiny)
    assert (outcome.state, "below the wanted 45.0%" in outcome.said) == (State.MEASURED, True), outcome.said
    assert outcome.figures["wanted_mfu"] == 0.45
    assert (outcome.figures["activation_checkpointing"], "activations kept" in outcome.said) == ("None", True)
    monkeypatch.setitem(speed.WANTED, ("tiny", Quantization.NF4, 64), 0.0)
    assert measured(tiny).state is State.PASSED


def test_what_is_short_of_memory_recomputes_more(tiny: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a run does; the estimate may be too low."""
    asked: list[bool] = []

    def short(*given: Any, recompute: bool, **named: Any) -> Any:
        asked.append(recompute)
        if not recompute:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return adapted_on(*given, recompute=recompute, **named)

    monkeypatch.setattr(speed, "adapted_on", short)
    outcome = measured(tiny)
    assert (asked, outcome.figures["activation_checkpointing"]) == ([False, True], "Selective")
