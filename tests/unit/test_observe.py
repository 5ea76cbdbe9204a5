"""Reading API objects."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.builders import (
    CREATED,
    NOW,
    UID,
    condition_object,
    make_job_object,
    make_manifest,
    make_pod_object,
    minutes_ago,
)
from tests.unit.junk import JSON, damaged

from lora_operator.model.names import PREFLIGHT, QUEUE_LABEL
from lora_operator.model.objects import ConditionView, ContainerView, JobView, PodView
from lora_operator.model.observe import parse_event, parse_finetune, parse_job, parse_pod

FULL_POD = make_pod_object(
    state={"terminated": {"exitCode": 1}}, conditions=(condition_object("Ready"),), deleting=True
)
FULL_JOB = make_job_object(
    status={"conditions": [condition_object("Failed")], "completionTime": "2026-03-01T12:00:00Z"}
)


@given(st.data(), JSON)
def test_no_object_is_too_odd_to_be_read(data: st.DataObject, junk: Any) -> None:
    """Whatever a foreign writer stored, a view of it comes back."""
    for obj in (junk, data.draw(damaged(FULL_POD)), data.draw(damaged(FULL_JOB)), data.draw(damaged(make_manifest()))):
        assert isinstance(parse_finetune(obj).generation, int)
        assert parse_job(obj).attempt >= 0
        assert isinstance(parse_pod(obj).trainer, ContainerView)
        assert isinstance(parse_event(obj).message, str)


def test_of_a_finetune_only_what_is_read_is_kept() -> None:
    """An editor of one namespace may write 256 KiB of annotations into each of thousands."""
    manifest = make_manifest()
    read = manifest["metadata"]
    manifest["metadata"] = {
        **read,
        "labels": {"a": "b", QUEUE_LABEL: "queue"},
        "annotations": {"note": "x" * 1000},
        "managedFields": [{"manager": "kubectl"}],
        "finalizers": ["example.com/hold"],
        "ownerReferences": [{"uid": "x"}],
    }
    finetune = parse_finetune({**manifest, "other": "field"})
    assert finetune.manifest == {**manifest, "metadata": {**read, "labels": {QUEUE_LABEL: "queue"}}}
    assert (finetune.name, finetune.uid, finetune.generation) == (read["name"], read["uid"], read["generation"])


def test_a_resource_without_namespace_is_of_the_default_one() -> None:
    """As kubectl does."""
    assert parse_finetune({"metadata": {"name": "x"}}).namespace == "default"


def test_spec_and_status_of_the_wrong_type_read_as_empty() -> None:
    """A resource stored before the schema existed."""
    finetune = parse_finetune({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": 3, "status": "x"})
    assert (finetune.spec, finetune.status, finetune.deleting) == ({}, {}, True)


def test_a_job_is_read_with_all_that_decisions_need() -> None:
    """Owner, attempt, suspension, limits, counts and times."""
    job = parse_job(
        make_job_object(
            attempt=2,
            spec={"suspend": True, "backoffLimit": 5, "activeDeadlineSeconds": 60},
            status={"active": 1, "failed": 2, "conditions": [condition_object("Suspended", reason="JobSuspended")]},
            annotations={"lora-operator.io/suspend": "true"},
            deleting=True,
        )
    )
    assert (job.attempt, job.uid, job.owner_uid, job.deleting) == (2, "job-2", UID, True)
    assert (job.suspended, job.suspend_intent, job.backoff_limit, job.active_deadline_s) == (True, True, 5, 60)
    assert (job.active, job.failed) == (1, 2)
    assert job.conditions == (ConditionView(type="Suspended", status="True", reason="JobSuspended", since=CREATED),)
    assert (job.created_at, job.started_at, job.completed_at) == (minutes_ago(59), minutes_ago(58), None)


@pytest.mark.parametrize(("annotation", "intent"), [("true", True), ("false", False), ("yes", None)])
def test_the_suspend_annotation_is_true_false_or_unknown(annotation: str, intent: bool | None) -> None:
    """Anything else was not written by the operator."""
    assert parse_job(make_job_object(annotations={"lora-operator.io/suspend": annotation})).suspend_intent is intent


@pytest.mark.parametrize("read", [parse_job, parse_pod])
def test_a_name_is_no_longer_than_a_status_may_hold(read: Callable[[dict[str, Any]], JobView | PodView]) -> None:
    """An API server has none that is; one with more would refuse the whole status."""
    assert read({"metadata": {"name": "x" * 254}}).name == "x" * 253


def test_a_job_without_a_controller_is_its_pod_templates_runs() -> None:
    """Somebody took the reference off, or made it one that controls nothing. An owner that is none owns nothing."""
    job = make_job_object()
    reference = job["metadata"]["ownerReferences"][0]
    assert (parse_job(job).owner_uid, parse_job(job).owners) == (UID, None)
    reference["controller"] = False
    assert (parse_job(job).owner_uid, parse_job(job).owners) == (UID, (reference,))
    job["spec"]["template"] = {}
    assert parse_job(job).owner_uid == ""
    reference["controller"] = True
    reference["uid"] = "other"
    assert (parse_job(job).owner_uid, parse_job(job).owners) == ("other", None)


def test_the_failures_of_a_node_are_read_of_its_pod() -> None:
    """Not those that the Job ignores."""
    obj = make_pod_object()
    assert parse_pod(obj).failures_before == 0
    counts = {"job-index-failure-count": "2", "job-index-ignored-failure-count": "3"}
    obj["metadata"]["annotations"] |= {f"batch.kubernetes.io/{name}": count for name, count in counts.items()}
    assert parse_pod(obj).failures_before == 2


def test_a_job_without_backoff_limit_has_the_default_of_kubernetes() -> None:
    """Which is 6."""
    assert parse_job({}).backoff_limit == 6


def test_a_pod_is_read_with_its_trainer_alone() -> None:
    """A service mesh adds containers of its own."""
    obj = make_pod_object(
        phase="Running", state={"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    )
    obj["status"]["containerStatuses"].insert(0, {"name": "mesh-proxy", "state": {"running": {}}})
    pod = parse_pod(obj)
    assert pod.trainer == ContainerView(waiting_reason="ImagePullBackOff", waiting_message="no such image")
    assert (pod.job_uid, pod.attempt, pod.phase, pod.node, pod.ip) == ("job-1", 1, "Running", "node-1", "10.0.0.7")


def test_an_ended_trainer_tells_code_reason_message_and_time() -> None:
    """The termination message holds the summary."""
    ended = {"exitCode": 137, "reason": "OOMKilled", "message": "tail", "finishedAt": "2026-03-01T11:59:00Z"}
    trainer = parse_pod(make_pod_object(state={"terminated": ended})).trainer
    assert trainer == ContainerView(
        exit_code=137, termination_reason="OOMKilled", termination_message="tail", finished_at=minutes_ago(1)
    )


@pytest.mark.parametrize("annotations", [{}, {"batch.kubernetes.io/job-completion-index": "x"}])
def test_a_pod_that_its_job_does_not_count_is_an_orphan(annotations: dict[str, str]) -> None:
    """Adopted by its labels, and without the annotation that a training's Job gives to the pods which it makes."""
    document = make_pod_object(phase="Succeeded")
    assert parse_pod(document).job_uid
    document["metadata"]["annotations"] = annotations
    assert parse_pod(document).job_uid == ""
    assert parse_pod(make_pod_object(stage=PREFLIGHT)).job_uid


def test_a_pod_that_another_kind_controls_is_an_orphan() -> None:
    """Its job_uid must not match a Job by accident."""
    obj = make_pod_object()
    obj["metadata"]["ownerReferences"][0]["kind"] = "ReplicaSet"
    assert parse_pod(obj).job_uid == ""


@pytest.mark.parametrize(
    "obj",
    [
        {
            "involvedObject": {"uid": "u"},
            "reason": "FailedMount",
            "message": "m",
            "lastTimestamp": "2026-03-01T12:00:00Z",
        },
        {"regarding": {"uid": "u"}, "reason": "FailedMount", "note": "m", "eventTime": "2026-03-01T12:00:00.000000Z"},
        {
            "regarding": {"uid": "u"},
            "reason": "FailedMount",
            "note": "m",
            "eventTime": "2026-03-01T11:00:00Z",
            "series": {"lastObservedTime": "2026-03-01T12:00:00Z"},
        },
    ],
    ids=["core/v1", "events.k8s.io/v1", "repeated"],
)
def test_events_of_both_apis_read_alike(obj: dict[str, Any]) -> None:
    """The newest time that an event tells counts."""
    event = parse_event(obj)
    assert (event.about_uid, event.reason, event.message, event.last_seen) == ("u", "FailedMount", "m", NOW)


def test_an_event_says_no_more_than_kubernetes_own_do() -> None:
    """An Event of core/v1 without `eventTime` may hold texts as long as etcd takes them."""
    text = "x" * 100_000
    event = parse_event({"involvedObject": {"uid": text}, "type": text, "reason": text, "message": text})
    assert len(event.message) <= 1024
    assert max(len(event.about_uid), len(event.type), len(event.reason)) <= 253
