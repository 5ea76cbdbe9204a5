"""What a run takes on the claim of its checkpoints."""

from typing import Any

import pytest
from tests.unit.builders import UID, make_manifest
from tests.unit.fit_models import llama

from lora_trainer.plan.adapter import plan_adapter
from lora_trainer.plan.families import architecture_of
from lora_trainer.plan.memory import checkpoint_bytes, claim_bytes
from lora_trainer.spec.manifest import RunOptions, train_config

MIB = 2**20
SHAPE = architecture_of(llama())
TRAINED = 41_943_040
"""Of Llama-3-8B at rank 16 on all linear layers."""
MODEL = 2 * SHAPE.parameters
HEAD = SHAPE.head[1]
"""Its parameters, of which PiSSA takes no start values."""


@pytest.mark.parametrize(
    ("spec", "checkpoint", "whole"),
    [
        ({}, 480 * MIB, (3 * 480 + 160) * MIB),
        ({"checkpoint": {"keep": 1}}, 480 * MIB, (2 * 480 + 160) * MIB),
        ({"training": {"evalSteps": 5, "earlyStoppingPatience": 2}}, 640 * MIB, (3 * 640 + 160) * MIB),
        ({"lora": {"init": "PiSSA"}}, 640 * MIB, (3 * 640 + 320) * MIB),
        (
            {"lora": {"init": "PiSSA", "modulesToSave": ["lm_head"]}},
            640 * MIB + 12 * HEAD,
            (3 * 640 + 320) * MIB + 40 * HEAD,
        ),
        ({"output": {"uri": "pvc://a/b", "merge": "Both"}}, 480 * MIB, (3 * 480 + 160) * MIB + MODEL),
        (
            {"output": {"uri": "pvc://a/b", "merge": "Merged", "mergePrecision": "FP32"}},
            480 * MIB,
            (3 * 480 + 160) * MIB + 2 * MODEL,
        ),
    ],
)
def test_a_checkpoint_and_what_lies_beside_it_are_counted(spec: dict[str, Any], checkpoint: int, whole: int) -> None:
    """12 bytes for each trained parameter, one checkpoint more than are kept, and the result."""
    config = train_config(make_manifest(spec=spec), RunOptions(uid=UID))
    adapter = plan_adapter(config.lora, SHAPE)
    assert (checkpoint_bytes(config, adapter), claim_bytes(config, SHAPE, adapter)) == (checkpoint, whole)


def test_the_state_of_an_8_bit_optimizer_is_smaller() -> None:
    """About 2 bytes for each parameter instead of 8."""
    config = train_config(make_manifest(spec={"training": {"optimizer": "AdamW8bit"}}), RunOptions(uid=UID))
    found = checkpoint_bytes(config, plan_adapter(config.lora, SHAPE))
    assert 6 * TRAINED < found < 6.1 * TRAINED
