"""Documents for the component tests: a LoRAFineTune, and what a trainer leaves behind."""

from typing import Any

from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.summary import Artifact, DatasetStats, ResolvedRun, Results, Summary, Verification

Object = dict[str, Any]


def finetune(name: str = "tone", **spec: Any) -> Object:
    """A LoRAFineTune manifest; most tests are about trainings, so it skips the preflight."""
    base: Object = {
        "model": {"uri": "hf://acme/model"},
        "dataset": {"uri": "pvc://data/chats.jsonl"},
        "output": {"uri": f"pvc://adapters/{name}"},
        "preflight": "Skip",
    }
    return {
        "apiVersion": "lora-operator.io/v1alpha1",
        "kind": "LoRAFineTune",
        "metadata": {"name": name},
        "spec": {**base, **spec},
    }


def succeeded(**changes: Any) -> str:
    """The termination message of a run that ended well."""
    resolved = ResolvedRun(
        device="cpu",
        compute_dtype="float32",
        model_type="llama",
        model_revision="a" * 40,
        dataset_format="Messages",
        dataset_fingerprint="sha256:" + "b" * 64,
        target_modules=("q_proj", "v_proj"),
        trainable_parameters=1000,
        total_parameters=100_000,
        micro_batch_size=1,
        micro_batch_tokens=4096,
        gradient_accumulation_steps=16,
    )
    dataset = DatasetStats(
        train_samples=160,
        validation_samples=40,
        train_tokens=9000,
        target_tokens=4000,
        longest_tokens=200,
        truncated_samples=0,
        skipped_samples=0,
        duplicate_samples=0,
        split_samples=0,
        learned_answers=310,
        skipped_answers=1,
        unended_answers=2,
    )
    results = Results(
        steps=10,
        trained_tokens=4000,
        train_loss=1.5,
        eval_loss_before=3.0,
        eval_loss_after=2.0,
        eval_loss_before_standard_error=0.1,
        eval_loss_after_standard_error=0.1,
        improvement_standard_error=0.05,
        held_out=True,
        duration_seconds=12.0,
        tokens_per_second=333.0,
        peak_memory_bytes=2**30,
        verification=Verification(loss=2.0, difference=0.0, tolerance=0.001),
    )
    artifact = Artifact(
        uri="pvc://adapters/tone/tone-abcde",
        digest="sha256:" + "c" * 64,
        size_bytes=4096,
        format="peft",
        base_model="hf://acme/model",
        base_revision="a" * 40,
        rank=16,
        servable=True,
    )
    values: Object = {"resolved": resolved, "dataset": dataset, "results": results, "artifact": artifact, **changes}
    return Summary(reason=Reason.SUCCEEDED, message="The adapter is verified", **values).to_message()


def failed(reason: Reason, message: str, **found: Any) -> str:
    """The termination message of a run that ended badly."""
    return Summary(reason=reason, message=message, **found).to_message()
