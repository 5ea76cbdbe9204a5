"""Looking at what the chart has rendered."""

from collections.abc import Callable
from typing import Any

import yaml

Manifest = dict[str, Any]
Render = Callable[..., list[Manifest]]


def parsed(text: str) -> list[Manifest]:
    """The documents that Helm has rendered, empty ones left out; by libyaml, as each text has the definition in it."""
    return [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]


def only(objects: list[Manifest], kind: str, name: str | None = None) -> Manifest:
    (found,) = [o for o in objects if o["kind"] == kind and name in (None, o["metadata"]["name"])]
    return found


def pod_of(objects: list[Manifest]) -> Manifest:
    return dict(only(objects, "Deployment")["spec"]["template"]["spec"])


def settings_of(objects: list[Manifest]) -> str:
    return str(only(objects, "ConfigMap")["data"]["config.yaml"])


def pods_of(objects: list[Manifest]) -> list[Manifest]:
    """Pods of the operator and of helm test."""
    return [o["spec"]["template"]["spec"] for o in objects if o["kind"] in ("Deployment", "Job")]
