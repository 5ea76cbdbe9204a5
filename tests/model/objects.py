"""What a run's children say of themselves, whatever became of the operator's labels."""

import json
from collections.abc import Mapping
from typing import Any

from lora_operator.views.names import CONFIG_ANNOTATION, JOB_NAME_LABEL, TRAIN, place_of

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
    ended = [item["state"].get("terminated", {}) for item in pod["status"].get("containerStatuses", ())]
    return pod["status"].get("phase") == "Failed" or any(state.get("exitCode") for state in ended)


def run_uid(document: Mapping[str, Any]) -> str:
    """The uid of the LoRAFineTune that a child belongs to, whatever became of its labels; empty for a stranger."""
    metadata = document["metadata"]
    template = document.get("spec", {}).get("template", {}).get("metadata", metadata)  # a Job's may have lost its owner
    config = (template.get("annotations") or {}).get(CONFIG_ANNOTATION)
    owners = (owner for owner in metadata.get("ownerReferences") or () if owner["kind"] == "LoRAFineTune")
    return str(json.loads(config)["run"]["uid"] if config else next((owner["uid"] for owner in owners), ""))
