"""What keeps a pod from running, in the vocabulary's words. The texts are those of Kubernetes 1.34."""

from typing import Any

import pytest
from tests.unit.builders import (
    condition_object,
    ended_pod,
    make_event,
    make_job,
    make_pod,
    make_pod_object,
    minutes_ago,
    running_pod,
    waiting_pod,
)

from lora_operator.decide.trouble import trouble_of_job, trouble_of_pod, trouble_of_refusal
from lora_operator.model.gpu_nodes import gpu_labels, with_labels
from lora_operator.model.objects import EventView, PodView, Refusal
from lora_operator.model.observe import parse_pod
from lora_trainer.spec.reasons import Reason


def unscheduled(message: str, reason: str = "Unschedulable") -> PodView:
    """A pod that the scheduler has said something of."""
    return make_pod(node="", conditions=(condition_object("PodScheduled", "False", reason=reason, message=message),))


def creating(*events: tuple[str, str]) -> tuple[PodView, tuple[EventView, ...]]:
    """A pod on its node, and what was posted about it, oldest first."""
    pod = waiting_pod("ContainerCreating")
    count = len(events)
    return pod, tuple(
        make_event(pod.uid, reason, text, seen_at=minutes_ago(count - index))
        for index, (reason, text) in enumerate(events)
    )


PODS = {
    "no node has a GPU": (
        unscheduled("0/1 nodes are available: 1 Insufficient nvidia.com/gpu. preemption: 0/1 nodes are available."),
        Reason.UNSCHEDULABLE,
        ["Insufficient nvidia.com/gpu", "add a node that fits"],
    ),
    "the GPUs' nodes are tainted": (
        unscheduled(
            "0/3 nodes are available: 1 node(s) had untolerated taint {nvidia.com/gpu: present}, 1 node(s) had "
            "untolerated taint {node-role.kubernetes.io/control-plane: }, 1 Insufficient cpu. preemption: not helpful."
        ),
        Reason.UNSCHEDULABLE,
        [
            "add a node that fits, or ask for less in spec.resources",
            "; where runs may use the tainted nodes, write scheduling.tolerations: [{key: nvidia.com/gpu, ",
            'value: "present"}] or have it added to the chart\'s defaults.tolerations; either counts for a new',
        ],
    ),
    "taints without a value, some of them twice": (
        unscheduled(
            "0/3 nodes are available: 1 node(s) had untolerated taint {gpu: }, 1 node(s) had untolerated taint(s) "
            "{gpu: }, 1 node(s) had untolerated taint {team: a}."
        ),
        Reason.UNSCHEDULABLE,
        ['tolerations: [{key: gpu, operator: Exists}, {key: team, operator: Equal, value: "a"}] or', "defaults.toler"],
    ),
    "nodes are on their way out, or not ready for pods yet": (
        unscheduled(
            "0/4 nodes are available: 1 node(s) had untolerated taint {ToBeDeletedByClusterAutoscaler: 1764260000}, "
            "1 node(s) had untolerated taint {DeletionCandidateOfClusterAutoscaler: 1764260000}, 1 node(s) had "
            "untolerated taint {karpenter.sh/disrupted: }, 1 node(s) had untolerated taint "
            "{node.cilium.io/agent-not-ready: true}."
        ),
        Reason.UNSCHEDULABLE,
        ["}: add a node that fits"],
    ),
    "a node is cordoned": (
        unscheduled("0/1 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/unschedulable: }."),
        Reason.UNSCHEDULABLE,
        ["add a node that fits"],
    ),
    "the claim does not exist, says the scheduler": (
        unscheduled('0/1 nodes are available: persistentvolumeclaim "adapters" not found. preemption: none'),
        Reason.VOLUME_NOT_READY,
        ["PersistentVolumeClaim adapters, which does not exist", "create it"],
    ),
    "the claim is not bound": (
        unscheduled("0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."),
        Reason.VOLUME_NOT_READY,
        ["unbound immediate", "kubectl describe pvc"],
    ),
    "the volume is on another node": (
        unscheduled("0/2 nodes are available: 2 node(s) didn't match PersistentVolume's node affinity."),
        Reason.VOLUME_NOT_READY,
        ["node affinity", "kubectl describe pv shows the zone or node", "make a claim where the GPUs are"],
    ),
    "the volume is on another node, by Kubernetes 1.32": (
        unscheduled("0/2 nodes are available: 2 node(s) had volume node affinity conflict."),
        Reason.VOLUME_NOT_READY,
        ["volume node affinity", "make a claim where the GPUs are"],
    ),
    "the volume is in another zone": (
        unscheduled("0/2 nodes are available: 2 node(s) had no available volume zone."),
        Reason.VOLUME_NOT_READY,
        ["make a claim where the GPUs are"],
    ),
    "the volume is gone": (
        unscheduled(
            "0/2 nodes are available: 2 node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)."
        ),
        Reason.VOLUME_NOT_READY,
        ["kubectl describe pvc"],
    ),
    "the image cannot be pulled": (
        waiting_pod("ImagePullBackOff", 'Back-off pulling image "registry.example/no:1"'),
        Reason.IMAGE_PULL_BACK_OFF,
        ['pulling image "registry.example/no:1"', "pull secrets"],
    ),
    "the first pull failed": (
        waiting_pod("ErrImagePull", 'failed to pull and unpack image "x": not found'),
        Reason.IMAGE_PULL_BACK_OFF,
        ["not found"],
    ),
    "the pull says nothing": (waiting_pod("ErrImageNeverPull"), Reason.IMAGE_PULL_BACK_OFF, ["ErrImageNeverPull"]),
    "the image has an impossible name": (
        waiting_pod("InvalidImageName", 'Failed to apply default image tag "A:B:C": invalid reference format'),
        Reason.INVALID_IMAGE,
        ["invalid reference format", "operator's configuration"],
    ),
    "the secret is missing": (
        waiting_pod("CreateContainerConfigError", 'secret "hf-token" not found'),
        Reason.SECRET_NOT_FOUND,
        ["Secret hf-token, which does not exist", "create it"],
    ),
    "the secret lacks the key": (
        waiting_pod("CreateContainerConfigError", "couldn't find key HF_TOKEN in Secret team-a/hf-token"),
        Reason.SECRET_NOT_FOUND,
        ["key HF_TOKEN in Secret hf-token"],
    ),
    "a config map is missing": (
        waiting_pod("CreateContainerConfigError", 'configmap "ca-bundle" not found'),
        Reason.CONFIG_MAP_NOT_FOUND,
        ["ConfigMap ca-bundle"],
    ),
    "the container cannot be configured": (
        waiting_pod("CreateContainerConfigError", "container has runAsNonRoot and image will run as root"),
        Reason.CONTAINER_NOT_STARTED,
        ["image will run as root"],
    ),
    "the node was lost": (
        running_pod(conditions=(condition_object("Ready", "False"),)),
        Reason.NODE_UNREACHABLE,
        ["Node node-1 does not answer", "may still be writing"],
    ),
    "the phase is not known": (make_pod(phase="Unknown", node=""), Reason.NODE_UNREACHABLE, ["Node (unknown)"]),
    "the node was lost and its pods are evicted": (
        running_pod(
            deleting=True,
            conditions=(
                condition_object(
                    "DisruptionTarget", reason="DeletionByTaintManager", message="Taint manager: deleting"
                ),
                condition_object("Ready", "Unknown"),
            ),
        ),
        Reason.NODE_UNREACHABLE,
        ["taint it out-of-service"],
    ),
    "the node is drained": (
        running_pod(
            deleting=True,
            conditions=(
                condition_object("DisruptionTarget", reason="EvictionByEvictionAPI", message="Eviction API: evicting"),
                condition_object("Ready", "False"),
            ),
        ),
        Reason.EVICTED,
        ["Eviction API: evicting", "does not count against maxRetries"],
    ),
    "a waiting pod is preempted": (
        make_pod(conditions=(condition_object("DisruptionTarget", reason="PreemptionByScheduler"),)),
        Reason.EVICTED,
        ["PreemptionByScheduler"],
    ),
}


@pytest.mark.parametrize("case", PODS)
def test_the_trouble_of_a_pod_has_a_reason_and_a_sentence_that_names_object_and_remedy(case: str) -> None:
    """From what the pod itself says."""
    pod, reason, words = PODS[case]
    found = trouble_of_pod(pod, ())
    assert found is not None
    assert found.reason is reason
    for word in words:
        assert word in found.message
    assert "\n" not in found.message


HEALTHY = {
    "it runs": running_pod(),
    "it is being created": waiting_pod("ContainerCreating"),
    "it has ended": ended_pod(1),
    "it was just made": make_pod(node=""),
    "a queue gates it": unscheduled("Scheduling is blocked due to non-empty scheduling gates", "SchedulingGated"),
    "another container is not ready": running_pod(
        conditions=(condition_object("Ready", "False", reason="ContainersNotReady"),)
    ),
    "somebody deleted it": running_pod(deleting=True, conditions=(condition_object("Ready", "False"),)),
}


@pytest.mark.parametrize("case", HEALTHY)
def test_a_pod_on_its_way_has_no_trouble(case: str) -> None:
    """Waiting is no trouble."""
    assert trouble_of_pod(HEALTHY[case], ()) is None


def test_who_must_tolerate_a_taint_is_not_told_to_ask_for_less() -> None:
    """Less CPU helps nobody onto a node that is kept for others."""
    found = trouble_of_pod(unscheduled("0/1 nodes are available: 1 node(s) had untolerated taint {gpu: x}."), ())
    assert found is not None
    assert "ask for less" not in found.message


EVENTS = {
    "config map of the data set": (
        ("FailedMount", 'MountVolume.SetUp failed for volume "dataset" : configmap "support-desk" not found'),
        Reason.CONFIG_MAP_NOT_FOUND,
        "ConfigMap support-desk, which does not exist",
    ),
    "key of the data set": (
        (
            "FailedMount",
            'MountVolume.SetUp failed for volume "dataset" : configmap references non-existent config key: a.jsonl',
        ),
        Reason.CONFIG_MAP_NOT_FOUND,
        "key a.jsonl in a ConfigMap",
    ),
    "volume held by another node": (
        (
            "FailedAttachVolume",
            'Multi-Attach error for volume "pvc-1" Volume is already exclusively attached to one node',
        ),
        Reason.VOLUME_NOT_READY,
        "no pod uses it there any more, and it is detached within minutes",
    ),
    "volume in use by a run on another node": (
        (
            "FailedAttachVolume",
            'Multi-Attach error for volume "pvc-1" Volume is already used by pod(s) support-tone-zajod-1-0-abcde',
        ),
        Reason.VOLUME_NOT_READY,
        "any GPUs that it holds are idle, until the one on the other node ends; give each run a claim of its own, or",
    ),
    "claim deleted after scheduling": (
        ("FailedMount", 'persistentvolumeclaim "adapters" not found'),
        Reason.VOLUME_NOT_READY,
        "PersistentVolumeClaim adapters",
    ),
    "network not set up": (
        ("FailedCreatePodSandBox", "Failed to create pod sandbox: plugin type=bridge failed"),
        Reason.CONTAINER_NOT_STARTED,
        "plugin type=bridge failed",
    ),
}


@pytest.mark.parametrize("case", EVENTS)
def test_events_tell_what_the_pod_itself_does_not(case: str) -> None:
    """A pod whose volume cannot be mounted just says ContainerCreating."""
    event, reason, words = EVENTS[case]
    found = trouble_of_pod(*creating(event))
    assert found is not None
    assert found.reason is reason
    assert words in found.message


def test_a_pull_secret_that_the_kubelet_does_not_find_is_named() -> None:
    """The container says that it was denied, an Event alone says for want of what."""
    pod = waiting_pod("ErrImagePull", "401 Unauthorized")
    stated = "Unable to retrieve some image pull secrets (regcred); attempting to pull the image may not succeed."
    found = trouble_of_pod(pod, (make_event(pod.uid, "FailedToRetrieveImagePullSecret", stated),))
    assert found is not None
    assert found.reason is Reason.IMAGE_PULL_BACK_OFF
    assert "401 Unauthorized: create Secret regcred in this namespace" in found.message


def test_a_pod_whose_claim_is_unbound_names_its_claims() -> None:
    """The scheduler does not say which of them it is."""
    unbound = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."
    condition = condition_object("PodScheduled", "False", reason="Unschedulable", message=unbound)
    document = make_pod_object(node="", conditions=(condition,))
    claims = ({"persistentVolumeClaim": {"claimName": name}} for name in ("data", "adapters", "data"))
    document["spec"]["volumes"] = [{"emptyDir": {}}, *claims]
    found = trouble_of_pod(parse_pod(document), ())
    assert found is not None
    assert found.reason is Reason.VOLUME_NOT_READY
    assert "its claims (data, adapters)" in found.message


UNMATCHED = "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."


@pytest.mark.parametrize(
    ("wanted", "said", "told"),
    [
        ({"minMemoryGiB": 24, "products": []}, UNMATCHED, True),
        ({"minMemoryGiB": None, "products": ["NVIDIA-L4"]}, UNMATCHED, True),
        ({"minMemoryGiB": None, "products": []}, UNMATCHED, False),
        ({"minMemoryGiB": 24, "products": []}, "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.", False),
    ],
)
def test_labels_that_no_pool_has_are_named_to_who_wants_them(wanted: dict[str, Any], said: str, told: bool) -> None:
    """Feature discovery labels only nodes that are there already."""
    condition = condition_object("PodScheduled", "False", reason="Unschedulable", message=said)
    document = make_pod_object(node="", conditions=(condition,))
    document["spec"]["affinity"] = with_labels({}, gpu_labels(1, wanted["minMemoryGiB"], wanted["products"]))
    found = trouble_of_pod(parse_pod(document), ())
    assert found is not None
    assert found.reason is Reason.UNSCHEDULABLE
    assert ("an autoscaler adds no node for labels that its pool does not declare" in found.message) is told
    assert ("nvidia.com/gpu.memory" in found.message) is told
    assert "add a node that fits" in found.message
    document["spec"]["nodeName"] = "node-1"
    assert not parse_pod(document).wants_gpu_labels


def test_the_newest_event_counts() -> None:
    """What was wrong before may be right by now."""
    pod, events = creating(("FailedMount", 'secret "a" not found'), ("FailedMount", 'configmap "b" not found'))
    for order in (events, events[::-1]):
        found = trouble_of_pod(pod, order)
        assert found is not None
        assert found.reason is Reason.CONFIG_MAP_NOT_FOUND


def test_events_about_other_objects_and_of_other_kinds_say_nothing() -> None:
    """They come in one list."""
    pod, _ = creating()
    assert trouble_of_pod(pod, (make_event("other", "FailedMount", "x"), make_event(pod.uid, "Pulled", "x"))) is None


def test_a_job_that_made_its_pod_after_all_has_no_trouble() -> None:
    """The Event is older than the pod."""
    event = make_event("job-1", "FailedCreate", "exceeded quota", seen_at=minutes_ago(30))
    assert trouble_of_job(make_job(), (ended_pod(75, created_at=minutes_ago(20)),), (event,)) is None
    found = trouble_of_job(make_job(), (ended_pod(75, created_at=minutes_ago(40)),), (event,))
    assert found is not None
    assert (found.reason, found.since) == (Reason.QUOTA_EXCEEDED, minutes_ago(30))


def test_a_refusal_without_a_text_tells_its_code() -> None:
    """A proxy may have answered."""
    found = trouble_of_refusal(Refusal(kind="Job", name="a-b-1", code=503, reason="ServiceUnavailable", message=""))
    assert found.message.startswith("The API server refused Job a-b-1: 503 ServiceUnavailable")
