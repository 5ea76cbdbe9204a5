"""Pods of runs under a user that the platform assigns, as OpenShift's restricted-v2 does: one that no image knows."""

from tests.e2e.conftest import Installed
from tests.e2e.support import CLAIM, PATIENCE_S, finetune, rows, wait_reason

from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.summary import Summary

ASSIGNED = 1_000_660_000


def test_a_run_trains_verifies_and_publishes_as_a_user_without_a_name(installed: Installed, namespace: str) -> None:
    """With group 0, and a claim that Kubernetes hands over to the group that was assigned."""
    client = installed.client
    client.apply(CLAIM, rows(), finetune("assigned", suspend=True), namespace=namespace)
    wait_reason(client, namespace, "assigned", "Suspended", "SuspendedByUser")
    (job,) = client.get("jobs", f"--namespace={namespace}")["items"]
    template = job["spec"]["template"]
    spec, annotations = template["spec"], template["metadata"]["annotations"]
    spec["securityContext"] |= {"runAsUser": ASSIGNED, "runAsGroup": 0, "fsGroup": ASSIGNED}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "assigned", "annotations": annotations},
        "spec": spec,
    }
    client.apply(pod, namespace=namespace)
    client.wait("pod/assigned", "jsonpath={.status.phase}=Succeeded", namespace=namespace, timeout_s=PATIENCE_S)
    (ended,) = client.get("pod", "assigned", f"--namespace={namespace}")["status"]["containerStatuses"]
    summary = Summary.from_message(ended["state"]["terminated"]["message"])
    assert summary.reason is Reason.SUCCEEDED
    assert "KeyError" not in client.kubectl("logs", "assigned", f"--namespace={namespace}")
