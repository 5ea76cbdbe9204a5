"""Advice on micro-batches in 4 bits: said where a larger one fits and can be filled, else silent."""

import dataclasses
from typing import Any

import pytest
from tests.unit.advice_facts import GIB, LLAMA, ROWS, make_config, make_facts, make_plan

from lora_trainer.contract.advice.codes import Code
from lora_trainer.contract.advice.rules import after
from lora_trainer.contract.config import Quantization, TrainConfig

NF4 = make_config(quantization="NF4")
ONE_ROW = make_config(quantization="NF4", training={"microBatchSize": 1})
SMALL_STEP = make_config(quantization="NF4", training={"effectiveBatchSize": 8})
NO_SUCH_LAYER = make_config(quantization="NF4", lora={"layerIndices": [99]}, training={"microBatchSize": 1})
IN_NF4: dict[str, Any] = {"quantization": Quantization.NF4, "micro_batch_tokens": 2_048}
T4 = make_plan(**IN_NF4, device="T4", device_bytes=15 * GIB)
H100 = make_plan(**IN_NF4, device="H100", device_bytes=79 * GIB)
NO_DEVICE = make_plan(**IN_NF4, device=None, device_bytes=None)
SHORT, TINY = (dataclasses.replace(ROWS, tokens=9_800 * mean) for mean in (200, 100))

SAID: dict[str, tuple[TrainConfig, dict[str, Any]]] = {
    "a size that was asked for, and no plan": (ONE_ROW, {"rows": None}),
    "a size that was asked for, and no device": (ONE_ROW, {"plan": NO_DEVICE, "shape": LLAMA}),
    "a size that was asked for, and layers that are not known": (ONE_ROW, {"plan": T4}),
    "a size that was asked for on a GPU with room": (ONE_ROW, {"plan": H100, "shape": LLAMA}),
    "an adapter that the model cannot have": (NO_SUCH_LAYER, {"plan": H100, "shape": LLAMA}),
    "few rows in a step": (SMALL_STEP, {"plan": H100, "shape": LLAMA, "rows": SHORT}),
}
SILENT: dict[str, tuple[TrainConfig, dict[str, Any]]] = {
    "what memory keeps small": (NF4, {"plan": T4}),
    "what memory would keep small": (ONE_ROW, {"plan": T4, "shape": LLAMA}),
    "few rows in a step, and no room for more": (SMALL_STEP, {"plan": T4, "shape": LLAMA, "rows": SHORT}),
    "rows that are too short for 32 to fill it": (SMALL_STEP, {"rows": TINY}),
}


def is_said(config: TrainConfig, changes: dict[str, Any]) -> bool:
    """Whether the run is advised to have larger micro-batches."""
    return Code.SMALL_MICRO_BATCH in [one.code for one in after(make_facts(config, **changes))]


@pytest.mark.parametrize("case", SAID)
def test_a_larger_micro_batch_is_advised_where_it_may_fit(case: str) -> None:
    """By the choice where layers and device are known, else by what the run asks for."""
    assert is_said(*SAID[case])


@pytest.mark.parametrize("case", SILENT)
def test_no_micro_batch_is_advised_that_cannot_be(case: str) -> None:
    """By the choice, which takes a smaller one where that is faster, or by what the plan settled."""
    assert not is_said(*SILENT[case])
