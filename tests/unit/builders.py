"""Objects for tests, as the API server would hold them: a valid one by default, with what the test is about changed."""

import copy
import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from lora_operator.model import names
from lora_operator.model.config import OperatorConfig
from lora_operator.model.objects import EventView, FineTune, JobView, PodView, WorkloadView
from lora_operator.model.observe import parse_event, parse_finetune, parse_job, parse_pod, parse_workload
from lora_operator.model.wording import instant
from lora_trainer.spec.manifest import API_VERSION, KIND
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.summary import Artifact, DatasetStats, ResolvedRun, Results, Summary, Verification

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
CREATED = NOW - timedelta(hours=1)
UID = "0f8fad5b-d9cb-469f-a165-70867728950e"
NAME = "support-tone"
NAMESPACE = "team-a"
CONFIG = OperatorConfig(trainer_image="registry.example/lora-trainer:1.0")
SHARED = dataclasses.replace(CONFIG, cache_claim="models")
Object = dict[str, Any]


def minutes_ago(minutes: float) -> datetime:
    """A time before `NOW`."""
    return NOW - timedelta(minutes=minutes)


def make_manifest(*, spec: Mapping[str, Any] | None = None, status: Mapping[str, Any] | None = None) -> Object:
    """A LoRAFineTune with the fields that one needs, and what `spec` adds or replaces; most tests are about trainings,
    so it skips the preflight."""
    base: Object = {
        "model": {"uri": "hf://acme/base"},
        "dataset": {"uri": "pvc://data/chats.jsonl"},
        "output": {"uri": "pvc://adapters/support-tone"},
        "preflight": "Skip",
    }
    manifest: Object = {
        "apiVersion": "lora-operator.io/v1alpha1",
        "kind": "LoRAFineTune",
        "metadata": {
            "name": NAME,
            "namespace": NAMESPACE,
            "uid": UID,
            "generation": 1,
            "resourceVersion": "7",
            "creationTimestamp": instant(CREATED),
        },
        "spec": {**base, **(spec or {})},
    }
    return {**manifest, "status": dict(status)} if status is not None else manifest


def make_finetune(
    *,
    spec: Mapping[str, Any] | None = None,
    status: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> FineTune:
    """The same, read. `metadata` adds to or replaces the object's metadata."""
    manifest = make_manifest(spec=spec, status=status)
    manifest["metadata"] |= metadata or {}
    return parse_finetune(manifest)


def with_status(finetune: FineTune, status: Mapping[str, Any]) -> FineTune:
    """The resource after `status` was written."""
    return dataclasses.replace(finetune, manifest={**finetune.manifest, "status": copy.deepcopy(dict(status))})


def condition_object(
    kind: str, status: str = "True", *, since: datetime = CREATED, reason: str = "", message: str = ""
) -> Object:
    """A condition of a Job, a Pod or a LoRAFineTune."""
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": instant(since)}


def job_name(attempt: int = 1, stage: str = names.TRAIN) -> str:
    """Name of the Job of a stage of an attempt."""
    return names.job_name(NAME, UID, attempt, stage)


def _controller(uid: str) -> Object:
    return {"apiVersion": API_VERSION, "kind": KIND, "name": NAME, "uid": uid, "controller": True}


def make_job_object(
    *,
    attempt: int = 1,
    uid: str = "",
    owner_uid: str = UID,
    spec: Mapping[str, Any] | None = None,
    status: Mapping[str, Any] | None = None,
    annotations: Mapping[str, str] | None = None,
    deleting: bool = False,
    stage: str = names.TRAIN,
    queue: str = "",
    version: str = "",
) -> Object:
    """A Job as the operator made it for an attempt."""
    metadata: Object = {
        "name": job_name(attempt, stage),
        "namespace": NAMESPACE,
        "uid": uid or _job_uid(attempt, stage),
        "labels": names.child_labels(NAME, UID, attempt, stage),
        "annotations": {names.SUSPEND_ANNOTATION: "false"} if annotations is None else dict(annotations),
        "ownerReferences": [_controller(owner_uid)],
        "creationTimestamp": instant(minutes_ago(59)),
    }
    if deleting:
        metadata["deletionTimestamp"] = instant(NOW)
    if queue:
        metadata["labels"][names.QUEUE_LABEL] = queue
    if version:
        metadata["resourceVersion"] = version
    return {
        "metadata": metadata,
        "spec": {
            "suspend": False,
            "backoffLimit": 3,
            "template": {"metadata": {"labels": names.child_labels(NAME, UID, attempt, stage)}},
            **(spec or {}),
        },
        "status": {"startTime": instant(minutes_ago(58)), **(status or {})},
    }


def _job_uid(attempt: int, stage: str) -> str:
    return f"job-{attempt}" if stage == names.TRAIN else f"{stage}-{attempt}"


def make_job(**changes: Any) -> JobView:
    """The same, read."""
    return parse_job(make_job_object(**changes))


def make_workload_object(
    *conditions: Object, job_uid: str = "job-1", active: bool = True, intent: str | None = None
) -> Object:
    """Kueue's Workload of a Job."""
    return {
        "metadata": {
            "name": f"job-{job_uid}",
            "namespace": NAMESPACE,
            "uid": f"uid-of-workload-{job_uid}",
            "resourceVersion": "3",
            "annotations": {} if intent is None else {names.SUSPEND_ANNOTATION: intent},
            "ownerReferences": [{"kind": "Job", "uid": job_uid, "controller": True}],
        },
        "spec": {
            "active": active,
            "podSets": [{"template": {"metadata": {"labels": names.child_labels(NAME, UID, 1)}}}],
        },
        "status": {"conditions": list(conditions)},
    }


def make_workload(*conditions: Object, **changes: Any) -> WorkloadView:
    """The same, read."""
    return parse_workload(make_workload_object(*conditions, **changes))


def finished_job(
    kind: str = "Complete",
    *,
    reason: str = "",
    message: str = "",
    failed: int = 0,
    succeeded: int | None = None,
    **changes: Any,
) -> JobView:
    """A Job that has ended ten minutes ago, well (`Complete`) or badly (`Failed`)."""
    status: Object = {
        "failed": failed,
        "conditions": [condition_object(kind, since=minutes_ago(10), reason=reason, message=message)],
    }
    if kind == "Complete":
        status["completionTime"] = instant(minutes_ago(10))
    status["succeeded"] = int(kind == "Complete") if succeeded is None else succeeded
    return make_job(status=status, **changes)


def make_pod_object(
    *,
    name: str = "",
    attempt: int = 1,
    job_uid: str | None = None,
    phase: str = "Pending",
    node: str = "node-1",
    created_at: datetime | None = None,
    conditions: tuple[Object, ...] = (),
    state: Mapping[str, Any] | None = None,
    reason: str = "",
    message: str = "",
    deleting: bool = False,
    stage: str = names.TRAIN,
    index: int = 0,
    failures_before: int = 0,
) -> Object:
    """A pod of an attempt's Job; `state` is that of its trainer's container. An empty `job_uid` makes it an orphan."""
    trains = stage == names.TRAIN
    owner = _job_uid(attempt, stage) if job_uid is None else job_uid
    job = job_name(attempt, stage)
    labels = {**names.child_labels(NAME, UID, attempt, stage), names.JOB_NAME_LABEL: job}
    default = f"{job}-{index}" if trains else job
    metadata: Object = {
        "name": name or f"{default}-abcde",
        "namespace": NAMESPACE,
        "uid": f"uid-of-{name or default}",
        "labels": {**labels, names.INDEX_LABEL: str(index)} if trains else labels,
        "annotations": {names.INDEX_LABEL: str(index), names.FAILURES_ANNOTATION: str(failures_before)}
        if trains
        else {},
        "ownerReferences": [{"kind": "Job", "name": job, "uid": owner, "controller": True}] if owner else [],
        "creationTimestamp": instant(created_at or minutes_ago(57)),
    }
    if deleting:
        metadata["deletionTimestamp"] = instant(NOW)
    status: Object = {
        "phase": phase,
        "podIP": "10.0.0.7",
        "conditions": list(conditions),
        "reason": reason,
        "message": message,
    }
    if state is not None:
        status["containerStatuses"] = [{"name": "trainer", "state": dict(state)}]
    spec: Object = {"containers": [{"name": "trainer", "image": CONFIG.trainer_image}]}
    return {"metadata": metadata, "spec": {**spec, "nodeName": node} if node else spec, "status": status}


def make_pod(**changes: Any) -> PodView:
    """The same, read."""
    return parse_pod(make_pod_object(**changes))


def running_pod(**changes: Any) -> PodView:
    """A pod whose trainer has been running for half an hour."""
    conditions = (condition_object("Ready", since=minutes_ago(30)),)
    state = {"running": {"startedAt": instant(minutes_ago(30))}}
    return make_pod(**{"phase": "Running", "state": state, "conditions": conditions, **changes})


def waiting_pod(reason: str, message: str = "", **changes: Any) -> PodView:
    """A pod whose container waits for a reason."""
    return make_pod(**{"state": {"waiting": {"reason": reason, "message": message}}, **changes})


def ended_pod(
    code: int,
    message: str = "",
    *,
    reason: str = "Error",
    evicted: tuple[str, str] = ("", ""),
    ended_at: datetime | None = None,
    **changes: Any,
) -> PodView:
    """A pod whose trainer has ended, eleven minutes ago by default; `evicted` is what the pod itself says, a reason and
    a message."""
    times = {"startedAt": instant(minutes_ago(50)), "finishedAt": instant(ended_at or minutes_ago(11))}
    ended = {"exitCode": code, "message": message, "reason": reason, **times}
    said = {"phase": "Failed" if code else "Succeeded", "reason": evicted[0], "message": evicted[1]}
    return make_pod(**{**said, "state": {"terminated": ended}, **changes})


def outlasted_pod(code: int, proxy: Mapping[str, Any], **changes: Any) -> PodView:
    """A pod whose trainer has ended, and into which somebody put a proxy in that state."""
    ended = {"terminated": {"exitCode": code, "reason": "Error"}}
    document = make_pod_object(**{"phase": "Running", "state": ended, **changes})
    document["status"]["containerStatuses"].append({"name": "istio-proxy", "state": dict(proxy)})
    return parse_pod(document)


def make_event(about: str, reason: str, message: str, *, seen_at: datetime | None = None) -> EventView:
    """An Event about the object with that uid."""
    return parse_event(
        {
            "involvedObject": {"uid": about},
            "type": "Warning",
            "reason": reason,
            "message": message,
            "lastTimestamp": instant(seen_at or minutes_ago(1)),
        }
    )


def make_resolved(**changes: Any) -> ResolvedRun:
    """What a trainer found out."""
    values: Object = {
        "device": "NVIDIA H100 80GB HBM3",
        "compute_dtype": "bfloat16",
        "model_type": "llama",
        "model_revision": "12fd25f77366fa6b3b4b768ec3050bf629380bac",
        "dataset_format": "Messages",
        "dataset_fingerprint": "sha256:" + "ab" * 32,
        "target_modules": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        "trainable_parameters": 4_884_480,
        "total_parameters": 139_399_488,
        "micro_batch_size": 4,
        "micro_batch_tokens": 4096,
        "gradient_accumulation_steps": 4,
    }
    return ResolvedRun(**{**values, **changes})


def make_results(**changes: Any) -> Results:
    """What a run achieved."""
    values: Object = {
        "steps": 400,
        "trained_tokens": 812_345,
        "train_loss": 1.23456,
        "eval_loss_before": 2.98765,
        "eval_loss_after": 1.45678,
        "eval_loss_before_standard_error": 0.0512,
        "eval_loss_after_standard_error": 0.0345,
        "improvement_standard_error": 0.0298,
        "held_out": True,
        "duration_seconds": 1834.6,
        "tokens_per_second": 442.71,
        "peak_memory_bytes": 20_079_050_752,
        "verification": Verification(loss=1.45679, difference=0.00001, noise=0.00002, tolerance=0.001),
    }
    return Results(**{**values, **changes})


def make_artifact(**changes: Any) -> Artifact:
    """A verified adapter."""
    values: Object = {
        "uri": "pvc://adapters/support-tone/run-abcde",
        "digest": "sha256:" + "cd" * 32,
        "size_bytes": 19_600_000,
        "format": "peft-safetensors",
        "base_model": "hf://acme/base",
        "base_revision": "12fd25f77366fa6b3b4b768ec3050bf629380bac",
        "rank": 16,
        "servable": True,
        "serving": "--enable-lora --max-lora-rank 16",
    }
    return Artifact(**{**values, **changes})


def make_summary(reason: Reason = Reason.SUCCEEDED, message: str = "", **changes: Any) -> Summary:
    """The end of a run; complete for a success, bare for a failure."""
    details: Object = {}
    if reason is Reason.SUCCEEDED:
        stats = DatasetStats(
            train_samples=200,
            validation_samples=50,
            train_tokens=40_000,
            target_tokens=21_000,
            longest_tokens=612,
            truncated_samples=2,
            skipped_samples=1,
            duplicate_samples=3,
            split_samples=0,
            learned_answers=310,
            skipped_answers=1,
            unended_answers=2,
        )
        details = {
            "resolved": make_resolved(),
            "dataset": stats,
            "results": make_results(),
            "artifact": make_artifact(),
        }
    return Summary(reason=reason, message=message or "The adapter is verified", **{**details, **changes})
