"""Advice of the contract: each code said where its rule holds, silent where it does not quite, and never an error."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.unit.advice_facts import (
    ENDED,
    FALL,
    GIB,
    IN_4_BITS,
    IN_16_BITS,
    LLAMA,
    MIXTURE,
    RISE,
    ROWS,
    make_config,
    make_facts,
    make_plan,
    make_preflight,
)
from tests.unit.fit_models import DEEPSEEK_V3

from lora_trainer.plan.families import architecture_of
from lora_trainer.plan.hint_checks import Columns, Facts, LeftAlone
from lora_trainer.plan.hints import RULES, after, before, known_before, spoken
from lora_trainer.spec.advice import Advice, Code, Severity
from lora_trainer.spec.config import DatasetFormat, DeviceConfig, Quantization, TrainConfig, TrainingConfig
from lora_trainer.spec.preflight import Preflight
from lora_trainer.spec.run_plan import RunPlan

Changes = dict[str, Any]


def lora(**fields: Any) -> TrainConfig:
    """A run with this adapter."""
    return make_config(lora=fields)


def training(**fields: Any) -> TrainConfig:
    """A run trained so."""
    return make_config(training=fields)


def rows(**changes: Any) -> Changes:
    """Other rows."""
    return {"rows": dataclasses.replace(ROWS, **changes)}


def ended(**changes: Any) -> Changes:
    """Another end."""
    return {"ended": dataclasses.replace(ENDED, **changes)}


def columns(*unread: str, kind: DatasetFormat = DatasetFormat.PROMPT_COMPLETION) -> Changes:
    """Columns that are not read."""
    return {"columns": Columns(format=kind, read={"prompt": "question", "completion": "answer"}, unread=unread)}


NF4, BITS_16 = make_config(quantization="NF4"), make_config(quantization="None")
IN_NF4 = {"quantization": Quantization.NF4, "tokens_per_second": 1000.0, "alternatives": (IN_16_BITS,)}
TIGHT = {"fits": None, "peak_bytes": 23 * GIB, "alternatives": (IN_4_BITS,)}
ON_CLAIM = {"checkpoint_bytes": 480 * 2**20, "claim_bytes": 2 * GIB}

SAID: dict[Code, tuple[TrainConfig | None, Changes, str]] = {
    Code.RANK_TOO_LOW: (None, rows(target_tokens=100_000_000), "100,000,000 tokens are learned"),
    Code.ALPHA_RATIO: (lora(rank=16, alpha=64), {}, "spec.lora.alpha is 64 at rank 16, a factor of 4"),
    Code.ALPHA_AT_HIGH_RANK: (lora(rank=128), {}, "spec.training.learningRate is 0.0002"),
    Code.FEW_LAYERS: (lora(layers="QueryValue"), {}, "Adapted are QueryValue"),
    Code.SEVERAL_EPOCHS: (training(epochs="3"), {}, "sees each row 3 times"),
    Code.MANY_DUPLICATES: (None, rows(duplicates=500), "Of 10,000 rows 500 are copies"),
    Code.STILL_IMPROVING: (
        None,
        ended(on_the_way=FALL),
        "From step 450 to 600 the held-out loss fell by 0.05 nats; the whole improvement is known to ± 0.02",
    ),
    Code.HELD_OUT_LOSS_ROSE: (
        None,
        ended(on_the_way=RISE),
        "From step 300 to 600 the held-out loss rose by 0.05 nats; the whole improvement is known to ± 0.02",
    ),
    Code.LARGE_BATCH: (training(effectiveBatchSize=33), {}, "effectiveBatchSize is 33"),
    Code.LEARNING_RATE: (training(learningRate="0.002"), {}, "learningRate is 0.002"),
    Code.QUANTIZATION_NOT_NEEDED: (
        NF4,
        {"plan": make_plan(**IN_NF4)},
        "NF4 takes 10% more time than 16 bits, which take 18.0 GiB of 24.0 GiB",
    ),
    Code.QUANTIZATION_WOULD_FIT: (
        BITS_16,
        {"plan": make_plan(**TIGHT)},
        "takes 23.0 GiB of 24.0 GiB, and 9.0 GiB in NF4",
    ),
    Code.COLUMNS_NOT_READ: (
        None,
        columns("id", "Context", "target"),
        "question and answer, but not Context and target",
    ),
    Code.ROWS_CUT: (None, rows(cut=1, cut_tokens=70), "more than 2048 tokens: 1, which lose 70"),
    Code.FEW_HELD_OUT_ROWS: (None, ended(improvement_standard_error=0.031), "less than 0.062 nats (3.1% of the loss)"),
    Code.POD_MEMORY: (
        make_config(resources={"memory": "4900Mi"}),
        {"plan": make_plan()},
        "resources.memory is 4.8 GiB, and the plan estimates 5.0 GiB",
    ),
    Code.CLAIM_SIZE: (None, {"plan": make_plan(**ON_CLAIM)}, "takes 480.0 MiB, and 3 of them are there at a time"),
    Code.SERVE_MERGED: (lora(variant="DoRA", modulesToSave=["lm_head"]), {}, "no DoRA adapters; vLLM serves no"),
    Code.MODULES_NOT_ADAPTED: (
        None,
        {"shape": MIXTURE},
        "(mlp.experts.gate_up_proj, mlp.experts.down_proj, 97% of the parameters)",
    ),
    Code.LANGUAGE_MODEL_ALONE: (None, {"left_alone": LeftAlone(kind="gemma3", language_part="model.lm")}, "(model.lm)"),
}
"""Of each code a run of which it is said, and a part of the evidence."""

SILENT: dict[str, tuple[Code, TrainConfig | None, Changes]] = {
    "a rank that holds just what is learned": (Code.RANK_TOO_LOW, None, rows(target_tokens=83_886_080)),
    "alpha equal to the rank": (Code.ALPHA_RATIO, lora(rank=16, alpha=16), {}),
    "twice the rank": (Code.ALPHA_RATIO, lora(rank=16, alpha=32), {}),
    "rsLoRA": (Code.ALPHA_RATIO, lora(rank=16, alpha=64, scaling="RankStabilized"), {}),
    "rank 127": (Code.ALPHA_AT_HIGH_RANK, lora(rank=127), {}),
    "rank 128 with alpha 128": (Code.ALPHA_AT_HIGH_RANK, lora(rank=128, alpha=128), {}),
    "rank 128 at a lower rate": (
        Code.ALPHA_AT_HIGH_RANK,
        make_config(lora={"rank": 128}, training={"learningRate": "0.0001"}),
        {},
    ),
    "the MLPs alone": (Code.FEW_LAYERS, lora(layers="MLP"), {}),
    "one module of the MLPs": (Code.FEW_LAYERS, lora(targetModules=["q_proj", "down_proj"]), {}),
    "attention, and the head": (Code.FEW_LAYERS, lora(layers="Attention", modulesToSave=["lm_head"]), {}),
    "one epoch": (Code.SEVERAL_EPOCHS, training(epochs="1"), {}),
    "steps of one epoch": (Code.SEVERAL_EPOCHS, training(maxSteps=612), {}),
    "few duplicates": (Code.MANY_DUPLICATES, None, rows(duplicates=499)),
    "no evaluation on the way": (Code.STILL_IMPROVING, None, {}),
    "a fall of less than two standard errors": (Code.STILL_IMPROVING, None, ended(on_the_way={450: 1.539})),
    "a fall since the last quarter": (Code.STILL_IMPROVING, None, ended(on_the_way={451: 1.9})),
    "a fall over few rows": (Code.STILL_IMPROVING, None, {**ended(on_the_way=FALL), **rows(held_out=19)}),
    "a fall of training rows": (Code.STILL_IMPROVING, None, ended(on_the_way=FALL, held_out=False)),
    "a rise of less than two standard errors": (Code.HELD_OUT_LOSS_ROSE, None, ended(on_the_way={300: 1.461})),
    "a loss that was no number": (Code.HELD_OUT_LOSS_ROSE, None, ended(on_the_way={300: math.nan})),
    "a fall is no rise": (Code.HELD_OUT_LOSS_ROSE, None, ended(on_the_way=FALL)),
    "the best was kept": (Code.HELD_OUT_LOSS_ROSE, None, ended(on_the_way=RISE, kept_best=True)),
    "a batch of 32": (Code.LARGE_BATCH, training(effectiveBatchSize=32), {}),
    "a row for each process": (
        Code.LARGE_BATCH,
        make_config(training={"effectiveBatchSize": 64}, resources={"gpus": 64}),
        {},
    ),
    "the lowest rate": (Code.LEARNING_RATE, training(learningRate="0.00005"), {}),
    "the highest rate": (Code.LEARNING_RATE, training(learningRate="0.001"), {}),
    "16 bits do not fit": (
        Code.QUANTIZATION_NOT_NEEDED,
        NF4,
        {"plan": make_plan(**{**IN_NF4, "alternatives": (dataclasses.replace(IN_16_BITS, fits=False),)})},
    ),
    "16 bits fit, and are slower": (
        Code.QUANTIZATION_NOT_NEEDED,
        NF4,
        {"plan": make_plan(**{**IN_NF4, "tokens_per_second": 1100.1})},
    ),
    "quantization left to the plan": (Code.QUANTIZATION_WOULD_FIT, None, {"plan": make_plan(**TIGHT)}),
    "quantization that nobody asked for": (Code.QUANTIZATION_NOT_NEEDED, None, {"plan": make_plan(**IN_NF4)}),
    "16 bits fit": (Code.QUANTIZATION_WOULD_FIT, BITS_16, {"plan": make_plan(**{**TIGHT, "fits": True})}),
    "nothing tells the device": (
        Code.QUANTIZATION_WOULD_FIT,
        BITS_16,
        {"plan": make_plan(**TIGHT, device=None, device_bytes=None)},
    ),
    "columns that describe rows": (Code.COLUMNS_NOT_READ, None, columns("id", "source", "contextual")),
    "columns beside conversations": (
        Code.COLUMNS_NOT_READ,
        None,
        columns("response", kind=DatasetFormat.MESSAGES),
    ),
    "columns that somebody chose": (
        Code.COLUMNS_NOT_READ,
        make_config(dataset={"uri": "pvc://a/b", "columns": {"prompt": "question", "completion": "answer"}}),
        columns("context"),
    ),
    "columns of a format that somebody chose": (
        Code.COLUMNS_NOT_READ,
        make_config(dataset={"uri": "pvc://a/b", "format": "PromptCompletion"}),
        columns("context"),
    ),
    "whole rows": (Code.ROWS_CUT, None, rows(cut=0)),
    "enough held-out rows": (Code.FEW_HELD_OUT_ROWS, None, ended(improvement_standard_error=0.03)),
    "twenty held-out rows": (Code.FEW_HELD_OUT_ROWS, None, {"ended": None, **rows(held_out=20)}),
    "memory enough": (Code.POD_MEMORY, make_config(resources={"memory": "5Gi"}), {"plan": make_plan()}),
    "memory left to the operator": (Code.POD_MEMORY, None, {"plan": make_plan()}),
    "memory beside the upper bound of unknown rows": (
        Code.POD_MEMORY,
        make_config(resources={"memory": "1Gi"}),
        {"plan": make_plan(), "rows": None},
    ),
    "little on a claim": (Code.CLAIM_SIZE, None, {"plan": make_plan(**{**ON_CLAIM, "claim_bytes": GIB - 1})}),
    "no claim": (Code.CLAIM_SIZE, make_config(output={"uri": "s3://adapters/a"}), {"plan": make_plan(**ON_CLAIM)}),
    "no plan of a claim": (Code.CLAIM_SIZE, None, {"plan": make_plan()}),
    "DoRA, merged too": (
        Code.SERVE_MERGED,
        make_config(lora={"variant": "DoRA"}, output={"uri": "pvc://a/b", "merge": "Both"}),
        {},
    ),
    "experts that are adapted": (
        Code.MODULES_NOT_ADAPTED,
        lora(targetParameters=["experts.down_proj"]),
        {"shape": MIXTURE},
    ),
    "a dense model": (Code.MODULES_NOT_ADAPTED, None, {"shape": LLAMA}),
    "a model of text": (Code.LANGUAGE_MODEL_ALONE, None, {"left_alone": LeftAlone(kind="llama")}),
}


def codes(advice: tuple[Advice, ...]) -> list[str]:
    """What was said."""
    return [one.code for one in advice]


@pytest.mark.parametrize("code", list(Code))
def test_advice_is_said_where_its_rule_holds(code: Code) -> None:
    """With its evidence, in whole sentences."""
    config, changes, evidence = SAID[code]
    facts = make_facts(config, **changes)
    assert code in codes(after(facts))
    found = next(one for one in spoken(after(facts)) if one.code is code)
    assert found.severity is RULES[code].severity
    assert evidence in found.evidence
    assert not re.search(r"[{}]", found.line)
    assert found.line == f"{found.message} ({found.evidence})"


@pytest.mark.parametrize("case", SILENT)
def test_advice_is_silent_where_its_rule_does_not_hold(case: str) -> None:
    """At the limit, and beside it."""
    code, config, changes = SILENT[case]
    assert code not in codes(after(make_facts(config, **changes)))


def test_the_page_has_every_code_with_its_severity() -> None:
    """In the order of the codes."""
    page = (Path(__file__).parents[2] / "docs/states.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| `(\w+)` \| (\w+) \|", page.partition("\n## Advice\n")[2], re.MULTILINE)
    assert found[: len(Code)] == [(code.value, RULES[code].severity.value) for code in Code]


def test_every_code_has_a_rule_and_is_silent_somewhere() -> None:
    """In the order of the codes."""
    assert list(RULES) == list(Code)
    assert {code for code, _, _ in SILENT.values()} == set(Code)


def test_a_run_of_defaults_gets_no_advice() -> None:
    """Before its training and after it."""
    assert before(make_config()) == ()
    assert before(make_config(), make_preflight(), make_plan(), LLAMA) == ()
    assert after(make_facts()) == ()


@pytest.mark.parametrize(
    ("rank", "learned", "enough"),
    [(16, 10**8, "32"), (16, 3 * 10**8, "64"), (16, 10**12, "262,144"), (20, 10**8, "32")],
)
def test_the_rank_that_suffices_is_named(rank: int, learned: int, enough: str) -> None:
    """A power of two, also where no adapter can have it: then the other remedies are left."""
    facts = make_facts(lora(rank=rank, alpha=rank), **rows(target_tokens=learned))
    (advice,) = [one for one in after(facts) if one.code == Code.RANK_TOO_LOW]
    assert advice.values["enough"] == enough


@pytest.mark.parametrize("init", ["PiSSA", "OLoRA"])
def test_a_server_needs_twice_the_rank_of_what_starts_from_the_base(init: str) -> None:
    """As it is written."""
    (found,) = [one for one in spoken(before(lora(init=init, rank=320, alpha=320))) if one.code == Code.SERVE_MERGED]
    assert "rank 640 (of lora.rank and lora.rankPattern the largest counts, used or not, and twice" in found.evidence


@pytest.mark.parametrize(
    ("left", "evidence"),
    [
        (LeftAlone(kind="mixtral", experts="experts (a, b)"), "of the kind mixtral: experts (a, b)"),
        (
            LeftAlone(kind="deepseek_v3", experts="experts (a, b)", passed_over="up_proj"),
            "of the kind deepseek_v3: experts (a, b) and modules named up_proj",
        ),
        (LeftAlone(kind="qwen3_moe", passed_over="up_proj"), "of the kind qwen3_moe: modules named up_proj"),
    ],
)
def test_experts_and_modules_that_are_not_adapted_are_told_together(left: LeftAlone, evidence: str) -> None:
    """Or each alone."""
    (found,) = spoken(after(make_facts(None, left_alone=left)))
    assert found.evidence == f"Not adapted in a model {evidence}"


def test_before_a_training_nothing_is_said_of_its_end() -> None:
    """However much is known."""
    facts = make_facts(None, **ended(on_the_way=FALL))
    assert known_before(facts) == ()
    assert codes(after(facts)) == ["StillImproving"]


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({}, "modules named gate_proj, up_proj, down_proj"),
        (
            {"targetParameters": ["mlp.up_proj.weight", "shared_experts.up_proj.weight"]},
            "modules named gate_proj, down_proj",
        ),
        ({"layers": None, "targetModules": ["o_proj"]}, None),
    ],
)
def test_a_plan_names_the_dense_modules_that_a_preset_passes_over(given: dict[str, Any], names: str | None) -> None:
    """Of DeepSeek-V3, which are more than its experts."""
    config = make_config(lora={name: value for name, value in given.items() if value is not None})
    said = before(config, shape=architecture_of(DEEPSEEK_V3))
    (found,) = [one.values for one in said if one.code == Code.MODULES_NOT_ADAPTED] or [{}]
    assert found["left"].endswith(names or "of the parameters)")


def test_preflight_and_plan_tell_what_their_rules_need() -> None:
    """Each count of preflight in its place."""
    found = make_preflight(
        target_tokens=10**9,
        truncated_samples=5,
        truncated_tokens=500,
        duplicate_samples=9_000,
        validation_samples=3,
    )
    plan = make_plan(**IN_NF4, micro_batch_tokens=2048)
    assert codes(before(NF4, found, plan, MIXTURE)) == [
        "RankTooLow",
        "RowsCut",
        "FewHeldOutRows",
        "ModulesNotAdapted",
        "ManyDuplicates",
        "QuantizationNotNeeded",
    ]


def test_words_are_found_for_what_is_known_alone() -> None:
    """A code that nobody knows, or one without its values, is left out; of a code twice the last one counts."""
    known = Advice(code="LargeBatch", values={"batch": "64", "smaller": "32", "later": "x"})
    strange = (Advice(code="Later"), Advice(code="RowsCut"), Advice(code="LearningRate", values={"rate": "1"}))
    found = spoken((Advice(code="LargeBatch", values={**known.values, "batch": "1"}), *strange, known))
    assert [one.code for one in found] == [Code.LEARNING_RATE, Code.LARGE_BATCH]
    assert [one.severity for one in found] == [Severity.WARNING, Severity.INFO]
    assert found[1].evidence == "spec.training.effectiveBatchSize is 64"


def test_values_are_never_read_as_templates() -> None:
    """They come from a pod."""
    values = {"duplicates": "{rows.__class__}", "rows": "%s {0}"}
    (found,) = spoken((Advice(code="ManyDuplicates", values=values),))
    assert found.evidence == "Of %s {0} rows {rows.__class__} are copies of others"


ANY_FLOAT = st.floats(allow_nan=True, allow_infinity=True)


@given(
    config=st.from_type(TrainConfig),
    preflight=st.none() | st.from_type(Preflight),
    plan=st.none() | st.from_type(RunPlan),
    mixture=st.booleans(),
)
@example(
    config=dataclasses.replace(
        make_config(quantization="NF4", training={"microBatchSize": 1}), device=DeviceConfig(nodes=0)
    ),
    preflight=None,
    plan=make_plan(quantization=Quantization.NF4, micro_batch_tokens=1024),
    mixture=False,
)
@example(
    config=dataclasses.replace(make_config(), training=TrainingConfig(effective_batch_size=33, micro_batch_size=0)),
    preflight=None,
    plan=None,
    mixture=False,
)
@example(
    config=dataclasses.replace(
        make_config(), training=TrainingConfig(epochs=None, max_steps=1, effective_batch_size=0)
    ),
    preflight=make_preflight(),
    plan=None,
    mixture=False,
)
def test_advice_before_a_training_is_total(
    config: TrainConfig, preflight: Preflight | None, plan: RunPlan | None, *, mixture: bool
) -> None:
    """Whatever was configured, found out and planned: words for each piece of advice, in the bounds of a status."""
    said = before(config, preflight, plan, MIXTURE if mixture else LLAMA)
    found = spoken(said)
    assert {one.code.value for one in found} == {one.code for one in said}
    assert all(isinstance(value, str) for one in said for value in one.values.values())


@given(st.from_type(Facts))
def test_advice_after_a_training_is_total(facts: Facts) -> None:
    """NaN and negative numbers among them."""
    facts = dataclasses.replace(facts, shape=None)
    said = after(facts)
    assert {one.code.value for one in spoken(said)} == {one.code for one in said}
    assert set(codes(known_before(facts))) <= set(codes(said))


@given(ANY_FLOAT, ANY_FLOAT)
def test_no_difference_is_told_from_numbers_that_are_none(loss: float, error: float) -> None:
    """Only a difference beyond two standard errors is one, downwards or upwards."""
    changes = ended(on_the_way={300: loss}, loss=0.0, improvement_standard_error=error)
    said = codes(after(make_facts(None, **changes)))
    assert (Code.STILL_IMPROVING in said) == (loss > 2 * error)
    assert (Code.HELD_OUT_LOSS_ROSE in said) == (math.isfinite(loss) and -loss > 2 * error)
