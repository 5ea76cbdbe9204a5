"""Main memory that a merge takes: counted where the whole model is in it, and otherwise not."""

import dataclasses
from typing import Any

import pytest
from tests.unit.advice_facts import GIB, LLAMA, MIXTURE, make_config
from tests.unit.fit_models import GEMMA_3, llama

from lora_trainer.plan.adapter import plan_adapter
from lora_trainer.plan.architecture import ModelArchitecture
from lora_trainer.plan.choice import pod_memory
from lora_trainer.plan.families import architecture_of
from lora_trainer.plan.memory import merge_memory
from lora_trainer.plan.planning import plan_by_weights

TIED = architecture_of({**llama(), "tie_word_embeddings": True})
GEMMA = architecture_of(GEMMA_3)
MOLMO = architecture_of({"model_type": "molmo2", "text_config": llama(model_type="molmo2_text"), "vision_config": {}})
EXPERTS = {"targetParameters": ["experts.down_proj"]}
OUTPUT = "pvc://adapters/tone"


@pytest.mark.parametrize("merge", ["Merged", "Both"])
@pytest.mark.parametrize(
    ("shape", "lora", "precision", "per_parameter"),
    [
        (MIXTURE, EXPERTS, "Auto", 5.5),
        (MIXTURE, EXPERTS, "FP32", 10.5),
        (TIED, {"modulesToSave": ["lm_head"]}, "Auto", 12 * TIED.embeddings[1] / TIED.parameters),
        (TIED, {"modulesToSave": ["embed_tokens"]}, "FP32", 4 + 12 * TIED.embeddings[1] / TIED.parameters),
        (MOLMO, {}, "Auto", 5.5),
        (MOLMO, {"modulesToSave": ["lm_head"]}, "FP32", 10.5),
        (GEMMA, {}, "FP32", 0),
        (MIXTURE, {}, "FP32", 0),
        (TIED, {}, "Auto", 0),
        (LLAMA, {"modulesToSave": ["lm_head"]}, "Auto", 0),
    ],
    ids=[
        "experts",
        "experts in fp32",
        "tied head",
        "tied embeddings in fp32",
        "stacked matrices",
        "stacked matrices in fp32",
        "older names",
        "mixture",
        "tied",
        "untied head",
    ],
)
def test_a_merge_counts_where_the_whole_model_is_in_memory(
    shape: ModelArchitecture, lora: dict[str, Any], precision: str, per_parameter: float, merge: str
) -> None:
    """Where the files have the model's names it takes a tensor at a time; an adapter alone is not merged."""
    config = make_config(lora=lora, output={"uri": OUTPUT, "merge": merge, "mergePrecision": precision})
    expected = 1_300_000_000 + per_parameter * shape.parameters if per_parameter else 0
    assert merge_memory(config, shape.parameters, shape) == pytest.approx(expected, abs=1)
    alone = make_config(lora=lora, output={"uri": OUTPUT})
    assert merge_memory(alone, shape.parameters, shape) == 0


def test_a_pod_has_the_memory_of_its_merge() -> None:
    """Which is more than a training on a GPU takes; with and without knowledge of the layers."""
    alone = make_config(lora=EXPERTS, output={"uri": OUTPUT})
    merged = make_config(lora=EXPERTS, output={"uri": OUTPUT, "merge": "Both"})
    adapter = plan_adapter(merged.lora, MIXTURE)
    assert pod_memory(alone, MIXTURE, adapter) < 8 * GIB
    assert pod_memory(merged, MIXTURE, adapter) > 5 * MIXTURE.parameters
    assert plan_by_weights(alone, MIXTURE.parameters).pod_memory_bytes < 8 * GIB
    assert plan_by_weights(merged, MIXTURE.parameters).pod_memory_bytes > 5 * MIXTURE.parameters
    on_cpu = dataclasses.replace(merged, device=dataclasses.replace(merged.device, gpus=0))
    assert pod_memory(on_cpu, MIXTURE, adapter) >= pod_memory(merged, MIXTURE, adapter)
