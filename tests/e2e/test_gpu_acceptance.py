"""The acceptance of a GPU in the trainer's image, on a CPU: as a pod's user it can build what Triton needs."""

import json
from pathlib import Path

import yaml
from tests.e2e.conftest import Installed
from tests.e2e.support import PATIENCE_S

JOB = Path(__file__).resolve().parents[2] / "examples/gpu-acceptance.yaml"


def test_the_image_builds_an_extension_through_triton_as_a_pods_user(installed: Installed, namespace: str) -> None:
    """The example's Job with another image, without its GPU and on the CPU: nothing else is changed."""
    client = installed.client
    job = yaml.safe_load(JOB.read_text(encoding="utf-8"))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    container["image"] = installed.images.trainer
    container["args"] = ["--device=cpu", "--tiny", "--parts=device", "--json=-"]
    container["resources"] = {"requests": {"cpu": "500m", "memory": "2Gi"}, "limits": {"memory": "4Gi"}}
    client.apply(job, namespace=namespace)
    client.wait("job/gpu-acceptance", "condition=Complete", namespace=namespace, timeout_s=PATIENCE_S)
    log = client.kubectl("logs", "job/gpu-acceptance", f"--namespace={namespace}")
    found = {one["check"]: one for one in json.loads(log[log.index("\n{") :])["findings"]}
    assert found["extension by Triton's compiler"]["state"] == "passed", found
