"""What a trainer leaves behind fits the kubelet's 4,096 bytes: what is left out first, and what never."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.advice_facts import LLAMA, make_config, make_preflight
from tests.unit.builders import make_artifact, make_results

from lora_trainer.plan.adapter import plan_adapter
from lora_trainer.plan.hints import before
from lora_trainer.plan.planning import plan_of
from lora_trainer.spec.advice import Advice
from lora_trainer.spec.config import Quantization
from lora_trainer.spec.gpus import find_gpu
from lora_trainer.spec.preflight import MOST_ROW_BYTES, ModelFacts, OutputCheck, Preflight, RowFacts
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.run_plan import Alternative, RunPlan
from lora_trainer.spec.summary import (
    MAX_BYTES,
    Artifact,
    DatasetStats,
    ResolvedRun,
    Results,
    SavedState,
    Summary,
    Verification,
)

NUMBER, FRACTION = st.integers(0, 2**63), st.floats(0, 1e9)
TEXT = st.text(max_size=1500)
SHORT = st.text(max_size=60)
NAMES = st.lists(SHORT, max_size=40).map(tuple)
MOST_URI = 1024
"""Characters, by the definition: of where a result or a checkpoint lies."""
ADDRESSES = st.builds("pvc://{:a<{}}".format, st.just("adapters/"), st.integers(9, MOST_URI - 6))
BY_TYPE: dict[Any, st.SearchStrategy[Any]] = {
    int: NUMBER,
    float: FRACTION,
    bool: st.booleans(),
    str: SHORT,
    tuple[str, ...]: NAMES,
    int | None: st.none() | NUMBER,
    float | None: st.none() | FRACTION,
    bool | None: st.none() | st.booleans(),
    str | None: st.none() | TEXT,
    tuple[str, ...] | None: st.none() | NAMES,
    OutputCheck: st.sampled_from(OutputCheck),
    Quantization: st.sampled_from(Quantization),
}


def facts(kind: Any, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Objects of a class of the contract with any value in every field."""
    drawn = {field.name: BY_TYPE[field.type] for field in dataclasses.fields(kind) if field.name not in fields}
    return st.builds(kind, **drawn, **fields)


PREFLIGHTS = facts(
    Preflight,
    model=facts(ModelFacts),
    dataset=facts(RowFacts, first_row=st.text(max_size=MOST_ROW_BYTES)),
)
PARTS: dict[str, st.SearchStrategy[Any]] = {
    "resolved": facts(ResolvedRun),
    "dataset": facts(DatasetStats),
    "results": facts(Results, verification=facts(Verification)),
    "artifact": facts(Artifact, uri=ADDRESSES, serving=TEXT),
    "checkpoint": facts(SavedState, uri=ADDRESSES),
    "preflight": PREFLIGHTS,
    "plan": facts(RunPlan, reason=TEXT, alternatives=st.lists(facts(Alternative), max_size=8).map(tuple)),
}
ADVICE = st.lists(st.builds(Advice, code=SHORT, values=st.dictionaries(SHORT, SHORT, max_size=4)), max_size=16)
SUMMARIES = st.builds(
    Summary,
    reason=st.sampled_from(Reason),
    message=st.text(max_size=3000),
    advice=ADVICE.map(tuple),
    **{name: st.none() | part for name, part in PARTS.items()},
)


def without(text: str) -> str:
    """Without what cannot be written, as a message has it."""
    return text.encode(errors="replace").decode()


@given(summary=SUMMARIES)
def test_any_summary_fits_and_keeps_reason_message_and_the_plans_numbers(summary: Summary) -> None:
    """Whatever texts others gave it; what goes later is there until all that goes earlier is gone."""
    text = summary.to_message()
    assert len(text.encode()) <= MAX_BYTES
    found = Summary.from_message(text)
    assert found.reason is summary.reason
    assert found.message[:79] == without(summary.message)[:79] or len(summary.message) <= 80
    assert found.checkpoint == summary.checkpoint
    if summary.plan is not None and summary.results is None:
        assert found.plan is not None
        texts: dict[str, Any] = {"reason": "", "device": None, "alternatives": ()}
        assert dataclasses.replace(found.plan, **texts) == dataclasses.replace(summary.plan, **texts)
        assert without(summary.plan.reason).startswith(found.plan.reason.removesuffix("…"))
    left = [any(part(found)) for part in LEFT.values()]
    shorter = [tuple(map(bool, part(found))) != tuple(map(bool, part(summary))) for part in LEFT.values()]
    last = max((place for place, is_shorter in enumerate(shorter) if is_shorter), default=0)
    assert not any(left[:last])


def test_texts_that_take_six_bytes_a_character_fit_too() -> None:
    """Characters that JSON escapes, in every text that is never left out."""
    long = "\x01" * 3000
    assert LARGE.plan is not None
    plan = dataclasses.replace(LARGE.plan, reason=long, device=long)
    far = SavedState(uri="pvc://".ljust(MOST_URI, "a"), step=2**63)
    text = dataclasses.replace(LARGE, message=long, plan=plan, checkpoint=far).to_message()
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
        device="d" * 100,
        reason="it is the fastest that fits" + "." * 100,
        alternatives=tuple(Alternative(change=f"spec.x: {n}", peak_bytes=n, fits=True) for n in range(5)),
    ),
    advice=tuple(Advice(code=f"Code{number}", values={"rank": "16"}) for number in range(16)),
)
WENT_WELL = dataclasses.replace(LARGE, reason=Reason.SUCCEEDED, results=make_results(), artifact=make_artifact())
"""With all that a summary has, more than any run's."""


def texts_of(plan: RunPlan) -> tuple[bool, bool]:
    """Whether the plan's texts are longer than they are at last."""
    return len(plan.reason) > 80, plan.device is not None and len(plan.device) > 80


LEFT: dict[str, Callable[[Summary], tuple[object, ...]]] = {
    "first row": lambda summary: (summary.preflight and summary.preflight.dataset.first_row,),
    "targets": lambda summary: (
        summary.preflight and summary.preflight.model.target_modules[8:],
        summary.resolved and summary.resolved.target_modules[8:],
    ),
    "alternatives": lambda summary: (summary.plan and summary.plan.alternatives,),
    "plan beside results": lambda summary: (summary.results and summary.plan,),
    "more advice": lambda summary: (summary.advice[4:],),
    "advice": lambda summary: (summary.advice,),
    "message, resolved": lambda summary: (len(summary.message) > 256, summary.resolved),
    "dataset": lambda summary: (summary.dataset,),
    "preflight": lambda summary: (summary.preflight,),
    "results, artifact": lambda summary: (summary.results, summary.artifact),
    "texts": lambda summary: (
        len(summary.message) > 80,
        *(texts_of(summary.plan) if summary.plan and not summary.results else ()),
    ),
}
"""What there is, in the order in which it goes; what goes together is in one tuple."""


@pytest.mark.parametrize(
    ("summary", "steps"),
    [
        (LARGE, LEFT.keys() - {"plan beside results", "results, artifact"}),
        (WENT_WELL, LEFT.keys()),
    ],
    ids=["unfinished", "went well"],
)
def test_what_goes_first_is_gone_before_what_goes_next(
    monkeypatch: pytest.MonkeyPatch, summary: Summary, steps: set[str]
) -> None:
    """With less and less room each part goes in its turn, and all that comes later is still there."""
    seen = set()
    for room in range(len(summary.to_message().encode()) + 2400, 300, -20):
        monkeypatch.setattr("lora_trainer.spec.summary.MAX_BYTES", room)
        found = Summary.from_message(summary.to_message())
        parts = [part(found) for name, part in LEFT.items() if name in steps]
        assert all(len(set(map(bool, part))) == 1 for part in parts)
        there = [bool(part[0]) for part in parts]
        assert there == sorted(there)
        assert found.checkpoint == summary.checkpoint
        seen.add(sum(there))
    assert seen == set(range(len(steps) + 1))


def test_a_run_that_went_well_leaves_out_its_plan_before_its_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its results have what was estimated; one that failed keeps the numbers."""
    went_well = dataclasses.replace(LARGE, results=make_results(), preflight=None)
    failed = dataclasses.replace(went_well, results=None)
    for summary, goes in ((went_well, True), (failed, False)):
        seen = set()
        for room in range(4096, 1000, -50):
            monkeypatch.setattr("lora_trainer.spec.summary.MAX_BYTES", room)
            found = Summary.from_message(summary.to_message())
            seen.add((found.plan is not None, found.advice == summary.advice))
        assert ((False, True) in seen) is goes
        assert ((True, False) in seen) is not goes


def test_much_advice_leaves_the_first_row_its_room() -> None:
    """Beside the alternatives of Llama-3-8B on an H100, where all of them fit."""
    config = make_config(
        quantization="NF4",
        lora={"rank": 64, "alpha": 256, "dropout": "0.05"},
        training={"epochs": "3", "learningRate": "0.002"},
    )
    rows = {"truncated_samples": 1000, "truncated_tokens": 1_000_000, "shared_samples": 20, "duplicate_samples": 2000}
    found = make_preflight(**rows, fingerprint="sha256:" + "ab" * 32, first_row="w" * MOST_ROW_BYTES)
    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    found = dataclasses.replace(
        found, model=dataclasses.replace(found.model, revision="c" * 40, target_modules=targets)
    )
    plan = plan_of(config, LLAMA, plan_adapter(config.lora, LLAMA), tokens=3_920_000, rows=9_800, gpu=find_gpu("H100"))
    advice = before(config, found, plan, LLAMA)[:7]
    assert len(advice) == 7
    summary = Summary(reason=Reason.PREFLIGHT_PASSED, message="m" * 250, preflight=found, plan=plan, advice=advice)
    assert plan.alternatives
    assert Summary.from_message(summary.to_message()) == summary


def test_a_small_summary_is_whole() -> None:
    """Nothing is left out that need not be."""
    small = dataclasses.replace(LARGE, message="m", resolved=None, advice=LARGE.advice[:2])
    assert Summary.from_message(small.to_message()) == small
