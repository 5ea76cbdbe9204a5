"""What objects say of themselves, and a run's children whatever became of the operator's labels."""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from lora_operator.model.names import (
    CONFIG_ANNOTATION,
    JOB_NAME_LABEL,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    NAME_LABEL,
    TRAIN,
    UID_LABEL,
    place_of,
)
from lora_operator.model.wording import instant

Object = dict[str, Any]


def trains(pod: Mapping[str, Any]) -> bool:
    """Whether it is a pod of a training Job."""
    return place_of(pod["metadata"]["labels"][JOB_NAME_LABEL])[1] == TRAIN


def state_of(pod: Mapping[str, Any]) -> str:
    """waiting, running or ended."""
    if is_over(pod):
        return "ended"
    states = [item["state"] for item in pod["status"].get("containerStatuses", ()) if item["name"] == "trainer"]
    return "running" if states and "running" in states[0] else "waiting"


def is_over(pod: Mapping[str, Any]) -> bool:
    """Whether a pod has reached its last phase."""
    return pod["status"].get("phase") in {"Succeeded", "Failed"}


def has_failed(pod: Mapping[str, Any]) -> bool:
    """Whether a pod has ended, or its trainer, and not well."""
    return pod["status"].get("phase") == "Failed" or any(exit_codes(pod))


def exit_codes(pod: Mapping[str, Any]) -> list[int]:
    """Those of its containers that have ended."""
    ended = [item["state"].get("terminated", {}) for item in pod["status"].get("containerStatuses", ())]
    return [state["exitCode"] for state in ended if "exitCode" in state]


def run_uid(document: Mapping[str, Any]) -> str:
    """The uid of the LoRAFineTune that a child belongs to, whatever became of its labels; empty for a stranger."""
    metadata = document["metadata"]
    template = document.get("spec", {}).get("template", {}).get("metadata", metadata)  # a Job's may have lost its owner
    config = (template.get("annotations") or {}).get(CONFIG_ANNOTATION)
    owners = (owner for owner in metadata.get("ownerReferences") or () if owner["kind"] == "LoRAFineTune")
    return str(json.loads(config)["run"]["uid"] if config else next((owner["uid"] for owner in owners), ""))


def has_our_labels(child: Mapping[str, Any]) -> bool:
    """Whether the operator's labels on a Job or a pod are as it made them: its watches bring nothing without them."""
    labels, name = child["metadata"].get("labels") or {}, child["metadata"]["name"]
    is_ours = labels.get(MANAGED_BY_LABEL) == MANAGED_BY and labels.get(UID_LABEL) == run_uid(child)
    return is_ours and name.startswith(f"{labels.get(NAME_LABEL)}-")


def controller_uid(document: Mapping[str, Any]) -> str:
    """The uid of the controlling owner."""
    owners = document["metadata"].get("ownerReferences") or ()
    return next((str(owner["uid"]) for owner in owners if owner.get("controller")), "")


def ending_of(job: Mapping[str, Any]) -> str:
    """Complete or Failed; empty for a Job that goes on."""
    conditions = job["status"].get("conditions", ())
    return next(
        (str(c["type"]) for c in conditions if c["type"] in {"Complete", "Failed"} and c["status"] == "True"), ""
    )


def controller_reference(job: Object) -> Object:
    """The controller reference of a Job's pod."""
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job["metadata"]["name"], "uid": job["metadata"]["uid"]}
    return {**owner, "controller": True, "blockOwnerDeletion": True}


def condition_of(status: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """The condition of a kind; empty where there is none."""
    found: Iterable[Mapping[str, Any]] = status.get("conditions", ())
    return next((c for c in found if c["type"] == kind), {})


def with_condition(
    status: Mapping[str, Any], kind: str, value: str, reason: str, now: datetime, *, message: str = ""
) -> Object:
    """The status with that condition, whatever was said of its kind before."""
    rest = [c for c in status.get("conditions", ()) if c["type"] != kind]
    since = instant(now)
    condition = {"type": kind, "status": value, "reason": reason, "message": message, "lastTransitionTime": since}
    return {**status, "conditions": [*rest, condition]}
