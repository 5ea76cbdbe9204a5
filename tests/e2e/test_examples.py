"""The examples of a small model run as they are, with the model and the node of the tests."""

import re
import shlex
from typing import Any

import yaml
from tests.e2e.conftest import Installed
from tests.e2e.support import CLAIM, MODEL, verdict, wait_end, wait_reason

from localcluster.settings import REPOSITORY

NOTES = "".join(f'{{"text": "Note {number}: the tide turns at {number + 3}."}}\n' for number in range(12))
CONFIG_MAP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "notes"}, "data": {"notes.jsonl": NOTES}}


def example(name: str, resources: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The comment above an example, and its object with another model and the resources of a small node."""
    text = (REPOSITORY / "examples" / name).read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)
    found["spec"] |= {"model": {"uri": MODEL}, "resources": {**found["spec"].get("resources", {}), **resources}}
    return "".join(line for line in text.splitlines(keepends=True) if line.startswith("#")), found


def test_the_small_examples_run(installed: Installed, namespace: str) -> None:
    """One on a CPU; and one that waits until the command of its comment is typed."""
    client = installed.client
    _, on_cpu = example("cpu.yaml", {"cpu": "500m"})
    comment, suspended = example("suspended.yaml", {"gpus": 0, "cpu": "500m", "memory": "3Gi"})
    client.apply(CLAIM, CONFIG_MAP, on_cpu, suspended, namespace=namespace)
    wait_reason(client, namespace, "nightly", "Suspended", "SuspendedByUser")
    (command,) = re.findall(r"kubectl (patch .*)$", comment, re.MULTILINE)
    ended = wait_end(client, namespace, "notes-on-cpu")
    assert verdict(ended)[:2] == ("True", "Succeeded"), verdict(ended)
    assert ended["results"]["steps"] == on_cpu["spec"]["training"]["maxSteps"]
    client.kubectl(*shlex.split(command), f"--namespace={namespace}")
    ended = wait_end(client, namespace, "nightly")
    assert verdict(ended)[:2] == ("True", "Succeeded"), verdict(ended)
    assert ended["artifact"]["uri"] == suspended["spec"]["output"]["uri"]
