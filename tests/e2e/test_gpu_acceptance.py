"""The trainer's image has what GPUs and their networks need: on a CPU, as a pod's user, Triton builds and RDMA's
libraries load."""

import json
from pathlib import Path

import yaml
from tests.e2e.conftest import Installed
from tests.e2e.support import PATIENCE_S
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
    follow = f"until kubectl logs --namespace={namespace} --follow job/gpu-acceptance; do sleep 5; done"
    log = execute(follow, client.environment, tmp_path, errors=True, timeout_s=PATIENCE_S)
    client.wait("job/gpu-acceptance", "condition=Complete", namespace=namespace, timeout_s=PATIENCE_S)
    found = {one["check"]: one for one in json.loads(log[log.index("\n{") :])["findings"]}
    assert found["extension by Triton's compiler"]["state"] == "passed", found


def test_the_image_has_the_libraries_by_which_nccl_reaches_rdma(installed: Installed, namespace: str) -> None:
    """By the names that NCCL loads them by; without them it takes TCP and says nothing."""
    client = installed.client
    pod = yaml.safe_load(JOB.read_text(encoding="utf-8"))["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    container["image"] = installed.images.trainer
    load = 'import ctypes; [ctypes.CDLL(name) for name in ("libibverbs.so.1", "libmlx5.so.1")]; print("loaded")'
    container["command"], container["args"] = ["sh", "-c", f"python -c '{load}' || true"], []
    container["resources"] = {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}}
    client.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "rdma"}, "spec": pod}, namespace=namespace)
    client.wait("pod/rdma", "jsonpath={.status.phase}=Succeeded", namespace=namespace, timeout_s=PATIENCE_S)
    assert client.kubectl("logs", "rdma", f"--namespace={namespace}").strip() == "loaded"
