"""B11 to B16 and B21: a pod that does not come up says why, with the name and the remedy, and begins once it may."""

import uuid
from typing import Any

import pytest
from tests.component.cluster_acts import make_claim, post_event
from tests.component.patience import eventually
from tests.component.stage import Stage, node_metadata
from tests.faults.moments import Kept
from tests.faults.one_run import begin, free_of_claims
from tests.faults.seen import Sees, kept, remember, saw

from lora_operator.model.names import PREFLIGHT, TRAINER_CONTAINER
from lora_trainer.spec.reasons import Reason

IMAGE = "registry.example/lora-trainer:test"
NOT_FOUND = f'failed to pull and unpack image "{IMAGE}": failed to resolve reference "{IMAGE}": {IMAGE}: not found'
DENIED = (
    f'failed to pull and unpack image "{IMAGE}": failed to resolve reference "{IMAGE}": failed to authorize: failed to '
    "fetch anonymous token: unexpected status from GET request to https://registry.example/token: 401 Unauthorized"
)


def test_an_image_that_cannot_be_pulled_is_named_and_waited_for(shared: Stage) -> None:
    """From the first failed pull on, through the back-off, until the image is there."""
    run = begin(shared, "b11-tag")
    pod = run.pod()
    shared.wait_pod_state(pod, "ErrImagePull", NOT_FOUND)
    saw(
        Sees(
            conditions={"PodsReady": ("False", Reason.IMAGE_PULL_BACK_OFF)},
            says=(IMAGE, "check the name, the registry and the pull secrets"),
            event=("Warning", Reason.IMAGE_PULL_BACK_OFF),
        ),
        run,
    )
    shared.wait_pod_state(pod, "ImagePullBackOff", f'Back-off pulling image "{IMAGE}": ErrImagePull: {NOT_FOUND}')
    saw(
        Sees(
            conditions={"PodsReady": ("False", Reason.IMAGE_PULL_BACK_OFF)},
            says=(IMAGE, "check the name, the registry and the pull secrets"),
            event=("Warning", Reason.IMAGE_PULL_BACK_OFF),
        ),
        run,
    )
    kept(Kept.BEGINS, remember(run))


def test_a_pull_secret_that_is_missing_is_named(shared: Stage) -> None:
    """The kubelet names it in an Event alone; the container only says that it was denied."""
    run = begin(shared, "b11-secret")
    pod = run.pod()
    shared.wait_pod_state(pod, "ErrImagePull", DENIED)
    said = "Unable to retrieve some image pull secrets (regcred); attempting to pull the image may not succeed."
    post_event(shared, pod, "FailedToRetrieveImagePullSecret", said)
    answer = "unexpected status from GET request to https://registry.example/token: 401 Unauthorized"
    saw(
        Sees(
            conditions={"PodsReady": ("False", Reason.IMAGE_PULL_BACK_OFF)},
            says=("create Secret regcred in this namespace", answer),
        ),
        run,
    )


def test_an_image_name_that_is_none_ends_the_run_at_once(shared: Stage) -> None:
    """No waiting helps: the verdict names the image and the place where it is set, and the Job goes."""
    run = begin(shared, "b11-name")
    said = 'Failed to apply default image tag "UPPER case": couldn\'t parse image name: invalid reference format'
    shared.wait_pod_state(run.pod(), "InvalidImageName", said)
    saw(
        Sees(
            conditions={"Failed": ("True", Reason.INVALID_IMAGE), "Complete": ("False", Reason.INVALID_IMAGE)},
            says=("UPPER case", "the trainer's image in the operator's configuration"),
            event=("Warning", Reason.INVALID_IMAGE),
        ),
        run,
    )
    ended = remember(run)
    eventually(lambda: not run.jobs, "the Job is gone, which would wait for ever")
    run.be_looked_at()
    assert run.jobs == []
    kept(Kept.VERDICT, ended)


def test_a_run_without_room_shows_the_schedulers_sentence_and_begins_when_there_is_a_node(shared: Stage) -> None:
    """The real scheduler: 64 GPUs nowhere, then a node that has them."""
    toleration = {"key": "fault", "operator": "Equal", "value": "b12"}
    scheduling = {"tolerations": [toleration]}
    run = begin(
        shared,
        "b12",
        **free_of_claims(resources={"gpus": 64}, training={"effectiveBatchSize": 64}, scheduling=scheduling),
    )
    saw(
        Sees(
            conditions={"PodsReady": ("False", Reason.UNSCHEDULABLE)},
            says=("nodes are available", "add a node that fits"),
            event=("Warning", Reason.UNSCHEDULABLE),
        ),
        run,
    )
    node = _add_node(shared, f"b12-{uuid.uuid4().hex[:6]}", gpus=8)
    try:
        saw(Sees(conditions={"PodsReady": ("False", Reason.UNSCHEDULABLE)}, says=("Insufficient nvidia.com/gpu",)), run)
        waiting = remember(run)
        _set_gpus(shared, node, 64)
        eventually(lambda: any(pod["spec"].get("nodeName") == node for pod in run.pods), "the pod has a node")
        kept(Kept.BEGINS, waiting)
    finally:
        shared.api.delete(f"/api/v1/nodes/{node}")


def test_a_quota_on_gpus_is_reported_with_its_name_and_the_run_begins_when_it_is_raised(stage: Stage) -> None:
    """The Job exists and may make no pod: the quota's own words are in the condition."""
    quota = stage.path("resourcequotas", "gpus")
    hard = {"requests.nvidia.com/gpu": "0"}
    stage.api.post(stage.path("resourcequotas"), {"metadata": {"name": "gpus"}, "spec": {"hard": hard}})
    eventually(lambda: stage.api.get(quota).get("status", {}).get("hard"), "the quota is in force")
    stage.start()
    run = begin(stage, "b13")
    saw(
        Sees(
            conditions={"PodsReady": ("False", Reason.QUOTA_EXCEEDED), "Accepted": ("True", None)},
            says=("exceeded quota: gpus", "requests.nvidia.com/gpu=1", "have it raised"),
            event=("Warning", Reason.QUOTA_EXCEEDED),
        ),
        run,
    )
    waiting = remember(run)
    stage.api.patch(quota, {"spec": {"hard": {"requests.nvidia.com/gpu": "1"}}})
    kept(Kept.BEGINS, waiting)


def test_a_limit_range_is_reported_with_the_field_that_may_ask_for_less(stage: Stage) -> None:
    """Also: where the namespace demands the restricted standard of pods, a run's pod is one."""
    _enforce_restricted(stage)
    stage.api.post(stage.path("limitranges"), _at_most("4Gi"))
    stage.start()
    run = begin(stage, "b14", resources={"memory": "16Gi"})
    saw(
        Sees(
            conditions={"PodsReady": ("False", Reason.ADMISSION_DENIED)},
            says=("maximum memory usage per Container is 4Gi, but limit is 16Gi", "spec.resources", "LimitRange"),
            event=("Warning", Reason.ADMISSION_DENIED),
        ),
        run,
    )
    waiting = remember(run)
    stage.api.delete(stage.path("limitranges", "small"))
    kept(Kept.BEGINS, waiting)
    looked, several = begin(stage, "b14-looked", preflight="Run"), begin(stage, "b14-two", resources={"nodes": 2})
    eventually(lambda: looked.children("pods", PREFLIGHT), "the preflight has its pod")
    eventually(lambda: len(several.pods) == 2, "each of two nodes has its pod")


def test_a_violation_of_the_pod_security_standard_names_the_rule(stage: Stage) -> None:
    """Somebody puts a hostile value into the template of a Job that is held, as a queue may: its pod is refused."""
    _enforce_restricted(stage)
    stage.start()
    run = begin(stage, "b14-standard", suspend=True)
    run.wait("Suspended", "True", "SuspendedByUser")
    hostile = {f"container.apparmor.security.beta.kubernetes.io/{TRAINER_CONTAINER}": "unconfined"}
    template = {"template": {"metadata": {"annotations": hostile}}}
    stage.api.patch(stage.path("jobs", run.job()["metadata"]["name"]), {"spec": template})
    run.change(suspend=False)
    saw(
        Sees(
            conditions={"PodsReady": ("False", Reason.POD_SECURITY_VIOLATION)},
            says=(
                'violates PodSecurity "restricted:latest"',
                "forbidden AppArmor profile",
                "must allow what the message names",
            ),
            event=("Warning", Reason.POD_SECURITY_VIOLATION),
        ),
        run,
    )
    assert run.pods == []


@pytest.mark.parametrize(
    ("said", "reason", "says"),
    [
        (
            'secret "hf-token" not found',
            Reason.SECRET_NOT_FOUND,
            ("Secret hf-token, which does not exist in this namespace", "create it, and the run continues"),
        ),
        (
            "couldn't find key HF_TOKEN in Secret default/hf-token",
            Reason.SECRET_NOT_FOUND,
            ("key HF_TOKEN in Secret hf-token, which does not have it",),
        ),
        (
            'configmap "ca" not found',
            Reason.CONFIG_MAP_NOT_FOUND,
            ("ConfigMap ca, which does not exist in this namespace", "create it"),
        ),
    ],
)
def test_what_a_container_misses_is_named_and_waited_for(
    shared: Stage, said: str, reason: Reason, says: tuple[str, ...]
) -> None:
    """The kubelet's CreateContainerConfigError; once the object is made, the same pod starts."""
    run = begin(shared, f"b15-{uuid.uuid4().hex[:6]}", model={"uri": "hf://acme/m", "secretRef": {"name": "hf-token"}})
    shared.wait_pod_state(run.pod(), "CreateContainerConfigError", said)
    saw(Sees(conditions={"PodsReady": ("False", reason)}, says=says, event=("Warning", reason)), run)
    kept(Kept.BEGINS, remember(run))


def test_a_config_map_with_data_that_is_missing_is_named(shared: Stage) -> None:
    """It is mounted, so the kubelet reports it in an Event."""
    run = begin(shared, "b15-data", dataset={"uri": "configmap://rows/rows.jsonl"})
    pod = run.pod()
    shared.wait_pod_state(pod, "ContainerCreating", "")
    said = 'MountVolume.SetUp failed for volume "configmap-rows" : configmap "rows" not found'
    post_event(shared, pod, "FailedMount", said)
    saw(
        Sees(
            conditions={"PodsReady": ("False", Reason.CONFIG_MAP_NOT_FOUND)},
            says=("ConfigMap rows, which does not exist in this namespace", "create it"),
            event=("Warning", Reason.CONFIG_MAP_NOT_FOUND),
        ),
        run,
    )
    kept(Kept.BEGINS, remember(run))


def test_a_claim_that_is_not_bound_is_named(stage: Stage) -> None:
    """The real scheduler says that a claim is unbound and not which; the operator names those of the pod."""
    for name in ("data", "adapters"):
        make_claim(stage, name, storageClassName="no-such-class")
    stage.start()
    run = begin(stage, "b16")
    before = remember(run)
    for name in ("data", "adapters"):
        saw(
            Sees(
                conditions={"PodsReady": ("False", Reason.VOLUME_NOT_READY)},
                says=("unbound", name, "kubectl describe pvc"),
                event=("Warning", Reason.VOLUME_NOT_READY),
            ),
            run,
        )
    run.be_looked_at()
    kept(Kept.CLAIMS, before)


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
    shared: Stage, event: str, said: str, remedy: str
) -> None:
    """The Event's sentence is in the condition; once the volume is free, the same pod starts."""
    run = begin(shared, f"b16-{event.lower()}")
    pod = run.pod()
    shared.wait_pod_state(pod, "ContainerCreating", "")
    post_event(shared, pod, event, said)
    saw(
        Sees(
            conditions={"PodsReady": ("False", Reason.VOLUME_NOT_READY)},
            says=(said, remedy),
            event=("Warning", Reason.VOLUME_NOT_READY),
        ),
        run,
    )
    kept(Kept.BEGINS, remember(run))


def test_of_several_nodes_the_one_that_is_missing_is_named_and_the_others_do_not_wait_for_ever(shared: Stage) -> None:
    """3 of 4 pods run: the fourth one's reason and the count; after pendingTimeoutSeconds the GPUs are free again."""
    run = begin(shared, "b21", resources={"nodes": 4})
    pods = eventually(lambda: run.pods if len(run.pods) == 4 else None, "there are four pods")
    for number, pod in enumerate(pods[:3]):
        shared.run_pod(pod, ip=f"127.82.21.{number + 1}")
    saw(
        Sees(
            conditions={"PodsReady": ("False", Reason.VOLUME_NOT_READY)},
            says=("3 of 4 pods run", pods[3]["metadata"]["name"]),
        ),
        run,
    )
    run.change(pendingTimeoutSeconds=1)
    saw(
        Sees(
            conditions={"Failed": ("True", Reason.PENDING_TIMEOUT)},
            says=("3 of 4 pods run",),
            event=("Warning", Reason.PENDING_TIMEOUT),
        ),
        run,
    )
    ended = remember(run)
    eventually(lambda: not run.jobs, "the Job is gone, and with it the three pods that held GPUs")
    eventually(lambda: all(p["metadata"].get("deletionTimestamp") for p in run.pods), "the pods are ended")
    run.be_looked_at()
    assert run.jobs == []
    kept(Kept.VERDICT, ended)


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
