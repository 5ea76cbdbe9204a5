"""What docs/trainer-model.md says dropout costs is what the fit model computes."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.fit_models import llama

from lora_trainer.contract.config import Layers, LoraConfig, Quantization
from lora_trainer.contract.fit.adapter import plan_adapter
from lora_trainer.contract.fit.families import shape_of
from lora_trainer.contract.fit.memory import Memory, Setting, gpu_memory

PAGE = Path(__file__).resolve().parents[2] / "docs/trainer-model.md"
GIB = 2**30
LAYERS = {
    "all linear layers": Layers.ALL_LINEAR,
    "attention": Layers.ATTENTION,
    "query and value": Layers.QUERY_VALUE,
}


def memory(layers: Layers, *, recompute: bool, dropout: bool) -> Memory:
    """Of Llama-3-8B in bf16."""
    setting = Setting(quantization=Quantization.NONE, recompute=recompute, tokens=4096, row=2048)
    shape = shape_of(llama())
    return gpu_memory(shape, plan_adapter(LoraConfig(layers=layers), shape), replace(setting, dropout=dropout))


def rows() -> list[list[str]]:
    """Of the page's table under Dropout, without its head."""
    section = PAGE.read_text(encoding="utf-8").partition("### Dropout\n")[2].partition("\n### ")[0]
    lines = [line.strip() for line in section.splitlines() if line.strip().startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_page_has_every_preset_and_recomputation() -> None:
    """A row that is lost would be held by nothing."""
    assert [(row[0], row[1]) for row in rows()] == [
        *((name, "kept") for name in LAYERS),
        ("all linear layers", "recomputed"),
    ]


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row[0]}, {row[1]}")
def test_the_numbers_of_a_row_are_those_of_the_fit_model(row: list[str]) -> None:
    """In GiB with one decimal, and the activations' growth in per cent."""
    layers, recompute = LAYERS[row[0]], row[1] == "recomputed"
    without, with_it = (memory(layers, recompute=recompute, dropout=dropout) for dropout in (False, True))
    assert row[2:] == [
        f"{without.activations / GIB:.1f}",
        f"{with_it.activations / GIB:.1f}",
        f"{100 * (with_it.activations / without.activations - 1):.1f} %",
        f"{without.total / GIB:.1f}",
        f"{with_it.total / GIB:.1f}",
    ]
