"""What a user sees when something is wrong, and that the run goes on once it is mended: real pods, the real trainer."""

import json

import pytest
from tests.e2e.conftest import Installed
from tests.e2e.support import (
    CLAIM,
    LONG,
    MODEL,
    SLOW,
    condition,
    finetune,
    long_rows,
    pods,
    rows,
    status,
    verdict,
    wait_end,
    wait_reason,
)

from localcluster.client import CommandError


def test_a_broken_row_ends_the_run_with_file_and_line(installed: Installed, namespace: str) -> None:
    """The third line is no JSON: DatasetInvalid, no retry, the place in the message."""
    client = installed.client
    broken = '{"prompt": "a", "completion": "b"}\n' * 2 + '{"prompt": "a", completion}\n'
    client.apply(CLAIM, rows(broken), finetune("broken"), namespace=namespace)
    ended = wait_end(client, namespace, "broken")
    complete, reason, message = verdict(ended)
    assert (complete, reason) == ("False", "DatasetInvalid")
    assert "train.jsonl" in message
    assert "line 3" in message
    stated = {c["type"]: (c["status"], c["reason"]) for c in ended["conditions"]}
    assert stated["Failed"] == ("True", "DatasetInvalid")
    assert stated["ArtifactPublished"] == stated["CheckpointSaved"] == ("False", "DatasetInvalid")
    assert "Traceback" not in json.dumps(ended)
    assert len(pods(client, namespace)) == 1


def test_a_missing_model_ends_the_run_with_its_name(installed: Installed, namespace: str) -> None:
    """The Hub has no such repository."""
    client = installed.client
    client.apply(CLAIM, rows(), finetune("nobody", model={"uri": "hf://nobody/no-such-model"}), namespace=namespace)
    ended = wait_end(client, namespace, "nobody")
    complete, reason, message = verdict(ended)
    assert (complete, reason) == ("False", "ModelNotFound")
    assert "nobody/no-such-model" in message
    assert [c["reason"] for c in ended["conditions"] if c["type"] == "CheckpointSaved"] == ["ModelNotFound"]


def test_a_missing_secret_is_named_and_the_run_goes_on_once_it_exists(installed: Installed, namespace: str) -> None:
    """PodsReady says SecretNotFound; creating the Secret is enough, and its value shows nowhere."""
    client = installed.client
    model = {"uri": MODEL, "secretRef": {"name": "hf-token"}}
    client.apply(CLAIM, rows(), finetune("gated", model=model), namespace=namespace)
    missing = wait_reason(client, namespace, "gated", "PodsReady", "SecretNotFound")
    assert "hf-token" in missing["message"]
    assert condition(client, namespace, "gated", "Complete")["status"] == "Unknown"
    token = "hf_end_to_end_secret_value"
    client.kubectl("create", "secret", "generic", "hf-token", f"--from-literal=HF_TOKEN={token}", f"-n={namespace}")
    assert verdict(wait_end(client, namespace, "gated"))[:2] == ("True", "Succeeded")
    everything = client.kubectl("get", "lft,jobs,pods,events,configmaps", "--output=yaml", f"--namespace={namespace}")
    logs = client.kubectl("logs", pods(client, namespace)[0]["metadata"]["name"], f"--namespace={namespace}")
    assert token not in everything + logs + installed.operator_logs()


def test_a_missing_claim_is_named_and_the_run_goes_on_once_it_exists(installed: Installed, namespace: str) -> None:
    """PodsReady says VolumeNotReady with the claim's name; creating the claim is enough."""
    client = installed.client
    client.apply(rows(), finetune("homeless"), namespace=namespace)
    missing = wait_reason(client, namespace, "homeless", "PodsReady", "VolumeNotReady")
    assert "adapters" in missing["message"]
    client.apply(CLAIM, namespace=namespace)
    assert verdict(wait_end(client, namespace, "homeless"))[:2] == ("True", "Succeeded")


def test_a_missing_config_map_is_named(installed: Installed, namespace: str) -> None:
    """The data set's ConfigMap does not exist: the message names it, then the run goes on."""
    client = installed.client
    client.apply(CLAIM, finetune("no-rows"), namespace=namespace)
    missing = wait_reason(client, namespace, "no-rows", "PodsReady", "ConfigMapNotFound")
    assert "rows" in missing["message"]
    client.apply(rows(), namespace=namespace)
    assert verdict(wait_end(client, namespace, "no-rows"))[:2] == ("True", "Succeeded")


def test_a_gpu_that_no_node_has_is_waited_for(installed: Installed, namespace: str) -> None:
    """Unschedulable in the scheduler's words; when the node offers a GPU the run starts, and says it is on the CPU."""
    client = installed.client
    resources = {"gpus": 1, "cpu": "500m", "memory": "3Gi"}
    client.apply(CLAIM, rows(), finetune("hungry", resources=resources), namespace=namespace)
    waiting = wait_reason(client, namespace, "hungry", "PodsReady", "Unschedulable")
    assert "nvidia.com/gpu" in waiting["message"]
    assert status(client, namespace, "hungry").get("startTime")
    try:
        installed.offer_gpus(2)
        ended = wait_end(client, namespace, "hungry")
    finally:
        installed.offer_gpus(0)
    assert verdict(ended)[:2] == ("True", "Succeeded")
    assert ended["resolved"]["device"] == "cpu"


def test_what_the_schema_forbids_is_refused_at_apply(installed: Installed, namespace: str) -> None:
    """kubectl apply itself answers with the field and the rule."""
    with pytest.raises(CommandError, match=r"spec\.lora\.rank"):
        installed.client.apply(finetune("zero", lora={"rank": 0}), namespace=namespace)


def test_deleting_a_running_resource_frees_its_pod(installed: Installed, namespace: str) -> None:
    """The pod gets SIGTERM and is gone; the claim stays."""
    client = installed.client
    client.apply(CLAIM, long_rows(), finetune("doomed", **LONG), namespace=namespace)
    wait_reason(client, namespace, "doomed", "Complete", "Training")
    pod = pods(client, namespace)[0]["metadata"]["name"]
    client.kubectl("delete", "lft", "doomed", f"--namespace={namespace}", "--cascade=background")
    client.wait(f"pod/{pod}", "delete", namespace=namespace, timeout_s=60)
    assert client.get("pvc", "adapters", f"--namespace={namespace}")["status"]["phase"] == "Bound"


def test_killing_the_operator_does_not_touch_a_running_pod(installed: Installed, namespace: str) -> None:
    """The operator's pod is deleted without grace while a run trains: same pod, same verdict."""
    client = installed.client
    client.apply(CLAIM, long_rows(), finetune("steady", training=SLOW), namespace=namespace)
    wait_reason(client, namespace, "steady", "Complete", "Training")
    before = [pod["metadata"]["uid"] for pod in pods(client, namespace)]
    installed.kill_operator()
    assert verdict(wait_end(client, namespace, "steady"))[:2] == ("True", "Succeeded")
    assert [pod["metadata"]["uid"] for pod in pods(client, namespace)] == before
    assert status(client, namespace, "steady")["attempt"] == 1
