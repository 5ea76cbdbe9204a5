"""The acceptance of a GPU in the trainer's image, on a CPU: as a pod's user it can build what Triton needs."""

import json
from pathlib import Path

import yaml
from tests.e2e.conftest import Installed
from tests.e2e.support import PATIENCE_S
from tests.pages.blocks import block
from tests.pages.executed import execute

JOB = Path(__file__).resolve().parents[2] / "examples/gpu-acceptance.yaml"


def test_the_image_builds_an_extension_through_triton_as_a_pods_user(
    installed: Installed, namespace: str, tmp_path: Path
) -> None:
    """The example's Job with another image, without its GPU and on the CPU: nothing else is changed. Its log
    is followed from the start, by the page's command."""
    client = installed.client
    job = yaml.safe_load(JOB.read_text(encoding="utf-8"))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    container["image"] = installed.images.trainer
    container["args"] = ["--device=cpu", "--tiny", "--parts=device", "--json=-"]
    container["resources"] = {"requests": {"cpu": "500m", "memory": "2Gi"}, "limits": {"memory": "4Gi"}}
    client.apply(job, namespace=namespace)
    follow = block("docs/gpu.md", "kubectl create -f examples/gpu-acceptance.yaml").commands.splitlines()[1]
    here = follow.replace("kubectl logs", f"kubectl logs --namespace={namespace}")
    log = execute(here, client.environment, tmp_path, errors=True, timeout_s=PATIENCE_S)
    client.wait("job/gpu-acceptance", "condition=Complete", namespace=namespace, timeout_s=PATIENCE_S)
    found = {one["check"]: one for one in json.loads(log[log.index("\n{") :])["findings"]}
    assert found["extension by Triton's compiler"]["state"] == "passed", found
