"""What end-to-end tests say and ask: resources, conditions, waits, all through kubectl as a user would."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from localcluster.client import Client, CommandError

MODEL = "hf://tests/tiny"
"""Two random layers on the stand-in for the Hub: only the quickstart is about what a model learns."""
BROKEN_MODEL = "hf://tests/broken"
"""The same with weights that are not finite."""
PATIENCE_S = 900
"""For an image, the start of a pod and what it does. Beside tests that have four busy threads on a slow machine that
takes ten times as long as alone; longer is a hang."""
CLAIM = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "adapters"},
    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
}


def rows(text: str = "", count: int = 12) -> dict[str, Any]:
    """A ConfigMap `rows` with a small data set under `train.jsonl`; `text` replaces the rows."""
    made = "".join(f'{{"prompt": "What is {n} plus one?", "completion": "It is {n + 1}."}}\n' for n in range(count))
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "rows"},
        "data": {"train.jsonl": text or made},
    }


def long_rows() -> dict[str, Any]:
    """Rows of some hundred tokens, for `SLOW`."""
    said = "And so on, and so on. " * 7
    return rows("".join(f'{{"prompt": "Go on from {n}. {said}", "completion": "{said}"}}\n' for n in range(40)))


def finetune(name: str, **changes: Mapping[str, Any] | int | bool | str) -> dict[str, Any]:
    """A LoRAFineTune of two steps of the tiny model on the CPU, without a preflight.

    `changes` replace whole parts of the spec.
    """
    spec: dict[str, Any] = {
        "model": {"uri": MODEL},
        "dataset": {"uri": "configmap://rows/train.jsonl", "validationFraction": "0.2"},
        "lora": {"rank": 4, "layers": "QueryValue"},
        "training": {"maxSteps": 2, "effectiveBatchSize": 2, "maxSequenceLength": 128},
        "resources": {"gpus": 0, "cpu": "500m", "memory": "3Gi"},
        "output": {"uri": f"pvc://adapters/{name}"},
        "preflight": "Skip",
    }
    spec.update(changes)
    return {
        "apiVersion": "lora-operator.io/v1alpha1",
        "kind": "LoRAFineTune",
        "metadata": {"name": name},
        "spec": spec,
    }


SLOW = {"maxSteps": 30, "effectiveBatchSize": 32, "maxSequenceLength": 512}
"""Training on `long_rows` that takes about half a second a step: time to interrupt it."""
LONG = {"training": {**SLOW, "maxSteps": 5000}}
"""For runs that are to be found still running."""


def status(client: Client, namespace: str, name: str) -> dict[str, Any]:
    """The resource's status, empty until the operator has written one."""
    found: dict[str, Any] = client.get("lft", name, f"--namespace={namespace}").get("status", {})
    return found


def condition(client: Client, namespace: str, name: str, kind: str) -> dict[str, Any]:
    """One condition of the resource."""
    found: dict[str, Any] = next(c for c in status(client, namespace, name)["conditions"] if c["type"] == kind)
    return found


def wait_reason(
    client: Client, namespace: str, name: str, kind: str, reason: str, *, timeout_s: int = PATIENCE_S
) -> dict[str, Any]:
    """Wait until a condition has a reason; returns the condition."""
    until = f'jsonpath={{.status.conditions[?(@.type=="{kind}")].reason}}={reason}'
    _wait(client, namespace, name, until, timeout_s)
    return condition(client, namespace, name, kind)


def wait_end(client: Client, namespace: str, name: str, timeout_s: int = 1500) -> dict[str, Any]:
    """Wait until the run has ended, well or badly; returns its status.

    A training of two minutes takes ten beside tests that have four busy threads on a slow machine.
    """
    _wait(client, namespace, name, "jsonpath={.status.completionTime}", timeout_s)
    return status(client, namespace, name)


def _wait(client: Client, namespace: str, name: str, until: str, timeout_s: int) -> None:
    """Wait; a failure shows how far the run and its pods have come."""
    try:
        client.wait(f"lft/{name}", until, namespace=namespace, timeout_s=timeout_s)
    except CommandError as error:
        for kind in ("lorafinetunes", "pods", "events"):
            error.add_note(client.kubectl("get", kind, "--output=wide", f"--namespace={namespace}"))
        raise


def verdict(of: Mapping[str, Any]) -> tuple[str, str, str]:
    """Status of Complete, its reason and its message."""
    complete = next(c for c in of["conditions"] if c["type"] == "Complete")
    return complete["status"], complete["reason"], complete["message"]


def pods(client: Client, namespace: str) -> list[dict[str, Any]]:
    """The training pods of the namespace."""
    selector = "--selector=app.kubernetes.io/managed-by=lora-operator"
    found: list[dict[str, Any]] = client.get("pods", selector, f"--namespace={namespace}")["items"]
    return found


_SERVE = """\
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler

SimpleHTTPRequestHandler.extensions_map[""] = "text/plain; version=0.0.4"
HTTPServer(("", 9090), partial(SimpleHTTPRequestHandler, directory="/recorded")).serve_forever()
"""


def recorded(namespace: str, image: str) -> list[dict[str, Any]]:
    """A pod that looks like a run's and exposes what one on a GPU would."""
    text = (Path(__file__).parent / "gpu.prom").read_text().replace("NAMESPACE", namespace)
    command = ["python3", "-c", _SERVE]
    container = {
        "name": "trainer",
        "image": image,
        "command": command,
        "ports": [{"name": "metrics", "containerPort": 9090}],
        "volumeMounts": [{"name": "recorded", "mountPath": "/recorded"}],
    }
    labels = {"app.kubernetes.io/name": "lora-trainer", "lora-operator.io/name": "recorded"}
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "recorded"}, "data": {"metrics": text}},
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "recorded", "labels": labels},
            "spec": {
                "containers": [container],
                "volumes": [{"name": "recorded", "configMap": {"name": "recorded"}}],
                "terminationGracePeriodSeconds": 0,
            },
        },
    ]
