"""What a preflight reports, for tests."""

from typing import Any

from lora_trainer.spec.config import Quantization
from lora_trainer.spec.preflight import ModelFacts, OutputCheck, Preflight, RowFacts
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.run_plan import Alternative, RunPlan
from lora_trainer.spec.summary import Summary

Object = dict[str, Any]


def make_preflight() -> Preflight:
    """What a preflight found out."""
    model = ModelFacts(
        revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
        model_type="llama",
        parameters=134_515_008,
        weight_bytes=269_060_552,
        linear_modules=211,
        adapted=210,
        target_modules=("q_proj", "v_proj"),
        trainable_parameters=4_884_480,
    )
    rows = RowFacts(
        format="Messages",
        fingerprint="sha256:" + "ab" * 32,
        train_samples=200,
        validation_samples=50,
        validation_rows=50,
        tokens=40_000,
        target_tokens=21_000,
        p50_tokens=180,
        p95_tokens=470,
        longest_tokens=612,
        truncated_samples=2,
        truncated_tokens=300,
        skipped_samples=1,
        duplicate_samples=3,
        sampled=100,
        tokens_standard_error=200,
        first_row='[["user: hello",false],["hi",true]]',
    )
    return Preflight(model=model, dataset=rows, output=OutputCheck.AT_TRAINING)


def make_plan(**changes: Any) -> RunPlan:
    """What a run is expected to take."""
    other = Alternative(change="spec.quantization: NF4", peak_bytes=9_300_000_000, fits=True, tokens_per_second=2500.0)
    values: Object = {
        "quantization": Quantization.NONE,
        "activation_checkpointing": True,
        "micro_batch_tokens": 4096,
        "device": "NVIDIA H100 80GB HBM3",
        "device_bytes": 85_899_345_920,
        "fits": True,
        "peak_bytes": 20_079_050_752,
        "weight_bytes": 16_060_000_000,
        "adapter_bytes": 670_000_000,
        "activation_bytes": 2_600_000_000,
        "other_bytes": 750_000_000,
        "pod_memory_bytes": 12_000_000_000,
        "trainable_parameters": 41_943_040,
        "adapter_file_bytes": 83_900_000,
        "tokens_per_second": 12473.25,
        "seconds": 3600,
        "price": 4.5,
        "price_per_hour": 1.5,
        "spread": 0.1,
        "reason": "bf16 fits, and is faster than NF4",
        "alternatives": (other,),
    }
    return RunPlan(**{**values, **changes})


def make_report(message: str = "acme/base and 200 rows are at hand", **changes: Any) -> Summary:
    """The end of a preflight that found nothing wrong."""
    found: Object = {"preflight": make_preflight(), "plan": make_plan(), **changes}
    return Summary(reason=Reason.PREFLIGHT_PASSED, message=message, **found)
