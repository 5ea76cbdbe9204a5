"""The LoRAFineTune definition on a real API server, and what it is asked in tests of it."""

import copy
import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from tests.component.patience import DEADLINE_S
from tests.component.stage import REPOSITORY

from docgen.schema import load, walk
from localcluster.client import Client, CommandError
from localcluster.processes import wait_until

DEFINITION = REPOSITORY / "crds/lorafinetunes.yaml"
BAD = Path(__file__).parent / "crd_bad"
OF_STRUCTURE = re.compile(
    "Required value|must be of type|should (be|have)|(greater|less) than|supported values|Duplicate value|Too long|"
    "must have at most"
)
"""So the API server speaks of types, choices, bounds and lengths, in its own words."""
_IDENTITY = ("lora-operator.io", "v1alpha1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What the API server says about one field."""

    field: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """LoRAFineTunes of one namespace of its own."""

    cluster: Client
    namespace: str
    objects: Any  # the generated client's types know no custom resources

    def create(self, manifest: Mapping[str, Any], *, dry_run: bool = True) -> dict[str, Any]:
        options = {"dry_run": "All"} if dry_run else {}
        return dict(
            self.objects.create_namespaced_custom_object(
                *_IDENTITY, self.namespace, "lorafinetunes", manifest, **options
            )
        )

    def replace(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Try an update without storing it."""
        name = manifest["metadata"]["name"]
        return dict(
            self.objects.replace_namespaced_custom_object(
                *_IDENTITY, self.namespace, "lorafinetunes", name, manifest, dry_run="All"
            )
        )

    def write_status(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        name = manifest["metadata"]["name"]
        return dict(
            self.objects.replace_namespaced_custom_object_status(
                *_IDENTITY, self.namespace, "lorafinetunes", name, manifest
            )
        )

    def kubectl(self, *arguments: str) -> str:
        return self.cluster.kubectl(*arguments, f"--namespace={self.namespace}")


@contextmanager
def served_definition(cluster: Client) -> Iterator[Api]:
    """The definition applied, and a namespace that is deleted afterwards."""
    connect: Any = config.new_client_from_config
    connection = connect(str(cluster.kubeconfig))
    api = Api(
        cluster=cluster,
        namespace=f"crd-{uuid.uuid4().hex[:8]}",
        objects=client.CustomObjectsApi(connection),
    )
    cluster.kubectl("create", "namespace", api.namespace)
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(DEFINITION))
    # Its condition Established comes before the server tells clients of the new kind and of its fields.
    assert wait_until(lambda: _is_explained(cluster), timeout_s=DEADLINE_S, interval_s=0.2)
    yield api
    cluster.kubectl("delete", "namespace", api.namespace, "--wait=false")
    connection.close()


def _is_explained(cluster: Client) -> bool:
    try:
        return "VERSION" in cluster.kubectl("explain", "lft.status.artifact.servable")
    except CommandError:
        return False


def refusals(call: Callable[[], object]) -> list[Refusal]:
    """What the API server finds wrong; the note that it looked no further is left out."""
    with pytest.raises(ApiException) as caught:
        call()
    assert caught.value.status == 422, caught.value.body
    causes = json.loads(caught.value.body or "")["details"]["causes"]
    return [Refusal(field=cause["field"], message=cause["message"]) for cause in causes if cause["field"] != "<nil>"]


def changed(document: Any, change: Any) -> Any:
    """The document with a merge patch applied: maps are merged, None removes, anything else replaces."""
    if not isinstance(change, dict):
        return change
    merged = dict(document) if isinstance(document, dict) else {}
    for key, value in change.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = changed(merged.get(key), value)
    return merged


def get(document: Any, path: str) -> Any:
    for part in path.split("."):
        document = document.get(part) if isinstance(document, dict) else None
    return document


def put(manifest: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy in which the field of this path has this value; None removes it."""
    copied: dict[str, Any] = copy.deepcopy(dict(manifest))
    *parents, last = path.split(".")
    inner = copied
    for part in parents:
        inner = inner.setdefault(part, {})
    if value is None:
        inner.pop(last, None)
    else:
        inner[last] = value
    return copied


def example(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((REPOSITORY / "examples" / name).read_text()))


def leaves() -> list[str]:
    """Paths of the fields of spec that hold values; a list or a map counts as one."""
    fields = [field for field in walk(load(DEFINITION).field("spec")) if "[]" not in field.path]
    return [field.path for field in fields if not field.children or "items" in field.schema]
