"""A run is looked at in the small image before it asks for a GPU: nothing of the weights is fetched for it."""

import json
from pathlib import Path

from tests.e2e.conftest import Installed
from tests.e2e.support import CLAIM, finetune, pods, rows, status, wait_reason

from hub.deploy import NAMESPACE as HUB
from localcluster.client import Client
from lora_trainer.artifact.tensor_files import header_bytes, read_entries

WEIGHTS = "tests/tiny/resolve"


def _sent(client: Client) -> int:
    """Bytes of the tiny model's weights that the stand-in for the Hub has sent since it started."""
    served = json.loads(client.kubectl("get", f"--raw=/api/v1/namespaces/{HUB}/services/hub:80/proxy/-/served"))
    return sum(
        counts["bytes"] for path, counts in served.items() if WEIGHTS in path and path.endswith("/model.safetensors")
    )


def test_no_weights_are_fetched_before_a_gpu_is_there(installed: Installed, namespace: str, tiny_model: Path) -> None:
    """Beside the file's header not a byte; the pod is one of the small image, and the training waits for a GPU."""
    client = installed.client
    client.apply(CLAIM, rows(), namespace=namespace)
    before = _sent(client)
    waiting = finetune("waiting", preflight="Run", resources={"gpus": 1, "cpu": "500m", "memory": "3Gi"})
    client.apply(waiting, namespace=namespace)
    wait_reason(client, namespace, "waiting", "PreflightPassed", "PreflightPassed")
    weights = tiny_model / "model.safetensors"
    with weights.open("rb") as stream:
        header = len(header_bytes(stream))
    assert _sent(client) - before == header
    found = status(client, namespace, "waiting")
    assert found["preflight"]["model"]["parameters"] == sum(entry.values for entry in read_entries(weights))
    assert found["preflight"]["dataset"]["trainSamples"] == 10
    assert found["preflight"]["dataset"]["firstRow"].startswith("[{")
    assert found["preflight"]["output"] == "AtTraining"
    images = {pod["spec"]["containers"][0]["image"] for pod in pods(client, namespace)}
    assert installed.images.preflight in images
