"""The same questions to the base model and to the adapter, asked in a pod of the trainer image."""

import json
import time
from typing import TYPE_CHECKING, Any

from demoflow.errors import DemoError
from lora_client.views.answers import Answer

if TYPE_CHECKING:
    from localcluster.client import Client

QUESTIONS = (
    "My parcel has not arrived yet. What should I do?",
    "Which shoes are best for a wet deck?",
    "How do I dry a wet sail?",
)
_USER_ID = 10001
_POLL_S = 2.0


def ask(
    client: "Client", image: str, artifact_uri: str, endpoint: str, *, namespace: str, timeout_s: int
) -> list[Answer]:
    """Run the pod, read its answers and delete it again. Raises DemoError when it fails or takes too long."""
    created = client.kubectl(
        *("create", f"--namespace={namespace}", "--filename=-", "--output=name"),
        stdin=json.dumps(pod(image, artifact_uri, endpoint)),
    )
    name = created.strip()
    try:
        phase = _wait(client, name, namespace, timeout_s)
        log = client.kubectl("logs", name, f"--namespace={namespace}")
        if phase != "Succeeded":
            last = (log.strip() or "it printed nothing").splitlines()[-1]
            raise DemoError(f"The questions could not be asked: {last}")
        return parse(log)
    finally:
        client.kubectl("delete", name, f"--namespace={namespace}", "--wait=false", "--ignore-not-found")


def _wait(client: "Client", name: str, namespace: str, timeout_s: int) -> str:
    deadline_s = time.monotonic() + timeout_s
    while True:
        phase = str(client.get(name, f"--namespace={namespace}")["status"].get("phase", "Pending"))
        if phase in {"Succeeded", "Failed"}:
            return phase
        if time.monotonic() > deadline_s:
            raise DemoError(f"The questions were not answered within {timeout_s} s: the pod is {phase}.")
        time.sleep(_POLL_S)


def parse(log: str) -> list[Answer]:
    """Read the JSON list that ends the log; warnings of libraries may stand before it."""
    lines = log.splitlines()
    starts = [number for number, text in enumerate(lines) if text == "["]
    if not starts:
        raise DemoError("The questions were not answered: the pod printed no answers.")
    records: list[dict[str, str]] = json.loads("\n".join(lines[starts[-1] : lines.index("]", starts[-1]) + 1]))
    return [Answer(question=r["question"], base=r["base"], adapter=r["adapter"]) for r in records]


def pod(image: str, artifact_uri: str, endpoint: str) -> dict[str, Any]:
    """Return a pod that mounts the adapter's claim read-only and asks, as restricted as a training pod."""
    claim, _, path = artifact_uri.removeprefix("pvc://").partition("/")
    environment = {"HOME": "/tmp", "HF_HOME": "/cache", "HF_HUB_DISABLE_TELEMETRY": "1"}  # noqa: S108 - an emptyDir
    if endpoint:
        environment |= {"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1"}
    questions = [f"--question={question}" for question in QUESTIONS]
    mounts = {"claim": f"/claims/{claim}", "cache": "/cache", "tmp": "/tmp"}  # noqa: S108 - an emptyDir
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "ask-"},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": _USER_ID,
                "runAsGroup": _USER_ID,
                "fsGroup": _USER_ID,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "ask",
                    "image": image,
                    "args": ["ask", f"--adapter=/claims/{claim}/{path}", "--format=json", *questions],
                    "env": [{"name": key, "value": value} for key, value in environment.items()],
                    "resources": {"requests": {"cpu": "500m", "memory": "2Gi"}, "limits": {"memory": "4Gi"}},
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [
                        {"name": key, "mountPath": place, "readOnly": key == "claim"} for key, place in mounts.items()
                    ],
                }
            ],
            "volumes": [
                {"name": "claim", "persistentVolumeClaim": {"claimName": claim}},
                {"name": "cache", "emptyDir": {}},
                {"name": "tmp", "emptyDir": {}},
            ],
        },
    }
