"""The stand-in for the trainer keeps the contract: progress, termination message, exit status."""

import contextlib
import json
from typing import Any

import pytest

from localcluster import processes
from localcluster.client import Client, CommandError
from lora_trainer.spec.config import (
    DatasetConfig,
    DeviceConfig,
    LoraConfig,
    ModelConfig,
    OutputConfig,
    RunIdentity,
    TrainConfig,
    TrainingConfig,
)
from lora_trainer.spec.progress import PORT, Progress
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.summary import Summary


@pytest.fixture(scope="session")
def scripted_trainer(cluster: Client) -> str:
    """The image's reference."""
    return cluster.images("test-trainer")["test-trainer"]


def _config() -> TrainConfig:
    return TrainConfig(
        run=RunIdentity(namespace="ns", name="run", uid="u"),
        model=ModelConfig(uri="hf://org/model"),
        dataset=DatasetConfig(uri="configmap://script/script.json"),
        lora=LoraConfig(),
        training=TrainingConfig(),
        device=DeviceConfig(gpus=0),
        output=OutputConfig(uri="pvc://claim/adapter"),
    )


def _config_map(name: str, key: str, text: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {key: text}}


def _start(cluster: Client, namespace: str, image: str, script: list[dict[str, Any]]) -> None:
    """Start a pod as the operator's Job would: configuration and script mounted where the trainer looks for them."""
    mounts = {"config": ("/etc/lora", "config"), "script": ("/configmaps/script", "script"), "tmp": ("/tmp", None)}  # noqa: S108
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "trainer"},
        "spec": {
            "restartPolicy": "Never",
            "volumes": [
                {"name": name, **({"configMap": {"name": source}} if source else {"emptyDir": {}})}
                for name, (_, source) in mounts.items()
            ],
            "containers": [
                {
                    "name": "trainer",
                    "image": image,
                    "args": ["run", "--config", "/etc/lora/config.json"],
                    "securityContext": {"readOnlyRootFilesystem": True, "runAsNonRoot": True},
                    "volumeMounts": [{"name": name, "mountPath": path} for name, (path, _) in mounts.items()],
                }
            ],
        },
    }
    configuration = _config_map("config", "config.json", _config().to_json())
    cluster.apply(configuration, _config_map("script", "script.json", json.dumps(script)), pod, namespace=namespace)


def _end(cluster: Client, namespace: str, phase: str) -> dict[str, Any]:
    """Wait for the pod's end; returns the container's terminated state."""
    cluster.wait("pod/trainer", f"jsonpath={{.status.phase}}={phase}", namespace=namespace)
    pod = cluster.get("pod", "trainer", f"--namespace={namespace}")
    state: dict[str, Any] = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    return state


def test_a_script_can_succeed(cluster: Client, namespace: str, scripted_trainer: str) -> None:
    """The summary is one that the operator takes for a verified adapter."""
    _start(cluster, namespace, scripted_trainer, [{"succeed": {"steps": 7}}])
    state = _end(cluster, namespace, "Succeeded")
    summary = Summary.from_message(state["message"])
    assert summary.succeeded
    assert summary.results is not None
    assert summary.results.steps == 7


def test_a_script_can_fail_with_reason_and_status(cluster: Client, namespace: str, scripted_trainer: str) -> None:
    """Both arrive as the trainer's would."""
    failure = {"reason": "DatasetInvalid", "message": "row 3 is empty", "code": 65}
    _start(cluster, namespace, scripted_trainer, [{"fail": failure}])
    state = _end(cluster, namespace, "Failed")
    assert state["exitCode"] == 65
    summary = Summary.from_message(state["message"])
    assert (summary.reason, summary.message) == (Reason.DATASET_INVALID, "row 3 is empty")


def test_a_script_can_report_progress_until_it_is_told_to_go_on(
    cluster: Client, namespace: str, scripted_trainer: str
) -> None:
    """A test decides when a run goes on, without a sleep."""
    said = {"phase": "Training", "step": 3, "total_steps": 10, "loss": 1.25}
    _start(cluster, namespace, scripted_trainer, [{"progress": said}, {"wait_for": "go"}, {"exit": 1}])
    path = f"/api/v1/namespaces/{namespace}/pods/trainer:{PORT}/proxy/progress"

    def reported() -> bool:
        try:
            return Progress.from_json(cluster.kubectl("get", "--raw", path)).loss == 1.25
        except CommandError:
            return False

    assert processes.wait_until(reported, timeout_s=600)
    cluster.kubectl("exec", "trainer", f"--namespace={namespace}", "--", "touch", "/tmp/go")  # noqa: S108
    assert _end(cluster, namespace, "Failed")["exitCode"] == 1


def test_a_scripted_trainer_that_is_terminated_says_so(cluster: Client, namespace: str, scripted_trainer: str) -> None:
    """SIGTERM reaches it through the init process, and its status is that of the trainer."""
    _start(cluster, namespace, scripted_trainer, [{"progress": {"phase": "Training"}}, {"wait_for": "never"}])
    cluster.wait("pod/trainer", "condition=Ready", namespace=namespace)
    terminate = ("python3", "-c", "import os, signal; os.kill(1, signal.SIGTERM)")
    # The command may end with the container that it ends, before it has ended itself.
    with contextlib.suppress(CommandError):
        cluster.kubectl("exec", "trainer", f"--namespace={namespace}", "--", *terminate)
    assert _end(cluster, namespace, "Failed")["exitCode"] == 143
