"""B11 to B16 and B21: a pod that does not come up says why, with the name and the remedy, and begins once it may."""

import uuid
from typing import Any

import pytest
from tests.component.cluster_acts import make_claim, post_event
from tests.component.patience import eventually
from tests.component.stage import Stage
from tests.faults.one_run import Run, begin, free_of_claims

IMAGE = "registry.example/lora-trainer:test"
NOT_FOUND = f'failed to pull and unpack image "{IMAGE}": failed to resolve reference "{IMAGE}": {IMAGE}: not found'
DENIED = (
    f'failed to pull and unpack image "{IMAGE}": failed to resolve reference "{IMAGE}": failed to authorize: failed to '
    "fetch anonymous token: unexpected status from GET request to https://registry.example/token: 401 Unauthorized"
)


def _goes_on(run: Run) -> None:
    """The trainer of the pod that waited starts, and the user sees it; no other pod was made."""
    (pod,) = run.pods
    assert run.running_pod()["metadata"]["uid"] == pod["metadata"]["uid"]
    assert len(run.jobs) == 1


@pytest.mark.fault("B11")
def test_an_image_that_cannot_be_pulled_is_named_and_waited_for(shared: Stage) -> None:
    """From the first failed pull on, through the back-off, until the image is there."""
    run = begin(shared, "b11-tag")
    pod = run.pod()
    shared.wait_pod_state(pod, "ErrImagePull", NOT_FOUND)
    told = run.wait("PodsReady", "False", "ImagePullBackOff")
    assert IMAGE in told["message"]
    shared.wait_pod_state(pod, "ImagePullBackOff", f'Back-off pulling image "{IMAGE}": ErrImagePull: {NOT_FOUND}')
    assert "check the name, the registry and the pull secrets" in run.wait_event("ImagePullBackOff")
    _goes_on(run)


@pytest.mark.fault("B11")
def test_a_pull_secret_that_is_missing_is_named(shared: Stage) -> None:
    """The kubelet tells its name in an Event alone; the container only says that it was denied."""
    run = begin(shared, "b11-secret")
    pod = run.pod()
    shared.wait_pod_state(pod, "ErrImagePull", DENIED)
    told = "Unable to retrieve some image pull secrets (regcred); attempting to pull the image may not succeed."
    post_event(shared, pod, "FailedToRetrieveImagePullSecret", told)
    seen = run.wait_told("PodsReady", "create Secret regcred in this namespace", reason="ImagePullBackOff")
    assert "unexpected status from GET request to https://registry.example/token: 401 Unauthorized" in seen


@pytest.mark.fault("B11")
def test_an_image_name_that_is_none_ends_the_run_at_once(shared: Stage) -> None:
    """No waiting helps: the verdict names the image and the place where it is set, and the Job goes."""
    run = begin(shared, "b11-name")
    told = 'Failed to apply default image tag "UPPER case": couldn\'t parse image name: invalid reference format'
    shared.wait_pod_state(run.pod(), "InvalidImageName", told)
    verdict = run.wait("Failed", "True", "InvalidImage")
    assert "UPPER case" in verdict["message"]
    assert "the trainer's image in the operator's configuration" in verdict["message"]
    eventually(lambda: not run.jobs, "the Job is gone, which would wait for ever")
    assert run.condition("Failed") == verdict


@pytest.mark.fault("B12")
def test_a_run_without_room_tells_the_schedulers_sentence_and_begins_when_there_is_a_node(shared: Stage) -> None:
    """The real scheduler: 64 GPUs nowhere, then a node that has them."""
    toleration = {"key": "fault", "operator": "Equal", "value": "b12"}
    scheduling = {"tolerations": [toleration]}
    run = begin(
        shared,
        "b12",
        **free_of_claims(resources={"gpus": 64}, training={"effectiveBatchSize": 64}, scheduling=scheduling),
    )
    told = run.wait("PodsReady", "False", "Unschedulable")
    assert "nodes are available" in told["message"]
    assert "add a node that fits" in told["message"]
    node = _add_node(shared, f"b12-{uuid.uuid4().hex[:6]}", gpus=8)
    try:
        run.wait_told("PodsReady", "Insufficient nvidia.com/gpu", reason="Unschedulable")
        _set_gpus(shared, node, 64)
        pod = eventually(
            lambda: next((pod for pod in run.pods if pod["spec"].get("nodeName") == node), None), "the pod has a node"
        )
        assert len(run.pods) == 1
        shared.run_pod(pod)
        run.wait("PodsReady", "True")
    finally:
        shared.api.delete(f"/api/v1/nodes/{node}")


@pytest.mark.fault("B13")
def test_a_quota_on_gpus_is_told_with_its_name_and_the_run_begins_when_it_is_raised(stage: Stage) -> None:
    """The Job exists and may make no pod: the quota's own words are in the condition."""
    quota = stage.path("resourcequotas", "gpus")
    hard = {"requests.nvidia.com/gpu": "0"}
    stage.api.post(stage.path("resourcequotas"), {"metadata": {"name": "gpus"}, "spec": {"hard": hard}})
    eventually(lambda: stage.api.get(quota).get("status", {}).get("hard"), "the quota is in force")
    stage.start()
    run = begin(stage, "b13")
    told = run.wait("PodsReady", "False", "QuotaExceeded")
    assert "exceeded quota: gpus" in told["message"]
    assert "requests.nvidia.com/gpu=1" in told["message"]
    assert "have it raised" in run.wait_event("QuotaExceeded")
    assert run.condition("Accepted")["status"] == "True"
    stage.api.patch(quota, {"spec": {"hard": {"requests.nvidia.com/gpu": "1"}}})
    run.running_pod()


@pytest.mark.fault("B14")
def test_a_limit_range_is_told_with_the_field_that_may_ask_for_less(stage: Stage) -> None:
    """Also: where the namespace demands the restricted standard of pods, a run's pod is one."""
    enforce = {"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted"}
    stage.api.patch(f"/api/v1/namespaces/{stage.namespace}", {"metadata": {"labels": enforce}})
    stage.api.post(stage.path("limitranges"), _at_most("4Gi"))
    stage.start()
    run = begin(stage, "b14", resources={"memory": "16Gi"})
    told = run.wait("PodsReady", "False", "AdmissionDenied")
    assert "maximum memory usage per Container is 4Gi, but limit is 16Gi" in told["message"]
    assert "spec.resources" in told["message"]
    assert "LimitRange" in told["message"]
    stage.api.delete(stage.path("limitranges", "small"))
    run.running_pod()


@pytest.mark.fault("B14")
def test_a_violation_of_the_pod_security_standard_names_the_rule(stage: Stage) -> None:
    """What the Job controller reports becomes the reason; our own pods keep the rule, so its report is played."""
    stage.api.post(stage.path("limitranges"), _at_most("4Gi"))
    stage.start()
    run = begin(stage, "b14-standard")
    run.wait("PodsReady", "False", "AdmissionDenied")
    rule = 'hostPath volumes (volume "models"), runAsNonRoot != true (pod or container "trainer")'
    told = f'Error creating: pods "b14" is forbidden: violates PodSecurity "restricted:latest": {rule}'
    post_event(stage, run.job(), "FailedCreate", told, in_s=600)
    seen = run.wait("PodsReady", "False", "PodSecurityViolation")
    assert rule in seen["message"]
    assert "the namespace must allow what the message names" in seen["message"]
    run.wait_event("PodSecurityViolation")


@pytest.mark.fault("B15")
@pytest.mark.parametrize(
    ("told", "reason", "named"),
    [
        ('secret "hf-token" not found', "SecretNotFound", "Secret hf-token, which does not exist in this namespace"),
        (
            "couldn't find key HF_TOKEN in Secret default/hf-token",
            "SecretNotFound",
            "key HF_TOKEN in Secret hf-token, which does not have it",
        ),
        ('configmap "ca" not found', "ConfigMapNotFound", "ConfigMap ca, which does not exist in this namespace"),
    ],
)
def test_what_a_container_misses_is_named_and_waited_for(shared: Stage, told: str, reason: str, named: str) -> None:
    """The kubelet's CreateContainerConfigError; once the object is made, the same pod starts."""
    run = begin(shared, f"b15-{uuid.uuid4().hex[:6]}", model={"uri": "hf://acme/m", "secretRef": {"name": "hf-token"}})
    shared.wait_pod_state(run.pod(), "CreateContainerConfigError", told)
    seen = run.wait("PodsReady", "False", reason)
    assert named in seen["message"]
    assert "create it, and the run goes on" in seen["message"]
    run.wait_event(reason)
    _goes_on(run)


@pytest.mark.fault("B15")
def test_a_config_map_with_data_that_is_missing_is_named(shared: Stage) -> None:
    """It is mounted, so the kubelet tells of it in an Event."""
    run = begin(shared, "b15-data", dataset={"uri": "configmap://rows/rows.jsonl"})
    pod = run.pod()
    shared.wait_pod_state(pod, "ContainerCreating", "")
    told = 'MountVolume.SetUp failed for volume "configmap-rows" : configmap "rows" not found'
    post_event(shared, pod, "FailedMount", told)
    seen = run.wait("PodsReady", "False", "ConfigMapNotFound")
    assert "ConfigMap rows, which does not exist in this namespace: create it" in seen["message"]
    _goes_on(run)


@pytest.mark.fault("B16")
def test_a_claim_that_is_not_bound_is_named(stage: Stage) -> None:
    """The real scheduler says that a claim is unbound and not which; the operator names those of the pod."""
    for name in ("data", "adapters"):
        make_claim(stage, name, storageClassName="no-such-class")
    stage.start()
    run = begin(stage, "b16")
    told = run.wait("PodsReady", "False", "VolumeNotReady")
    assert "unbound" in told["message"]
    assert "adapters" in told["message"]
    assert "data" in told["message"]
    assert "kubectl describe pvc" in told["message"]
    run.wait_event("VolumeNotReady")


@pytest.mark.fault("B16")
@pytest.mark.parametrize(
    ("event", "told"),
    [
        (
            "FailedAttachVolume",
            'Multi-Attach error for volume "pvc-6a" Volume is already used by pod(s) tone-abcde-1-0-x7k2p',
        ),
        (
            "FailedMount",
            'MountVolume.SetUp failed for volume "pvc-6a" : mount failed: exit status 32: access denied by server',
        ),
    ],
)
def test_a_volume_that_cannot_be_attached_or_mounted_tells_the_nodes_words(
    shared: Stage, event: str, told: str
) -> None:
    """The Event's sentence is in the condition; once the volume is free, the same pod starts."""
    run = begin(shared, f"b16-{event.lower()}")
    pod = run.pod()
    shared.wait_pod_state(pod, "ContainerCreating", "")
    post_event(shared, pod, event, told)
    assert "kubectl describe pvc" in run.wait_told("PodsReady", told, reason="VolumeNotReady")
    _goes_on(run)


@pytest.mark.fault("B21")
def test_of_several_nodes_the_one_that_is_missing_is_told_and_the_others_do_not_wait_for_ever(shared: Stage) -> None:
    """3 of 4 pods run: the fourth one's reason and the count; after pendingTimeoutSeconds the GPUs are free again."""
    run = begin(shared, "b21", resources={"nodes": 4})
    pods = eventually(lambda: run.pods if len(run.pods) == 4 else None, "there are four pods")
    for number, pod in enumerate(pods[:3]):
        shared.run_pod(pod, ip=f"127.82.21.{number + 1}")
    assert pods[3]["metadata"]["name"] in run.wait_told("PodsReady", "3 of 4 pods run", reason="VolumeNotReady")
    assert run.condition("PodsReady")["status"] == "False"
    run.change(pendingTimeoutSeconds=1)
    verdict = run.wait("Failed", "True", "PendingTimeout")
    assert "3 of 4 pods run" in verdict["message"]
    eventually(lambda: not run.jobs, "the Job is gone, and with it the three pods that held GPUs")
    eventually(lambda: all(p["metadata"].get("deletionTimestamp") for p in run.pods), "the pods are told to end")


def _at_most(memory: str) -> dict[str, Any]:
    """A LimitRange named `small`."""
    limit = {"type": "Container", "max": {"memory": memory}}
    return {"metadata": {"name": "small"}, "spec": {"limits": [limit]}}


def _add_node(stage: Stage, name: str, *, gpus: int) -> str:
    """A node that tolerates the runs of this test alone."""
    taints = [{"key": "fault", "value": "b12", "effect": "NoSchedule"}]
    stage.api.post("/api/v1/nodes", {"metadata": {"name": name}, "spec": {"taints": taints}})
    _set_gpus(stage, name, gpus)
    return name


def _set_gpus(stage: Stage, name: str, gpus: int) -> None:
    room: dict[str, Any] = {"cpu": "64", "memory": "512Gi", "pods": "10", "nvidia.com/gpu": str(gpus)}
    status = {"capacity": room, "allocatable": room, "conditions": [{"type": "Ready", "status": "True"}]}
    stage.api.patch(f"/api/v1/nodes/{name}/status", {"status": status})
