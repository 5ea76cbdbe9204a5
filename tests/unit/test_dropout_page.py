"""What docs/trainer-model.md says dropout costs is what the fit model computes."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.fit_models import llama

from lora_trainer.contract.config import Layers, LoraConfig, Quantization
from lora_trainer.contract.fit.adapter import plan_adapter
from lora_trainer.contract.fit.families import shape_of
from lora_trainer.contract.fit.memory import Setting, layer_bytes

PAGE = Path(__file__).resolve().parents[2] / "docs/trainer-model.md"
GIB = 2**30
LAYERS = {
    "all linear layers": Layers.ALL_LINEAR,
    "attention": Layers.ATTENTION,
    "query and value": Layers.QUERY_VALUE,
}


def kept(layers: Layers, *, dropout: bool) -> float:
    """Bytes that all layers of Llama-3-8B keep of 4,096 tokens in bf16."""
    setting = Setting(quantization=Quantization.NONE, recompute=False, tokens=4096, row=2048)
    shape = shape_of(llama())
    ranks = plan_adapter(LoraConfig(layers=layers), shape).ranks
    setting = replace(setting, dropout=dropout)
    return 4096 * sum(layer_bytes(layer, each, setting) for layer, each in zip(shape.layers, ranks, strict=True))


def rows() -> list[list[str]]:
    """Of the page's table under Dropout, without its head."""
    section = PAGE.read_text(encoding="utf-8").partition("### Dropout\n")[2].partition("\n### ")[0]
    lines = [line.strip() for line in section.splitlines() if line.strip().startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_page_has_every_preset_with_attention() -> None:
    """A row that is lost would be held by nothing."""
    assert [row[0] for row in rows()] == list(LAYERS)


@pytest.mark.parametrize("row", rows(), ids=lambda row: str(row[0]))
def test_the_numbers_of_a_row_are_those_of_the_fit_model(row: list[str]) -> None:
    """In GiB with one decimal, and the growth in per cent."""
    without, with_it = (kept(LAYERS[row[0]], dropout=dropout) for dropout in (False, True))
    assert row[1:] == [f"{without / GIB:.1f} GiB", f"{with_it / GIB:.1f} GiB", f"{100 * (with_it / without - 1):.1f} %"]
