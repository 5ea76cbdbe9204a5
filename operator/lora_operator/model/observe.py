"""From API objects to views. Nothing here raises: an odd object reads as an empty one, its odd fields as absent.

What is read of one is bounded, however long the texts and lists are that somebody stored: no honest writer comes near.
"""

import re
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from lora_operator.model import names
from lora_operator.model.conditions import result_of
from lora_operator.model.objects import (
    ConditionView,
    ContainerView,
    EventView,
    FineTune,
    JobView,
    PodView,
    WorkloadView,
)
from lora_operator.model.wording import integer_of, parse_instant
from lora_trainer.spec.resource import PRODUCT_LABEL

LONGEST_TEXT = 8192
_LONGEST_EVENT = 1024  # so long is what Kubernetes' own components say in one; anybody may say more
_LONGEST_NAME = 253  # of any object, by RFC 1123; a status that holds a longer one would be refused
MOST_ITEMS = 100
# Almost all maps are dicts, and to ask whether one is a Mapping takes ten times as long.
_MAPPING = (dict, Mapping)
_NEVER = datetime.fromtimestamp(0, UTC)
_READ = ("apiVersion", "kind", "spec", "status")
_READ_OF_METADATA = (
    "name",
    "namespace",
    "uid",
    "generation",
    "resourceVersion",
    "creationTimestamp",
    "deletionTimestamp",
)
_INDEX = re.compile(r"[0-9]{1,4}")
_JOB_CONTROLLER = "kubernetes.io/job-controller"


def parse_finetune(obj: Mapping[str, Any]) -> FineTune:
    """A LoRAFineTune, its manifest without what nobody reads: annotations alone may be 256 KiB.

    Nor is the status read that came from a backup with a run that had another uid, unless that run had ended: what it
    tells was done by Jobs of the other one, and its checkpoints are the other one's.
    """
    metadata = _map(obj, "metadata")
    kept = {key: metadata[key] for key in _READ_OF_METADATA if key in metadata}
    labels = {key: value for key in names.QUEUE_LABELS if (value := _text(_map(metadata, "labels"), key))}
    if labels:
        kept["labels"] = labels
    if finalizers := _finalizers(metadata):
        kept["finalizers"] = finalizers
    foreign = _is_of_another(_map(obj, "status"), _text(metadata, "uid"))
    read = [key for key in _READ if isinstance(obj, _MAPPING) and key in obj and not (foreign and key == "status")]
    return FineTune(
        namespace=_text(metadata, "namespace") or "default",
        name=_text(metadata, "name"),
        uid=_text(metadata, "uid"),
        generation=_integer(metadata, "generation") or 0,
        resource_version=_text(metadata, "resourceVersion"),
        deleting=metadata.get("deletionTimestamp") is not None,
        manifest={**{key: obj[key] for key in read}, "metadata": kept},
    )


def _finalizers(metadata: Mapping[str, Any]) -> list[str]:
    """Of a resource that is being deleted those that tell what becomes of its children; else one, however many are."""
    found = metadata.get("finalizers") if metadata.get("deletionTimestamp") is not None else None
    listed = found if isinstance(found, list) else []
    collecting = [name for name in names.COLLECTING if name in listed]
    return collecting or [str(name)[:LONGEST_TEXT] for name in listed[:1]]


def _is_of_another(status: Mapping[str, Any], uid: str) -> bool:
    return names.is_of_another(_text(status, "jobName"), uid) and not result_of(status)


def parse_job(obj: Mapping[str, Any]) -> JobView:
    """A Job of ours."""
    metadata, spec, status = _map(obj, "metadata"), _map(obj, "spec"), _map(obj, "status")
    labels, owner_uid = _map(metadata, "labels"), _interned(_controller(metadata), "uid") or owner_of(obj)[1]
    backoff_limit = _integer(spec, "backoffLimit")
    attempt, stage = names.place_of(_text(metadata, "name"))
    return JobView(
        name=_name(metadata),
        uid=_text(metadata, "uid"),
        owner_uid=owner_uid,
        attempt=attempt,
        suspended=spec.get("suspend") is True,
        suspend_intent=_suspend_intent(metadata),
        backoff_limit=6 if backoff_limit is None else backoff_limit,
        active_deadline_s=_integer(spec, "activeDeadlineSeconds"),
        active=_integer(status, "active") or 0,
        failed=_integer(status, "failed") or 0,
        conditions=_conditions(status),
        created_at=_time(metadata, "creationTimestamp") or _NEVER,
        started_at=_time(status, "startTime"),
        completed_at=_time(status, "completionTime"),
        deleting=metadata.get("deletionTimestamp") is not None,
        stage=stage,
        queue=_interned(labels, names.QUEUE_LABEL),
        retries_before=_number_in(metadata, names.RETRIES_ANNOTATION),
        succeeded=_integer(status, "succeeded") or 0,
        has_our_labels=labels.get(names.MANAGED_BY_LABEL) == names.MANAGED_BY
        and labels.get(names.UID_LABEL) == owner_uid,
        owners=None if _controller(metadata) else tuple(_maps(metadata, "ownerReferences")),
        managed_by="" if _text(spec, "managedBy") == _JOB_CONTROLLER else _text(spec, "managedBy"),
        image=_interned(_map(metadata, "annotations"), names.IMAGE_ANNOTATION),
        ttl_s=_integer(spec, "ttlSecondsAfterFinished"),
    )


def controller_of(obj: Mapping[str, Any]) -> tuple[str, str]:
    """Name and uid of the LoRAFineTune that is the controller of an object; both empty where none is."""
    owner = _controller(_map(obj, "metadata"))
    ours = owner.get("kind") == "LoRAFineTune" and owner["group"] == names.GROUP
    return (owner["name"], owner["uid"]) if ours else ("", "")


def owner_of(obj: Mapping[str, Any]) -> tuple[str, str]:
    """Name and uid of the LoRAFineTune whose Job it is: the controller, or where somebody took that reference off, so
    that nobody controls it, as its pod template says, which cannot be changed."""
    if _controller(_map(obj, "metadata")):
        return controller_of(obj)
    labels = _map(_map(_map(_map(obj, "spec"), "template"), "metadata"), "labels")
    ours = labels.get(names.MANAGED_BY_LABEL) == names.MANAGED_BY
    return (_text(labels, names.NAME_LABEL), _text(labels, names.UID_LABEL)) if ours else ("", "")


def parse_workload(obj: Mapping[str, Any]) -> WorkloadView:
    """A Workload that Kueue made for a Job."""
    metadata, status = _map(obj, "metadata"), _map(obj, "status")
    owner = _controller(metadata)
    nominated = status.get("nominatedClusterNames")
    clusters = [status.get("clusterName"), *(nominated if isinstance(nominated, list) else ())]
    return WorkloadView(
        name=_name(metadata),
        uid=_text(metadata, "uid"),
        job_uid=owner.get("uid", "") if owner.get("kind") == "Job" else "",
        active=_map(obj, "spec").get("active") is not False,
        suspend_intent=_suspend_intent(metadata),
        conditions=_conditions(status),
        cluster=next((name for name in clusters if isinstance(name, str) and name), ""),
    )


def parse_pod(obj: Mapping[str, Any]) -> PodView:
    """A pod of a Job of ours."""
    metadata, spec, status = _map(obj, "metadata"), _map(obj, "spec"), _map(obj, "status")
    owner, labels = _controller(metadata), _map(metadata, "labels")
    # An orphan has no controller any more, and keeps the Job controller's label.
    job_name = owner.get("name", "") if owner.get("kind") == "Job" else _text(labels, names.JOB_NAME_LABEL)
    attempt, stage = names.place_of(job_name)
    return PodView(
        name=_name(metadata),
        uid=_text(metadata, "uid"),
        controller_uid=owner.get("uid", ""),
        job_uid=owner.get("uid", "") if owner.get("kind") == "Job" and _is_counted(metadata, stage) else "",
        phase=_interned(status, "phase"),
        reason=_interned(status, "reason"),
        message=_text(status, "message"),
        node=_interned(spec, "nodeName"),
        ip=_text(status, "podIP"),
        created_at=_time(metadata, "creationTimestamp") or _NEVER,
        deleting=metadata.get("deletionTimestamp") is not None,
        conditions=_conditions(status),
        trainer=_container(status),
        attempt=attempt,
        index=_index(metadata),
        failures_before=_number_in(metadata, names.FAILURES_ANNOTATION),
        stage=stage,
        claims=() if _text(spec, "nodeName") else _claims(spec),
        wants_gpu_labels=not _text(spec, "nodeName") and _wants_gpu_labels(spec),
        image=_image(spec),
        lingering_sidecar=_lingering_sidecar(status),
    )


def pod_template_labels(workload: Mapping[str, Any]) -> Mapping[str, Any]:
    """Labels of the pods that a Workload stands for."""
    pod_set = next(iter(_maps(_map(workload, "spec"), "podSets")), {})
    return _map(_map(_map(pod_set, "template"), "metadata"), "labels")


def parse_event(obj: Mapping[str, Any]) -> EventView:
    """An Event of either API, core/v1 or events.k8s.io/v1."""
    about = _map(obj, "involvedObject") or _map(obj, "regarding")
    times = (
        _time(_map(obj, "series"), "lastObservedTime"),
        _time(obj, "lastTimestamp") or _time(obj, "deprecatedLastTimestamp"),
        _time(obj, "eventTime"),
        _time(_map(obj, "metadata"), "creationTimestamp"),
    )
    return EventView(
        about_uid=_text(about, "uid")[:_LONGEST_NAME],
        type=_text(obj, "type")[:_LONGEST_NAME],
        reason=_text(obj, "reason")[:_LONGEST_NAME],
        message=(_text(obj, "message") or _text(obj, "note"))[:_LONGEST_EVENT],
        last_seen=next((moment for moment in times if moment is not None), None),
    )


def _claims(spec: Mapping[str, Any]) -> tuple[str, ...]:
    claims = (_map(volume, "persistentVolumeClaim") for volume in _maps(spec, "volumes"))
    return tuple(dict.fromkeys(name for claim in claims if (name := _text(claim, "claimName")[:_LONGEST_NAME])))


def _wants_gpu_labels(spec: Mapping[str, Any]) -> bool:
    """Whether the pod requires of its node what GPU feature discovery tells."""
    node = _map(_map(spec, "affinity"), "nodeAffinity")
    terms = _maps(_map(node, "requiredDuringSchedulingIgnoredDuringExecution"), "nodeSelectorTerms")
    keys = {_text(one, "key") for term in terms for one in _maps(term, "matchExpressions")}
    return not keys.isdisjoint((names.GPU_MEMORY_LABEL, PRODUCT_LABEL))


def _conditions(status: Mapping[str, Any]) -> tuple[ConditionView, ...]:
    return tuple(
        ConditionView(
            type=_interned(item, "type"),
            status=_interned(item, "status"),
            reason=_interned(item, "reason"),
            message=_interned(item, "message"),
            since=_time(item, "lastTransitionTime"),
        )
        for item in _maps(status, "conditions")
    )


def _container(status: Mapping[str, Any]) -> ContainerView:
    for item in _maps(status, "containerStatuses"):
        if item.get("name") == names.TRAINER_CONTAINER:
            state = _map(item, "state")
            waiting, ended = _map(state, "waiting"), _map(state, "terminated")
            return ContainerView(
                waiting_reason=_text(waiting, "reason"),
                waiting_message=_text(waiting, "message"),
                running="running" in state,
                exit_code=_integer(ended, "exitCode"),
                termination_reason=_interned(ended, "reason"),
                termination_message=_text(ended, "message"),
                started_at=_time(ended, "startedAt") or _time(_map(state, "running"), "startedAt"),
                finished_at=_time(ended, "finishedAt"),
            )
    return ContainerView()


def _lingering_sidecar(status: Mapping[str, Any]) -> str:
    """A container that runs although the trainer has ended: a proxy of a mesh, say, which nobody tells to end."""
    states = {_text(item, "name"): _map(item, "state") for item in _maps(status, "containerStatuses")}
    if "terminated" not in states.get(names.TRAINER_CONTAINER, {}):
        return ""
    return next((name for name, state in states.items() if "running" in state), "")


def _controller(metadata: Mapping[str, Any]) -> dict[str, str]:
    for owner in _maps(metadata, "ownerReferences"):
        if owner.get("controller") is True:
            group = _text(owner, "apiVersion").partition("/")[0]
            return {"group": group, **{key: _text(owner, key) for key in ("kind", "name", "uid")}}
    return {}


def _suspend_intent(metadata: Mapping[str, Any]) -> bool | None:
    intent = _map(metadata, "annotations").get(names.SUSPEND_ANNOTATION)
    return {"true": True, "false": False}.get(str(intent))


def _number_in(metadata: Mapping[str, Any], annotation: str) -> int:
    """0 where the annotation is missing or odd."""
    number = _text(_map(metadata, "annotations"), annotation)
    return int(number) if _INDEX.fullmatch(number) else 0


def _is_counted(metadata: Mapping[str, Any], stage: str) -> bool:
    """Whether the Job that controls a pod counts it. That of a training is Indexed, adopts every pod that carries its
    labels, and counts by the annotation alone that it gives to those which it makes."""
    return stage != names.TRAIN or bool(_INDEX.fullmatch(_text(_map(metadata, "annotations"), names.INDEX_LABEL)))


def _index(metadata: Mapping[str, Any]) -> int:
    label = _text(_map(metadata, "labels"), names.INDEX_LABEL)
    return int(label) if _INDEX.fullmatch(label) else 0


def _image(spec: Mapping[str, Any]) -> str:
    containers = (item for item in _maps(spec, "containers") if item.get("name") == names.TRAINER_CONTAINER)
    return next((_interned(container, "image") for container in containers), "")


def _map(document: object, key: str) -> Mapping[str, Any]:
    value = document.get(key) if isinstance(document, _MAPPING) else None
    return value if isinstance(value, _MAPPING) else {}


def _maps(document: Mapping[str, Any], key: str) -> Iterable[Mapping[str, Any]]:
    items = document.get(key)
    return (item for item in items[:MOST_ITEMS] if isinstance(item, _MAPPING)) if isinstance(items, list) else ()


def _text(document: object, key: str) -> str:
    value = document.get(key) if isinstance(document, _MAPPING) else None
    return value[:LONGEST_TEXT] if isinstance(value, str) else ""


def _name(metadata: Mapping[str, Any]) -> str:
    return _text(metadata, "name")[:_LONGEST_NAME]


def _interned(document: object, key: str) -> str:
    """A text that many objects have: held once, for it would be half of what tens of thousands of them take."""
    return sys.intern(_text(document, key))


def _integer(document: Mapping[str, Any], key: str) -> int | None:
    return integer_of(document.get(key))


def _time(document: object, key: str) -> datetime | None:
    return parse_instant(document.get(key)) if isinstance(document, _MAPPING) else None
