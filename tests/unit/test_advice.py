"""What would make a run go better: said where there is a reason for it, once, and in the bounds of the schema."""

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.builders import (
    condition_object,
    ended_pod,
    finished_job,
    make_finetune,
    make_job,
    make_summary,
    running_pod,
    with_status,
)
from tests.unit.plans import plan_for, stated
from tests.unit.reports import make_report
from tests.unit.status_schema import check_status

from lora_operator.decide.advice import Code, joined
from lora_operator.model.objects import Plan, PodView
from lora_trainer.plan.hints import RULES
from lora_trainer.spec.advice import Advice
from lora_trainer.spec.advice import Code as RuleCode


def pressed() -> PodView:
    """A pod that its node evicted."""
    reason = condition_object("DisruptionTarget", reason="TerminationByKubelet", message="The node was low on memory")
    return ended_pod(137, conditions=(reason,))


def shut_down() -> PodView:
    """A pod whose node was shut down in an orderly way."""
    said = "Pod was terminated in response to imminent node shutdown."
    reason = condition_object("DisruptionTarget", reason="TerminationByKubelet", message=said)
    return ended_pod(143, conditions=(reason,), evicted=("Terminated", said))


def full() -> PodView:
    """A pod that used more disk than its limit."""
    return ended_pod(137, evicted=("Evicted", "Pod ephemeral local storage usage exceeds the total limit of 1Gi"))


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[PodView, ...], str | None, str]] = {
    "nothing to say": ({}, {}, (), None, ""),
    "DoRA alone": ({"lora": {"variant": "DoRA"}}, {}, (), "ServeMerged", "DoRA"),
    "DoRA and the merged model": (
        {"lora": {"variant": "DoRA"}, "output": {"uri": "pvc://a/b", "merge": "Both"}},
        {},
        (),
        None,
        "",
    ),
    "a node short of memory": ({}, {}, (pressed(),), "NodePressure", "low on memory"),
    "a node that shuts down": ({}, {}, (shut_down(),), None, ""),
    "a pod above its limit for disk": ({}, {}, (full(),), "NodePressure", "usage exceeds the total limit"),
    "preempted twice": ({}, {"retries": {"preempted": 2}}, (), None, ""),
    "preempted often": ({}, {"retries": {"preempted": 3}}, (), "OftenPreempted", "3 times"),
}


@pytest.mark.parametrize(("spec", "status", "pods", "code", "evidence"), CASES.values(), ids=CASES)
def test_advice_has_its_reason(
    spec: dict[str, Any], status: dict[str, Any], pods: tuple[PodView, ...], code: str | None, evidence: str
) -> None:
    """And its evidence; without a reason there is none."""
    finetune = with_status(make_finetune(spec=spec), {"attempt": 1, **status})
    plan = plan_for(finetune, jobs=(make_job(),), pods=pods)
    check_status(plan.status)
    advice = plan.status.get("advice", [])
    assert [one["code"] for one in advice] == ([code] if code else [])
    assert all(evidence in one["evidence"] for one in advice)


def test_several_pieces_of_advice_stand_in_order_and_once_each() -> None:
    """However many pods give the reason: warnings first, and among equals the cluster's."""
    spec = {"output": {"uri": "s3://adapters/tone"}, "lora": {"variant": "DoRA", "rank": 64}, "maxRetries": 9}
    spec["training"] = {"epochs": "3"}
    pods = (pressed(), full())
    plan = plan_for(make_finetune(spec=spec), jobs=(make_job(),), pods=pods)
    found = [(one["code"], one["severity"]) for one in plan.status["advice"]]
    assert found == [
        *((code, "Warning") for code in ("NodePressure", "ServeMerged")),
        ("SeveralEpochs", "Info"),
    ]


def advised(plan: Plan) -> dict[str, str]:
    """The evidence of each piece of advice in the status that a plan writes."""
    check_status(plan.status)
    return {one["code"]: one["evidence"] for one in plan.status.get("advice", [])}


ROWS = Advice(code="RowsCut", values={"cut": "3", "tokens": "90", "length": "2048"})
COPIES = Advice(code="ManyDuplicates", values={"rows": "90", "duplicates": "9"})
STRANGE = (Advice(code="OfALaterRelease", values={"x": "1"}), Advice(code="LargeBatch", values={"later": "1"}))


def test_what_preflight_advised_stays_and_gives_way_to_what_the_training_says() -> None:
    """When its pod is long gone: of a code the last report counts, and what nobody repeats stays."""
    asked = make_finetune(spec={"preflight": "Run"})
    stage: dict[str, Any] = {"stage": "preflight"}
    report = make_report(advice=(ROWS, COPIES, *STRANGE)).to_message()
    first = plan_for(asked, jobs=(finished_job(**stage),), pods=(ended_pod(0, report, **stage),))
    assert advised(first) == {
        "RowsCut": "Rows with more than 2048 tokens: 3, which lose 90 tokens in all",
        "ManyDuplicates": "Of 90 rows 9 are copies of others",
    }
    later = plan_for(with_status(asked, first.status), jobs=(make_job(),), pods=(running_pod(),))
    assert advised(later) == advised(first)
    counted = replace(ROWS, values={**ROWS.values, "cut": "4"})
    summary = make_summary(advice=(counted, *STRANGE)).to_message()
    last = plan_for(with_status(asked, later.status), jobs=(finished_job(),), pods=(ended_pod(0, summary),))
    assert stated(last) == ("True", "Succeeded")
    assert advised(last)["RowsCut"] == "Rows with more than 2048 tokens: 4, which lose 90 tokens in all"
    assert set(advised(last)) == {"RowsCut", "ManyDuplicates"}
    assert [one["severity"] for one in last.status["advice"]] == ["Warning", "Info"]


def test_what_the_spec_shows_is_advised_without_a_preflight() -> None:
    """From the first status on."""
    plan = plan_for(make_finetune(spec={"preflight": "Skip", "training": {"learningRate": "0.5"}}))
    assert advised(plan) == {"LearningRate": "spec.training.learningRate is 0.5"}


def test_the_clusters_advice_is_that_of_the_moment() -> None:
    """It is not kept when its reason is gone, as a stage's report is."""
    before = {"code": "NodePressure", "severity": "Warning", "message": "Ask for more", "evidence": "It was full"}
    plan = plan_for(with_status(make_finetune(), {"attempt": 1, "advice": [before]}), jobs=(make_job(),))
    assert advised(plan) == {}


GOOD = {"code": "RowsCut", "severity": "Warning", "message": "m", "evidence": "e"}


@pytest.mark.parametrize(
    "forged",
    [
        "none",
        [None, 3, []],
        [{"code": "RowsCut"}],
        [{**GOOD, "severity": "Error"}],
        [{**GOOD, "severity": ["Warning"]}],
        [{**GOOD, "code": {}}],
        [{**GOOD, "code": "Mine"}],
        [{**GOOD, "message": "m" * 1025}],
        [{**GOOD, "evidence": 1}],
    ],
    ids=["text", "no objects", "bare", "severity", "list", "object", "code", "long", "number"],
)
def test_advice_that_somebody_wrote_into_the_status_is_not_kept(forged: Any) -> None:
    """Whatever it is; a good entry is no other than one of a report."""
    assert advised(plan_for(with_status(make_finetune(), {"advice": forged}))) == {}
    kept = plan_for(with_status(make_finetune(), {"advice": [GOOD, *(forged if isinstance(forged, list) else [])]}))
    assert kept.status["advice"] == [GOOD]


def test_all_advice_at_once_is_within_the_bounds_of_the_status() -> None:
    """Sixteen pieces, the warnings first, each within its lengths; a second look changes nothing."""
    forms = [form for rule in RULES.values() for form in (rule.message, rule.evidence)]
    values = {name: "v" * 40 for form in forms for name in re.findall(r"{(\w+)}", form)}
    reported = tuple(Advice(code=code.value, values=values) for code in RuleCode)
    cluster = [
        {"code": code.value, "severity": "Warning", "message": "m" * 1024, "evidence": "e" * 1024} for code in Code
    ]
    found = joined(cluster, *reported)
    check_status({"conditions": [], "advice": found})
    warnings = [code.value for code in RuleCode if RULES[code].severity == "Warning"]
    infos = [code.value for code in RuleCode if code.value not in warnings]
    assert [one["code"] for one in found] == [*(code.value for code in Code), *warnings, *infos][:16]
    assert joined(found, *reported) == found
    everything = joined([], *reported)
    assert [one["code"] for one in everything][: len(warnings)] == warnings
    assert len(everything) == 16


@given(st.lists(st.from_type(Advice), max_size=30), st.data())
def test_any_report_gives_advice_that_the_api_server_takes(strange: list[Advice], data: st.DataObject) -> None:
    """A pod's own words come on one line, without secrets, and not too long."""
    names = st.dictionaries(st.sampled_from(["batch", "smaller", "rate", "cut"]), st.text(max_size=3000))
    known = data.draw(
        st.lists(st.builds(Advice, code=st.sampled_from([code.value for code in RuleCode]), values=names))
    )
    found = joined([], *strange, *known)
    check_status({"conditions": [], "advice": found})
    assert all(text.isprintable() for one in found for text in one.values())


def test_a_secret_in_a_report_is_not_shown() -> None:
    """Whoever put it there."""
    (found,) = joined([], Advice(code="LearningRate", values={"rate": "hf_abcdefghijklmnopqrstuvwxyz"}))
    assert found["evidence"] == "spec.training.learningRate is hf_***"


def test_advice_makes_no_event() -> None:
    """Events report changes of state alone."""
    quiet, running = make_finetune(), plan_for(make_finetune(), jobs=(make_job(),), pods=(running_pod(),))
    seen = with_status(quiet, running.status)
    assert plan_for(seen, jobs=(make_job(),), pods=(running_pod(),)).events == ()
    loud = with_status(make_finetune(spec={"training": {"learningRate": "0.5"}}), running.status)
    plan = plan_for(loud, jobs=(make_job(),), pods=(running_pod(),))
    assert advised(plan)
    assert plan.events == ()
