"""What a trainer leaves behind fits the kubelet's 4,096 bytes: what is left out first, and what never."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.contract.advice.codes import Advice
from lora_trainer.contract.config import Quantization
from lora_trainer.contract.preflight import MOST_ROW_BYTES, ModelFacts, OutputCheck, Preflight, RowFacts
from lora_trainer.contract.reasons import Reason
from lora_trainer.contract.run_plan import Alternative, RunPlan
from lora_trainer.contract.summary import MAX_BYTES, DatasetStats, ResolvedRun, SavedState, Summary

NUMBER = st.integers(0, 2**63)
TEXT = st.text(max_size=1500)
SHORT = st.text(max_size=60)
FIXED: dict[str, st.SearchStrategy[Any]] = {
    "first_row": st.text(max_size=MOST_ROW_BYTES),
    "fingerprint": SHORT,
    "format": SHORT,
    "revision": SHORT,
    "model_type": SHORT,
    "target_modules": st.lists(SHORT, max_size=40).map(tuple),
    "output": st.sampled_from(OutputCheck),
    "quantization": st.sampled_from(Quantization),
}


def facts(kind: Any, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Objects of a class of the contract with any value in every field."""
    given_ = {field.name: fields.get(field.name, FIXED.get(field.name, NUMBER)) for field in dataclasses.fields(kind)}
    return st.builds(kind, **given_)


ALTERNATIVES = st.lists(
    st.builds(Alternative, change=SHORT, peak_bytes=NUMBER, fits=st.booleans(), tokens_per_second=st.none()), max_size=8
)
PLANS = facts(
    RunPlan,
    reason=TEXT,
    device=st.none() | TEXT,
    fits=st.none() | st.booleans(),
    tokens_per_second=st.none() | st.floats(0, 1e9),
    price=st.none() | st.floats(0, 1e9),
    price_per_hour=st.none() | st.floats(0, 1e9),
    spread=st.floats(0, 1),
    alternatives=ALTERNATIVES.map(tuple),
    activation_checkpointing=st.booleans(),
    selective_checkpointing=st.booleans(),
    sharded=st.booleans(),
)
PREFLIGHTS = facts(Preflight, model=facts(ModelFacts, known=st.booleans()), dataset=facts(RowFacts))
ADVICE = st.lists(st.builds(Advice, code=SHORT, values=st.dictionaries(SHORT, SHORT, max_size=4)), max_size=16)
SUMMARIES = st.builds(
    Summary,
    reason=st.sampled_from(Reason),
    message=st.text(max_size=3000),
    preflight=st.none() | PREFLIGHTS,
    plan=st.none() | PLANS,
    advice=ADVICE.map(tuple),
)


def without(text: str) -> str:
    """Without what cannot be written, as a message has it."""
    return text.encode(errors="replace").decode()


@given(summary=SUMMARIES)
def test_any_summary_fits_and_keeps_reason_message_and_the_plans_numbers(summary: Summary) -> None:
    """Whatever texts others gave it."""
    text = summary.to_message()
    assert len(text.encode()) <= MAX_BYTES
    found = Summary.from_message(text)
    assert found.reason is summary.reason
    assert found.message[:79] == without(summary.message)[:79] or len(summary.message) <= 80
    if summary.plan is not None:
        assert found.plan is not None
        texts: dict[str, Any] = {"reason": "", "device": None, "alternatives": ()}
        assert dataclasses.replace(found.plan, **texts) == dataclasses.replace(summary.plan, **texts)
        assert without(summary.plan.reason).startswith(found.plan.reason.removesuffix("…"))


def test_texts_that_take_six_bytes_a_character_fit_too() -> None:
    """Characters that JSON escapes, in every text that is never left out."""
    long = "\x01" * 3000
    assert LARGE.plan is not None
    plan = dataclasses.replace(LARGE.plan, reason=long, device=long)
    text = dataclasses.replace(LARGE, message=long, plan=plan).to_message()
    assert len(text.encode()) <= MAX_BYTES
    assert Summary.from_message(text).plan is not None


MODULES = tuple(f"layers.{number}.some_module" for number in range(12))
VALUES: dict[Any, Any] = {tuple[str, ...]: MODULES, int: 1, bool: True, tuple[str, ...] | None: (), int | None: 1}
RESOLVED = {field.name: VALUES.get(field.type, "x") for field in dataclasses.fields(ResolvedRun)}
RESOLVED["kernels_left_out"] = ()
LARGE = Summary(
    reason=Reason.PREFLIGHT_PASSED,
    message="m" * 900,
    resolved=ResolvedRun(**RESOLVED),
    dataset=DatasetStats(
        train_samples=1,
        validation_samples=1,
        train_tokens=1,
        target_tokens=1,
        longest_tokens=1,
        truncated_samples=1,
        skipped_samples=1,
        duplicate_samples=1,
    ),
    checkpoint=SavedState(uri="pvc://adapters/state", step=3),
    preflight=Preflight(
        model=ModelFacts(
            revision="r" * 71,
            model_type="llama",
            parameters=1,
            weight_bytes=1,
            linear_modules=1,
            adapted=1,
            target_modules=MODULES,
            trainable_parameters=1,
        ),
        dataset=RowFacts(
            format="Messages",
            fingerprint="f" * 71,
            train_samples=1,
            validation_samples=1,
            tokens=1,
            target_tokens=1,
            p50_tokens=1,
            p95_tokens=1,
            longest_tokens=1,
            truncated_samples=1,
            truncated_tokens=1,
            skipped_samples=1,
            duplicate_samples=1,
            first_row="w" * 800,
        ),
        output=OutputCheck.CHECKED,
    ),
    plan=RunPlan(
        quantization=Quantization.NF4,
        activation_checkpointing=True,
        micro_batch_tokens=4096,
        peak_bytes=1,
        weight_bytes=1,
        adapter_bytes=1,
        activation_bytes=1,
        other_bytes=1,
        pod_memory_bytes=1,
        trainable_parameters=1,
        adapter_file_bytes=1,
        reason="it is the fastest that fits",
        alternatives=tuple(Alternative(change=f"spec.x: {n}", peak_bytes=n, fits=True) for n in range(5)),
    ),
    advice=tuple(Advice(code=f"Code{number}", values={"rank": "16"}) for number in range(16)),
)
LEFT: dict[str, Callable[[Summary], object]] = {
    "first row": lambda summary: summary.preflight and summary.preflight.dataset.first_row,
    "targets": lambda summary: summary.preflight and summary.preflight.model.target_modules[8:],
    "alternatives": lambda summary: summary.plan and summary.plan.alternatives,
    "more advice": lambda summary: summary.advice[4:],
    "advice": lambda summary: summary.advice,
    "resolved": lambda summary: summary.resolved,
    "dataset": lambda summary: summary.dataset,
    "preflight": lambda summary: summary.preflight,
}
"""What there is, in the order in which it goes."""


def test_what_goes_first_is_gone_before_what_goes_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """With less and less room each part goes in its turn, and all that comes later is still there."""
    seen = set()
    for room in range(len(LARGE.to_message().encode()) + 1200, 300, -20):
        monkeypatch.setattr("lora_trainer.contract.summary.MAX_BYTES", room)
        found = Summary.from_message(LARGE.to_message())
        there = [bool(part(found)) for part in LEFT.values()]
        assert there == sorted(there)
        seen.add(sum(there))
    assert seen == set(range(len(LEFT) + 1))


def test_a_small_summary_is_whole() -> None:
    """Nothing is left out that need not be."""
    small = dataclasses.replace(LARGE, message="m", resolved=None, advice=LARGE.advice[:2])
    assert Summary.from_message(small.to_message()) == small
