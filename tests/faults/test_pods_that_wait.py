"""B11 to B16 and B21: a pod that does not come up says why, with the name and the remedy, and begins once it may."""

import uuid
from typing import Any

import pytest
from tests.component.cluster_acts import make_claim, post_event
from tests.component.patience import eventually
from tests.component.stage import Stage, node_metadata
from tests.faults.one_run import begin, free_of_claims
from tests.faults.proofs import Proofs

from lora_operator.views.names import PREFLIGHT, TRAINER_CONTAINER

IMAGE = "registry.example/lora-trainer:test"
NOT_FOUND = f'failed to pull and unpack image "{IMAGE}": failed to resolve reference "{IMAGE}": {IMAGE}: not found'
DENIED = (
    f'failed to pull and unpack image "{IMAGE}": failed to resolve reference "{IMAGE}": failed to authorize: failed to '
    "fetch anonymous token: unexpected status from GET request to https://registry.example/token: 401 Unauthorized"
)


@pytest.mark.fault("B11.pull", "B11.begins")
def test_an_image_that_cannot_be_pulled_is_named_and_waited_for(shared: Stage, faults: Proofs) -> None:
    """From the first failed pull on, through the back-off, until the image is there."""
    run = begin(shared, "b11-tag")
    pod = run.pod()
    shared.wait_pod_state(pod, "ErrImagePull", NOT_FOUND)
    faults.saw("B11.pull", run, image=IMAGE)
    shared.wait_pod_state(pod, "ImagePullBackOff", f'Back-off pulling image "{IMAGE}": ErrImagePull: {NOT_FOUND}')
    faults.saw("B11.pull", run, image=IMAGE)
    faults.kept("B11.begins", faults.remember(run))


@pytest.mark.fault("B11.secret")
def test_a_pull_secret_that_is_missing_is_named(shared: Stage, faults: Proofs) -> None:
    """The kubelet names it in an Event alone; the container only says that it was denied."""
    run = begin(shared, "b11-secret")
    pod = run.pod()
    shared.wait_pod_state(pod, "ErrImagePull", DENIED)
    said = "Unable to retrieve some image pull secrets (regcred); attempting to pull the image may not succeed."
    post_event(shared, pod, "FailedToRetrieveImagePullSecret", said)
    answer = "unexpected status from GET request to https://registry.example/token: 401 Unauthorized"
    faults.saw("B11.secret", run, secret="regcred", registry_answer=answer)


@pytest.mark.fault("B11.name", "B11.stopped", "B11.verdict")
def test_an_image_name_that_is_none_ends_the_run_at_once(shared: Stage, faults: Proofs) -> None:
    """No waiting helps: the verdict names the image and the place where it is set, and the Job goes."""
    run = begin(shared, "b11-name")
    said = 'Failed to apply default image tag "UPPER case": couldn\'t parse image name: invalid reference format'
    shared.wait_pod_state(run.pod(), "InvalidImageName", said)
    faults.saw("B11.name", run, image="UPPER case")
    ended = faults.remember(run)
    with faults.proving("B11.stopped"):
        eventually(lambda: not run.jobs, "the Job is gone, which would wait for ever")
        run.be_looked_at()
        assert run.jobs == []
    faults.kept("B11.verdict", ended)


@pytest.mark.fault("B12.unschedulable", "B12.gpus", "B12.begins")
def test_a_run_without_room_shows_the_schedulers_sentence_and_begins_when_there_is_a_node(
    shared: Stage, faults: Proofs
) -> None:
    """The real scheduler: 64 GPUs nowhere, then a node that has them."""
    toleration = {"key": "fault", "operator": "Equal", "value": "b12"}
    scheduling = {"tolerations": [toleration]}
    run = begin(
        shared,
        "b12",
        **free_of_claims(resources={"gpus": 64}, training={"effectiveBatchSize": 64}, scheduling=scheduling),
    )
    faults.saw("B12.unschedulable", run)
    node = _add_node(shared, f"b12-{uuid.uuid4().hex[:6]}", gpus=8)
    try:
        faults.saw("B12.gpus", run)
        waiting = faults.remember(run)
        _set_gpus(shared, node, 64)
        eventually(lambda: any(pod["spec"].get("nodeName") == node for pod in run.pods), "the pod has a node")
        faults.kept("B12.begins", waiting)
    finally:
        shared.api.delete(f"/api/v1/nodes/{node}")


@pytest.mark.fault("B13")
def test_a_quota_on_gpus_is_reported_with_its_name_and_the_run_begins_when_it_is_raised(
    stage: Stage, faults: Proofs
) -> None:
    """The Job exists and may make no pod: the quota's own words are in the condition."""
    quota = stage.path("resourcequotas", "gpus")
    hard = {"requests.nvidia.com/gpu": "0"}
    stage.api.post(stage.path("resourcequotas"), {"metadata": {"name": "gpus"}, "spec": {"hard": hard}})
    eventually(lambda: stage.api.get(quota).get("status", {}).get("hard"), "the quota is in force")
    stage.start()
    run = begin(stage, "b13")
    faults.saw("B13.quota", run, quota="gpus")
    waiting = faults.remember(run)
    stage.api.patch(quota, {"spec": {"hard": {"requests.nvidia.com/gpu": "1"}}})
    faults.kept("B13.begins", waiting)


@pytest.mark.fault("B14.limit", "B14.begins", "B14.restricted")
def test_a_limit_range_is_reported_with_the_field_that_may_ask_for_less(stage: Stage, faults: Proofs) -> None:
    """Also: where the namespace demands the restricted standard of pods, a run's pod is one."""
    _enforce_restricted(stage)
    stage.api.post(stage.path("limitranges"), _at_most("4Gi"))
    stage.start()
    run = begin(stage, "b14", resources={"memory": "16Gi"})
    faults.saw("B14.limit", run)
    waiting = faults.remember(run)
    stage.api.delete(stage.path("limitranges", "small"))
    with faults.proving("B14.restricted"):
        faults.kept("B14.begins", waiting)
        looked, several = begin(stage, "b14-looked", preflight="Run"), begin(stage, "b14-two", resources={"nodes": 2})
        eventually(lambda: looked.children("pods", PREFLIGHT), "the preflight has its pod")
        eventually(lambda: len(several.pods) == 2, "each of two nodes has its pod")


@pytest.mark.fault("B14.standard")
def test_a_violation_of_the_pod_security_standard_names_the_rule(stage: Stage, faults: Proofs) -> None:
    """Somebody puts a hostile value into the template of a Job that is held, as a queue may: its pod is refused."""
    _enforce_restricted(stage)
    stage.start()
    run = begin(stage, "b14-standard", suspend=True)
    run.wait("Suspended", "True", "SuspendedByUser")
    hostile = {f"container.apparmor.security.beta.kubernetes.io/{TRAINER_CONTAINER}": "unconfined"}
    template = {"template": {"metadata": {"annotations": hostile}}}
    stage.api.patch(stage.path("jobs", run.job()["metadata"]["name"]), {"spec": template})
    run.change(suspend=False)
    faults.saw("B14.standard", run, rule="forbidden AppArmor profile")
    assert run.pods == []


@pytest.mark.fault("B15.begins")
@pytest.mark.parametrize(
    ("said", "promise", "names"),
    [
        pytest.param(
            'secret "hf-token" not found',
            "B15.secret",
            {"secret": "hf-token"},
            marks=pytest.mark.fault("B15.secret"),
        ),
        pytest.param(
            "couldn't find key HF_TOKEN in Secret default/hf-token",
            "B15.key",
            {"key": "HF_TOKEN", "secret": "hf-token"},
            marks=pytest.mark.fault("B15.key"),
        ),
        pytest.param(
            'configmap "ca" not found',
            "B15.config-map",
            {"config_map": "ca"},
            marks=pytest.mark.fault("B15.config-map"),
        ),
    ],
)
def test_what_a_container_misses_is_named_and_waited_for(
    shared: Stage, faults: Proofs, said: str, promise: str, names: dict[str, Any]
) -> None:
    """The kubelet's CreateContainerConfigError; once the object is made, the same pod starts."""
    run = begin(shared, f"b15-{uuid.uuid4().hex[:6]}", model={"uri": "hf://acme/m", "secretRef": {"name": "hf-token"}})
    shared.wait_pod_state(run.pod(), "CreateContainerConfigError", said)
    faults.saw(promise, run, **names)
    faults.kept("B15.begins", faults.remember(run))


@pytest.mark.fault("B15.config-map", "B15.begins")
def test_a_config_map_with_data_that_is_missing_is_named(shared: Stage, faults: Proofs) -> None:
    """It is mounted, so the kubelet reports it in an Event."""
    run = begin(shared, "b15-data", dataset={"uri": "configmap://rows/rows.jsonl"})
    pod = run.pod()
    shared.wait_pod_state(pod, "ContainerCreating", "")
    said = 'MountVolume.SetUp failed for volume "configmap-rows" : configmap "rows" not found'
    post_event(shared, pod, "FailedMount", said)
    faults.saw("B15.config-map", run, config_map="rows")
    faults.kept("B15.begins", faults.remember(run))


@pytest.mark.fault("B16.unbound", "B16.claims")
def test_a_claim_that_is_not_bound_is_named(stage: Stage, faults: Proofs) -> None:
    """The real scheduler says that a claim is unbound and not which; the operator names those of the pod."""
    for name in ("data", "adapters"):
        make_claim(stage, name, storageClassName="no-such-class")
    stage.start()
    run = begin(stage, "b16")
    before = faults.remember(run)
    for name in ("data", "adapters"):
        faults.saw("B16.unbound", run, claim=name)
    run.be_looked_at()
    faults.kept("B16.claims", before)


@pytest.mark.fault("B16.mount", "B16.begins")
@pytest.mark.parametrize(
    ("event", "said", "remedy"),
    [
        (
            "FailedAttachVolume",
            'Multi-Attach error for volume "pvc-6a" Volume is already used by pod(s) tone-abcde-1-0-x7k2p',
            "a claim of its own",
        ),
        (
            "FailedMount",
            'MountVolume.SetUp failed for volume "pvc-6a" : mount failed: exit status 32: access denied by server',
            "kubectl describe pvc",
        ),
    ],
)
def test_a_volume_that_cannot_be_attached_or_mounted_is_reported_in_the_nodes_words(
    shared: Stage, faults: Proofs, event: str, said: str, remedy: str
) -> None:
    """The Event's sentence is in the condition; once the volume is free, the same pod starts."""
    run = begin(shared, f"b16-{event.lower()}")
    pod = run.pod()
    shared.wait_pod_state(pod, "ContainerCreating", "")
    post_event(shared, pod, event, said)
    faults.saw("B16.mount", run, sentence=said, remedy=remedy)
    faults.kept("B16.begins", faults.remember(run))


@pytest.mark.fault("B21")
def test_of_several_nodes_the_one_that_is_missing_is_named_and_the_others_do_not_wait_for_ever(
    shared: Stage, faults: Proofs
) -> None:
    """3 of 4 pods run: the fourth one's reason and the count; after pendingTimeoutSeconds the GPUs are free again."""
    run = begin(shared, "b21", resources={"nodes": 4})
    pods = eventually(lambda: run.pods if len(run.pods) == 4 else None, "there are four pods")
    for number, pod in enumerate(pods[:3]):
        shared.run_pod(pod, ip=f"127.82.21.{number + 1}")
    faults.saw("B21.waits", run, pod=pods[3]["metadata"]["name"])
    run.change(pendingTimeoutSeconds=1)
    faults.saw("B21.timeout", run)
    ended = faults.remember(run)
    with faults.proving("B21.freed"):
        eventually(lambda: not run.jobs, "the Job is gone, and with it the three pods that held GPUs")
        eventually(lambda: all(p["metadata"].get("deletionTimestamp") for p in run.pods), "the pods are ended")
        run.be_looked_at()
        assert run.jobs == []
    faults.kept("B21.verdict", ended)


def _enforce_restricted(stage: Stage) -> None:
    """The strictest of the pod security standards, enforced."""
    enforce = {"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted"}
    stage.api.patch(f"/api/v1/namespaces/{stage.namespace}", {"metadata": {"labels": enforce}})


def _at_most(memory: str) -> dict[str, Any]:
    """A LimitRange named `small`."""
    limit = {"type": "Container", "max": {"memory": memory}}
    return {"metadata": {"name": "small"}, "spec": {"limits": [limit]}}


def _add_node(stage: Stage, name: str, *, gpus: int) -> str:
    """A node that tolerates the runs of this test alone."""
    taints = [{"key": "fault", "value": "b12", "effect": "NoSchedule"}]
    stage.api.post("/api/v1/nodes", {"metadata": node_metadata(name), "spec": {"taints": taints}})
    _set_gpus(stage, name, gpus)
    return name


def _set_gpus(stage: Stage, name: str, gpus: int) -> None:
    room: dict[str, Any] = {"cpu": "256", "memory": "1Ti", "pods": "10", "nvidia.com/gpu": str(gpus)}
    status = {"capacity": room, "allocatable": room, "conditions": [{"type": "Ready", "status": "True"}]}
    stage.api.patch(f"/api/v1/nodes/{name}/status", {"status": status})
