"""Rows keep the rotary frequencies of their own length, whatever they are computed together with."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tests.trainer.conftest import make_config
from tests.trainer.test_attention import SIZES
from tests.trainer.test_execution_config import some_rows

from lora_trainer.data.store import Examples
from lora_trainer.data.tokens import Example
from lora_trainer.distributed.collectives import Ranks
from lora_trainer.model.device import Device
from lora_trainer.model.fast import isolate
from lora_trainer.model.loading import load_model
from lora_trainer.model.rope import STEADY, Frequencies, forget_lengths, frequencies_of
from lora_trainer.spec.config import Quantization
from lora_trainer.storage.base import open_folder
from lora_trainer.train import execution_config
from lora_trainer.train.batches import MicroBatchLimit
from lora_trainer.train.evaluate import evaluate
from lora_trainer.train.noise import measure_noise
from lora_trainer.train.objective import SFT
from lora_trainer.train.step import run_step

LONG: Mapping[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.0, 1.0, 1.0],
    "long_factor": [1.5, 4.0, 9.0, 20.0],
}
DYNAMIC: Mapping[str, Any] = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 64.0}
PLAIN: Mapping[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
PHI: tuple[str, Mapping[str, Any]] = ("Phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 8})
LLAMA: tuple[str, Mapping[str, Any]] = ("Llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": 8})
GEMMA: tuple[str, Mapping[str, Any]] = (
    "Gemma3Text",
    {
        "head_dim": 8,
        "query_pre_attn_scalar": 1,
        "max_position_embeddings": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"sliding_attention": PLAIN, "full_attention": DYNAMIC},
    },
)
MODELS = pytest.mark.parametrize(("kind", "options"), [PHI, LLAMA, GEMMA], ids=["longrope", "dynamic", "by layer"])
LENGTHS = (6, 12, 8, 5, 14, 12, 9, 6)


def config_of(kind: str, options: Mapping[str, Any]) -> Any:
    """A configuration; what Transformers writes into the options stays with it."""
    own = {name: _copy(value) for name, value in options.items()}
    return getattr(transformers, f"{kind}Config")(**{**SIZES, **own})


def _copy(value: Any) -> Any:
    return {name: _copy(inner) for name, inner in value.items()} if isinstance(value, dict) else value


def make(kind: str, options: Mapping[str, Any]) -> Any:
    """A random two-layer model, as it is loaded."""
    torch.manual_seed(0)
    factory: Any = transformers.AutoModelForCausalLM
    model = factory.from_config(config_of(kind, options)).eval()
    forget_lengths(model)
    return model


def rows() -> Examples:
    """Random rows on both sides of 8 tokens, all of whose tokens are learned."""
    random = np.random.default_rng(0)
    drawn = (random.integers(3, 101, length) for length in LENGTHS)
    return Examples.of(Example(input_ids=ids, labels=ids, truncated=False) for ids in drawn)


def losses(model: Any, examples: Examples, cpu: Device, limit: MicroBatchLimit) -> tuple[float, ...]:
    """Of each row."""
    head = model.get_output_embeddings()
    return evaluate(model, head, examples, cpu, lambda _rows: None, limit=limit).sums


def alone(kind: str, options: Mapping[str, Any], cpu: Device) -> list[float]:
    """Of each row by itself, in a model that has seen no other, with Transformers' own attention."""
    limit = MicroBatchLimit(tokens=1, longest=max(LENGTHS))
    return [losses(make(kind, options), rows()[at : at + 1], cpu, limit)[0] for at in range(len(LENGTHS))]


@pytest.mark.parametrize("packed", [True, False])
@MODELS
def test_a_row_has_the_loss_that_it_has_alone(
    kind: str, options: Mapping[str, Any], *, packed: bool, cpu: Device
) -> None:
    """In evaluations and in the steps of the training, in micro-batches of five rows; without the rule it has not."""
    model, wanted = make(kind, options), alone(kind, options, cpu)
    assert isolate(model)
    limit = MicroBatchLimit(tokens=72, longest=max(LENGTHS), packed=packed, frequencies=frequencies_of(model))
    assert losses(model, rows(), cpu, limit) == pytest.approx(wanted, rel=1e-5)
    mixed = losses(model, rows(), cpu, replace(limit, frequencies=STEADY))
    assert mixed != pytest.approx(wanted, rel=1e-4), "the comparison would catch it"

    head = model.get_output_embeddings()
    adapted: Any = SimpleNamespace(model=model, head=head)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    step: dict[str, Any] = {"device": cpu, "scaler": scaler, "ranks": Ranks(), "objective": SFT, "weights": {"loss": 1}}
    assert float(run_step(adapted, list(rows()), limit=limit, **step)) == pytest.approx(sum(wanted), rel=1e-5)
    assert float(run_step(adapted, list(rows()), limit=replace(limit, tokens=14), **step)) == pytest.approx(
        sum(wanted), rel=1e-5
    )


@MODELS
def test_the_noise_is_measured_within_the_same_frequencies(kind: str, options: Mapping[str, Any], cpu: Device) -> None:
    """It is rounding alone, and no excuse for a result that differs by more."""
    model = make(kind, options)
    head = model.get_output_embeddings()
    limit = MicroBatchLimit(tokens=200, longest=max(LENGTHS), frequencies=frequencies_of(model))
    first = evaluate(model, head, rows(), cpu, lambda _rows: None, limit=limit)
    noise = measure_noise(model, head, rows(), cpu, lambda _rows: None, first=first, limit=limit)
    assert noise < 1e-5


@pytest.mark.parametrize(("kind", "options"), [LLAMA, GEMMA], ids=["dynamic", "by layer"])
@pytest.mark.parametrize("length", [6, 8, 12])
def test_a_loaded_model_forgets_longer_rows(
    kind: str, options: Mapping[str, Any], length: int, cpu: Device, tmp_path: Path
) -> None:
    """Also `ask` and the verification read it so: a prompt's answer does not depend on those before it."""
    make(kind, options).save_pretrained(tmp_path)
    loaded = load_model(open_folder(tmp_path), Quantization.NONE, cpu)
    ids = torch.randint(3, 101, (1, 14), generator=torch.Generator().manual_seed(1))

    def said(tokens: int) -> torch.Tensor:
        found: torch.Tensor = loaded.model(input_ids=ids[:, :tokens], use_cache=False).logits
        return found

    with torch.no_grad():
        first = said(length)
        said(14)
        assert torch.equal(said(length), first)


NESTED = {"sliding_attention": PLAIN, "full_attention": {**LONG, "original_max_position_embeddings": 16}}


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        pytest.param(lambda: config_of("Llama", {}), STEADY, id="default"),
        pytest.param(lambda: config_of("GPT2", {}), STEADY, id="learned positions"),
        pytest.param(lambda: config_of(*PHI), Frequencies(switches=(8,)), id="outside of the parameters"),
        pytest.param(
            lambda: config_of("Llama", {"rope_parameters": {**LONG, "original_max_position_embeddings": 16}}),
            Frequencies(switches=(16,)),
            id="within the parameters",
        ),
        pytest.param(
            lambda: config_of("Llama", {"rope_scaling": {**LONG, "original_max_position_embeddings": 16}}),
            Frequencies(switches=(16,)),
            id="by their old name",
        ),
        pytest.param(lambda: config_of(*LLAMA), Frequencies(grow=8), id="dynamic"),
        pytest.param(lambda: config_of(*GEMMA), Frequencies(grow=8), id="dynamic for some layers"),
        pytest.param(
            lambda: config_of("Gemma3Text", {**GEMMA[1], "rope_parameters": NESTED}),
            Frequencies(switches=(16,)),
            id="longrope for some layers",
        ),
        pytest.param(
            lambda: transformers.Gemma3Config(text_config=config_of(*GEMMA).to_dict()),
            Frequencies(grow=8),
            id="in a language model that sees",
        ),
    ],
)
def test_the_configuration_says_where_frequencies_change(config: Callable[[], Any], wanted: Frequencies) -> None:
    """By the places that Transformers reads."""
    assert frequencies_of(SimpleNamespace(config=config())) == wanted


def test_lengths_are_alike_up_to_where_frequencies_change() -> None:
    """The limit itself is on the short side. Beyond it, LongRoPE has one set, dynamic NTK one for each length."""
    longrope, dynamic = Frequencies(switches=(8, 16)), Frequencies(grow=8)
    assert [longrope.at(length)[0] for length in (2, 8, 9, 16, 17)] == [0, 0, 1, 1, 2]
    assert dynamic.at(2) == dynamic.at(8) < dynamic.at(9) < dynamic.at(10)
    assert STEADY.at(2) == STEADY.at(10**6)


def test_a_run_cuts_micro_batches_by_its_model(cpu: Device, caplog: pytest.LogCaptureFixture) -> None:
    """And says so where it has rows of both kinds."""
    caplog.set_level("INFO")
    setup: Any = SimpleNamespace(config=make_config(training={"kernels": "Reference"}), plan=None)
    adapted: Any = SimpleNamespace(model=make(*PHI))
    for longest, said in ((8, False), (9, True)):
        caplog.clear()
        rows = some_rows(3)
        data: Any = SimpleNamespace(stats=SimpleNamespace(longest_tokens=longest), training=rows, evaluation=rows)
        found = execution_config.choose_execution(setup, adapted, data, cpu, Ranks())
        assert found.limit.frequencies == Frequencies(switches=(8,))
        assert any("share no micro-batch" in message for message in caplog.messages) is said
