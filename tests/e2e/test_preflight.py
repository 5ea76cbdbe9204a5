"""A run is looked at in the small image before it asks for a GPU: nothing of the weights is fetched for it."""

import json
from pathlib import Path

import yaml
from tests.e2e.conftest import Installed
from tests.e2e.support import pods, status, wait_reason

from demoflow.packages import Packages
from hub.deploy import NAMESPACE as HUB
from hub.model import REPO_ID
from localcluster.client import Client
from lora_trainer.storage.tensor_files import header_bytes, read_entries

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def _sent(client: Client) -> int:
    """Bytes of the quickstart's weights that the stand-in for the Hub has sent since it started."""
    served = json.loads(client.kubectl("get", f"--raw=/api/v1/namespaces/{HUB}/services/hub:80/proxy/-/served"))
    return sum(counts["bytes"] for path, counts in served.items() if REPO_ID in path and path.endswith(".safetensors"))


def test_no_weights_are_fetched_before_a_gpu_is_there(installed: Installed, namespace: str) -> None:
    """Of the quickstart's model not a byte beside the file's header; the pod is one of the small image, and the
    training waits for a GPU."""
    client = installed.client
    client.kubectl("apply", f"--filename={EXAMPLES / 'quickstart-inputs.yaml'}", f"--namespace={namespace}")
    quickstart = yaml.safe_load((EXAMPLES / "quickstart.yaml").read_text(encoding="utf-8"))
    quickstart["spec"]["resources"]["gpus"] = 1
    before = _sent(client)
    client.apply(quickstart, namespace=namespace)
    name = quickstart["metadata"]["name"]
    wait_reason(client, namespace, name, "PreflightPassed", "PreflightPassed")
    weights = Packages().convert() / "model.safetensors"
    with weights.open("rb") as stream:
        header = len(header_bytes(stream))
    assert _sent(client) - before == header
    found = status(client, namespace, name)
    assert found["preflight"]["model"]["parameters"] == sum(entry.values for entry in read_entries(weights))
    assert found["preflight"]["dataset"]["trainSamples"] > 100
    assert found["preflight"]["dataset"]["firstRow"].startswith("[{")
    assert found["preflight"]["output"] == "AtTraining"
    images = {pod["spec"]["containers"][0]["image"] for pod in pods(client, namespace)}
    assert installed.images.preflight in images
