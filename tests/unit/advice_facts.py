"""Runs as advice sees them: configuration, preflight, plan and end, each with a few changes."""

import dataclasses
from typing import Any

from tests.unit.fit_models import MIXTRAL, llama

from lora_trainer.plan.families import architecture_of
from lora_trainer.plan.hint_checks import Ended, Facts, LeftAlone, Rows, facts_before
from lora_trainer.spec.config import Quantization, TrainConfig
from lora_trainer.spec.manifest import RunOptions, train_config
from lora_trainer.spec.preflight import ModelFacts, OutputCheck, Preflight, RowFacts
from lora_trainer.spec.run_plan import Alternative, RunPlan

GIB = 2**30
LLAMA, MIXTURE = architecture_of(llama()), architecture_of(MIXTRAL)
ROWS = Rows(training=9_800, held_out=200, target_tokens=9_800 * 100)
ENDED = Ended(
    steps=600, planned=600, loss_before=2.0, loss=1.5, improvement_standard_error=0.02, held_out=True, on_the_way={}
)
FALL, RISE = {300: 1.7, 450: 1.55, 500: 1.5}, {300: 1.45, 450: 1.5}
"""Evaluations on the way, from which the loss fell or rose until the end."""
IN_16_BITS = Alternative(change="quantization: None", peak_bytes=18 * GIB, fits=True, tokens_per_second=1100.0)
IN_4_BITS = Alternative(change="quantization: NF4", peak_bytes=9 * GIB, fits=True, tokens_per_second=900.0)


def make_config(**spec: Any) -> TrainConfig:
    """A run on the Hub's Llama, with these sections of its spec."""
    sections = {
        "model": {"uri": "hf://acme/base"},
        "dataset": {"uri": "hf://acme/chats"},
        "output": {"uri": "pvc://adapters/tone"},
        **spec,
    }
    manifest = {
        "apiVersion": "lora-operator.io/v1alpha1",
        "kind": "LoRAFineTune",
        "metadata": {"name": "tone"},
        "spec": sections,
    }
    return train_config(manifest, RunOptions(uid="u", strict=True))


def make_preflight(**rows: Any) -> Preflight:
    """What was found out about Llama-3-8B and 10,000 rows."""
    model = ModelFacts(
        revision="c0ffee",
        model_type="llama",
        parameters=8_030_261_248,
        weight_bytes=16 * GIB,
        linear_modules=224,
        adapted=224,
        target_modules=("q_proj",),
        trainable_parameters=41_943_040,
    )
    found = RowFacts(
        format="Messages",
        fingerprint="sha256:1",
        train_samples=9_800,
        validation_samples=200,
        tokens=9_800 * 400,
        target_tokens=9_800 * 100,
        p50_tokens=380,
        p95_tokens=900,
        longest_tokens=2_000,
        truncated_samples=0,
        truncated_tokens=0,
        skipped_samples=0,
        duplicate_samples=0,
    )
    dataset = dataclasses.replace(found, **rows)
    return Preflight(model=model, dataset=dataset, output=OutputCheck.AT_TRAINING)


def make_plan(**changes: Any) -> RunPlan:
    """A plan on a card with 24 GB, in 16 bits."""
    plan = RunPlan(
        quantization=Quantization.NONE,
        activation_checkpointing=True,
        micro_batch_tokens=4096,
        device="RTX 4090",
        device_bytes=24 * GIB,
        fits=True,
        peak_bytes=18 * GIB,
        weight_bytes=15 * GIB,
        adapter_bytes=GIB,
        activation_bytes=GIB,
        other_bytes=GIB,
        pod_memory_bytes=5 * GIB,
        trainable_parameters=41_943_040,
        adapter_file_bytes=GIB,
        tokens_per_second=1000.0,
        reason="It is the fastest that fits",
    )
    return dataclasses.replace(plan, **changes)


def make_facts(config: TrainConfig | None = None, **changes: Any) -> Facts:
    """A run with nothing to advise, but for the changes."""
    known = facts_before(config or make_config(), None, changes.pop("plan", None), changes.pop("shape", None))
    return dataclasses.replace(
        known,
        **{
            "rows": ROWS,
            "trainable_parameters": 41_943_040,
            "left_alone": known.left_alone or LeftAlone(),
            "ended": ENDED,
            **changes,
        },
    )


def ended_facts(**end: Any) -> Facts:
    """A run with nothing to advise, but for its end."""
    return make_facts(None, ended=dataclasses.replace(ENDED, **end))
