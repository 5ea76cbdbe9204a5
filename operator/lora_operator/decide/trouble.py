"""What keeps a run from going on, in the reasons of the vocabulary, with the name of the object and the remedy.

Sources: conditions of the pod, the reason for which its container waits, Events about the pod and its Job, and what the
API server answers when it refuses an object.
"""

import re
from collections.abc import Iterable
from datetime import UTC, datetime

from lora_operator.model.conditions import StateReason
from lora_operator.model.jobs import FAILED_CREATE
from lora_operator.model.objects import EventView, JobView, PodView, Refusal
from lora_operator.model.pods import condition_of, evicted_by_node_pressure, has_ended, is_running, was_disrupted
from lora_operator.model.wording import UNANSWERED, last_line, sentence
from lora_trainer.spec.reasons import Reason

_LONG_AGO = datetime.fromtimestamp(0, UTC)
_PULL_REASONS = {"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "RegistryUnavailable", "ImageInspectError"}
_CREATE_REASONS = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "CreatePodSandboxError"}
_REASONS_OF_THE_KUBELET = {"ContainersNotReady", "ReadinessGatesNotReady", "PodCompleted", "PodFailed"}
_VOLUME_EVENTS = {"FailedMount", "FailedAttachVolume", "FailedMapVolume"}
# The scheduler's of Kubernetes 1.32, and of 1.34 (volumebinding/binder.go, volumezone/volume_zone.go).
_OUT_OF_REACH = ("volume node affinity", "persistentvolume's node affinity", "no available volume zone")
_VOLUME_TERMS = (
    "persistentvolumeclaim",
    "persistent volume",
    "volume binding",
    "volumes to bind",
    "non-existent pv",
    "enough free storage",
    *_OUT_OF_REACH,
)
_MISSING_OBJECT = re.compile(r'(secrets?|configmaps?) "([^"]+)" not found', re.IGNORECASE)
_MISSING_KEY = re.compile(r"couldn't find key (\S+) in (Secret|ConfigMap) (?:[^/\s]+/)?(\S+)", re.IGNORECASE)
_MISSING_PATH = re.compile(r"references non-existent (secret|config) key: (\S+)", re.IGNORECASE)
_MISSING_PULL_SECRETS = re.compile(r"image pull secrets \(([^)]+)\)")
_TAINT = re.compile(r"untolerated taint[s()]*:? \{([^:{}\s]{1,317}):\s*([^{}\s]{0,63})\}")
_OF_THE_CLUSTER = re.compile(
    r"(node|node-role|node\.cloudprovider)\.kubernetes\.io/|karpenter\.sh/|.+/agent-not-ready$"
    r"|(ToBeDeletedBy|DeletionCandidateOf)ClusterAutoscaler$"
)
"""Taints of nodes that are not ready, cordoned, on their way out, or none of users' business."""
_DECLARE_LABELS = (
    "an autoscaler adds no node for labels that its pool does not declare: put nvidia.com/gpu.memory and "
    "nvidia.com/gpu.product on the pool, or choose it by scheduling.nodeSelector in place of gpuMinMemoryGiB and "
    "gpuProducts"
)
_MOVE_DATA = (
    "kubectl describe pv shows the zone or node that the volume is tied to; wait for a GPU there, or make a claim "
    "where the GPUs are, copy the files, and name it in a new LoRAFineTune"
)
_MISSING_CLAIM = re.compile(r'persistentvolumeclaim "([^"]+)" not found')

# Reasons that Events alone may have reported: the pod or the Job itself says nothing of them.
KNOWN_FROM_EVENTS = frozenset(
    {
        Reason.ADMISSION_DENIED,
        Reason.CONFIG_MAP_NOT_FOUND,
        Reason.CONTAINER_NOT_STARTED,
        Reason.FORBIDDEN,
        Reason.POD_SECURITY_VIOLATION,
        Reason.QUOTA_EXCEEDED,
        Reason.SECRET_NOT_FOUND,
        Reason.VOLUME_NOT_READY,
    }
)


def trouble_of_pod(pod: PodView, events: Iterable[EventView]) -> StateReason | None:
    """What is wrong with a pod that should run; None for one that runs, has ended, or is on its way."""
    if has_ended(pod):
        return None
    lost = _unreachable(pod)
    if lost is not None or is_running(pod):
        return lost or _disrupted(pod)
    return _disrupted(pod) or _unscheduled(pod) or _waiting(pod, events) or _known_from_events(pod, events)


def trouble_of_job(job: JobView, pods: Iterable[PodView], events: Iterable[EventView]) -> StateReason | None:
    """Why a Job that lacks a pod cannot make one: quota, admission, pod security."""
    made = max((pod.created_at for pod in pods), default=_LONG_AGO)
    event = _newest(e for e in events if e.about_uid == job.uid and e.reason == FAILED_CREATE)
    if event is None or (event.last_seen or _LONG_AGO) < made:
        return None
    reason, remedy = classify_refusal(event.message)
    return _because(reason, f"The Job cannot create its pod: {last_line(event.message, 600)}", remedy, event.last_seen)


def trouble_of_refusal(refusal: Refusal) -> StateReason:
    """Why the API server refused what the operator wanted to write."""
    if refusal.is_name_conflict:
        return name_conflict(refusal.kind, refusal.name)
    reason, remedy = classify_refusal(refusal.message)
    said = sentence(refusal.message, 600) or f"{refusal.code} {refusal.reason}"
    return _because(reason, f"The API server refused {refusal.kind} {refusal.name}: {said}", remedy)


def name_conflict(kind: str, name: str) -> StateReason:
    """Somebody else's object has the name that this run's object must have; it is left alone."""
    message = (
        f"{kind} {name} exists and does not belong to this LoRAFineTune: it is left untouched; "
        "delete or rename it, or create the LoRAFineTune under another name"
    )
    return StateReason(reason=Reason.NAME_CONFLICT, message=message)


def classify_refusal(message: str) -> tuple[Reason, str]:
    """Reason and remedy for the text with which the API server refuses an object."""
    for pattern, reason, remedy in _REFUSALS:
        if re.search(pattern, message, re.IGNORECASE):
            return reason, remedy
    return Reason.ADMISSION_DENIED, "correct what it names, or ask the cluster's administrator"


_NO_LIMIT = (
    "pods of runs have no limit on CPU or ephemeral storage, and no field sets one: have the namespace's LimitRange "
    "set a default for containers, not below what they request, or drop that rule"
)
_REFUSALS = (
    (
        UNANSWERED,
        Reason.ADMISSION_DENIED,
        "have the cluster's administrator look at the webhooks through which Jobs pass; the operator tries again",
    ),
    (  # not for want of quota: no other run's end would help
        r"failed quota: .*must specify",
        Reason.ADMISSION_DENIED,
        "have the ResourceQuota limit requests instead, or a LimitRange set a default not below what the pod requests",
    ),
    (
        r"exceeded quota|failed quota",
        Reason.QUOTA_EXCEEDED,
        "free some of the namespace's ResourceQuota or have it raised",
    ),
    (
        r"violates PodSecurity",
        Reason.POD_SECURITY_VIOLATION,
        "the namespace must allow what the message names, or the operator's configuration must do without it",
    ),
    (
        r"security context constraint",
        Reason.POD_SECURITY_VIOLATION,
        (
            "leave user and groups to the platform (in the chart's values runAsUser, runAsGroup and fsGroup of "
            "trainer.securityContext null), or let the pods' service account choose them: oc adm policy "
            "add-scc-to-user nonroot-v2 -z default -n NAMESPACE, where default is trainer.serviceAccountName if set"
        ),
    ),
    (
        r'User "[^"]*" cannot|cannot (create|patch|delete|get|list) resource',
        Reason.FORBIDDEN,
        "give the operator's ServiceAccount this right, for instance by installing its chart again",
    ),
    (
        r"no limit is specified.*, but (limit|request) is|, but (limit|request) is.*no limit is specified",
        Reason.ADMISSION_DENIED,
        f"{_NO_LIMIT}; and create a new LoRAFineTune with spec.resources within the others",
    ),
    (r"(usage|request ratio) per (Container|Pod) is.*no limit is specified", Reason.ADMISSION_DENIED, _NO_LIMIT),
    (
        r"usage per (Container|Pod) is|request ratio per (Container|Pod) is",
        Reason.ADMISSION_DENIED,
        (
            "create a new LoRAFineTune with spec.resources within these limits, or have the namespace's LimitRange "
            "changed; a preflight has config.preflightCPU and config.preflightMemory of the chart"
        ),
    ),
    (
        r"must be less than or equal to (cpu|memory|ephemeral-storage) limit",
        Reason.ADMISSION_DENIED,
        (
            "the namespace's LimitRange sets a default limit below what the pod requests: have it raised, or create a "
            "new LoRAFineTune with less in spec.resources; a preflight requests config.preflightCPU of the chart"
        ),
    ),
    (
        r"being terminated",
        Reason.ADMISSION_DENIED,
        "the namespace is being deleted, and this LoRAFineTune with it",
    ),
)


def _unreachable(pod: PodView) -> StateReason | None:
    """A node that is silent cannot say that its container stopped, so the pod still counts as the output's writer."""
    ready = condition_of(pod, "Ready")
    if pod.deleting and pod.reason != "NodeLost" and not _was_tainted(pod):
        return None
    # A node that is lost leaves the reason as it was; a kubelet that is there gives one, for another container say.
    unready = is_running(pod) and ready.status in {"False", "Unknown"} and ready.reason not in _REASONS_OF_THE_KUBELET
    if not unready and pod.phase != "Unknown" and pod.reason != "NodeLost":
        return None
    message = f"Node {pod.node or '(unknown)'} does not answer, so pod {pod.name} may still be writing"
    remedy = (
        "the run continues when the node is back; if it is gone for good, delete the node or taint it out-of-service"
    )
    return _because(Reason.NODE_UNREACHABLE, message, remedy, ready.since)


def _was_tainted(pod: PodView) -> bool:
    return was_disrupted(pod) and condition_of(pod, "DisruptionTarget").reason == "DeletionByTaintManager"


def _disrupted(pod: PodView) -> StateReason | None:
    if not was_disrupted(pod):
        return None
    disruption = condition_of(pod, "DisruptionTarget")
    why = last_line(disruption.message) or disruption.reason
    message = f"The cluster is taking pod {pod.name} away ({why})"
    counts = "and this counts" if evicted_by_node_pressure(pod) else "and this does not count"
    return _because(Reason.EVICTED, message, f"a new pod follows, {counts} against maxRetries", disruption.since)


def _unscheduled(pod: PodView) -> StateReason | None:
    scheduled = condition_of(pod, "PodScheduled")
    if scheduled.status != "False" or scheduled.reason == "SchedulingGated":
        return None
    said = last_line(scheduled.message, 600)
    claim = _MISSING_CLAIM.search(scheduled.message)
    if claim:
        return _missing_claim(pod, claim[1], scheduled.since)
    lower = scheduled.message.lower()
    if any(term in lower for term in _VOLUME_TERMS):
        look = "look at the claim with kubectl describe pvc: it is not bound, or its volume is gone or full"
        remedy = _MOVE_DATA if any(term in lower for term in _OUT_OF_REACH) else look
        which = f"the volume of its claims ({', '.join(pod.claims)})" if pod.claims else "a volume"
        return _because(Reason.VOLUME_NOT_READY, f"Pod {pod.name} waits for {which}: {said}", remedy, scheduled.since)
    fitting = "add a node that fits, or ask for less in spec.resources and spec.scheduling of a new LoRAFineTune"
    tolerated = _tolerate(scheduled.message)
    # Onto nodes with the taint alone a toleration helps; of those that lack something as well, nothing tells.
    alone = tolerated and "Insufficient " not in scheduled.message
    declared = _DECLARE_LABELS if pod.wants_gpu_labels and "node affinity/selector" in scheduled.message else ""
    remedy = "; ".join(way for way in ("" if alone else fitting, tolerated, declared) if way)
    return _because(Reason.UNSCHEDULABLE, f"No node can run pod {pod.name}: {said}", remedy, scheduled.since)


def _tolerate(said: str) -> str:
    """What lets the pod onto nodes that a taint keeps it from; empty where no taint is to be tolerated.

    The scheduler tells a taint's key and value, and not its effect: a toleration without one is for all of them.
    """
    taints = [taint for taint in _TAINT.findall(said) if not _OF_THE_CLUSTER.match(taint[0])]
    if not taints:
        return ""
    wanted = ", ".join(
        f'{{key: {key}, operator: Equal, value: "{value}"}}' if value else f"{{key: {key}, operator: Exists}}"
        for key, value in dict.fromkeys(taints)
    )
    return (
        f"where runs may use the tainted nodes, write scheduling.tolerations: [{wanted}] or have it added to the "
        "chart's defaults.tolerations; either counts for a new LoRAFineTune alone"
    )


def _waiting(pod: PodView, events: Iterable[EventView]) -> StateReason | None:
    why, said = pod.trainer.waiting_reason, pod.trainer.waiting_message
    if why in _PULL_REASONS:
        remedy = _missing_pull_secrets(pod, events) or (
            "check the name, the registry and the pull secrets in the operator's configuration"
        )
        return _because(
            Reason.IMAGE_PULL_BACK_OFF, f"The trainer's image cannot be pulled: {last_line(said) or why}", remedy
        )
    if why == "InvalidImageName":
        remedy = "correct the trainer's image in the operator's configuration"
        return _because(Reason.INVALID_IMAGE, f"The trainer's image has an invalid name: {last_line(said)}", remedy)
    if why in _CREATE_REASONS:
        remedy = "ask the cluster's administrator"
        message = f"Pod {pod.name} cannot start its container: {last_line(said) or why}"
        return _missing_object(pod, said) or _because(Reason.CONTAINER_NOT_STARTED, message, remedy)
    return None


def _missing_pull_secrets(pod: PodView, events: Iterable[EventView]) -> str:
    """What to do about pull secrets that the kubelet does not find; empty where it misses none."""
    event = _newest(e for e in events if e.about_uid == pod.uid and e.reason == "FailedToRetrieveImagePullSecret")
    names = _MISSING_PULL_SECRETS.search(event.message) if event else None
    return f"create Secret {names[1]} in this namespace, which the operator's configuration names" if names else ""


def _known_from_events(pod: PodView, events: Iterable[EventView]) -> StateReason | None:
    event = _newest(
        e for e in events if e.about_uid == pod.uid and e.reason in {*_VOLUME_EVENTS, "FailedCreatePodSandBox"}
    )
    if event is None:
        return None
    said = last_line(event.message, 600)
    if event.reason not in _VOLUME_EVENTS:
        message = f"Node {pod.node} cannot set up pod {pod.name}: {said}"
        return _because(Reason.CONTAINER_NOT_STARTED, message, "ask the cluster's administrator", event.last_seen)
    claim = _MISSING_CLAIM.search(event.message)
    if claim:
        return _missing_claim(pod, claim[1], event.last_seen)
    remedy = (
        _detach(event.message) or "look at the claim with kubectl describe pvc and at the pod with kubectl describe pod"
    )
    message = f"A volume of pod {pod.name} cannot be mounted: {said}"
    return _missing_object(pod, event.message) or _because(Reason.VOLUME_NOT_READY, message, remedy, event.last_seen)


def _detach(said: str) -> str:
    """What frees a volume that is attached to another node; empty where something else is wrong with it."""
    if "Multi-Attach" not in said:
        return ""
    if "already used by" not in said:
        return (
            "no pod uses it there any more, and it is detached within minutes; if that node does not answer, delete it "
            "or taint it out-of-service"
        )
    return (
        "one node at a time can have it, so this pod waits, and any GPUs that it holds are idle, until the one on the "
        "other node ends; give each run a claim of its own, or one that is ReadWriteMany"
    )


def _missing_claim(pod: PodView, claim: str, since: datetime | None) -> StateReason:
    message = f"Pod {pod.name} needs PersistentVolumeClaim {claim}, which does not exist in this namespace"
    return _because(Reason.VOLUME_NOT_READY, message, "create it, and the run continues", since)


def _missing_object(pod: PodView, said: str) -> StateReason | None:
    key, path, whole = _MISSING_KEY.search(said), _MISSING_PATH.search(said), _MISSING_OBJECT.search(said)
    if key:
        kind, what = key[2], f"key {key[1]} in {_kind(key[2])} {key[3]}, which does not have it"
    elif path:
        kind, what = path[1], f"key {path[2]} in a {_kind(path[1])}, which does not have it"
    elif whole:
        kind, what = whole[1], f"{_kind(whole[1])} {whole[2]}, which does not exist in this namespace"
    else:
        return None
    reason = Reason.SECRET_NOT_FOUND if _kind(kind) == "Secret" else Reason.CONFIG_MAP_NOT_FOUND
    return _because(reason, f"Pod {pod.name} needs {what}", "create it, and the run continues")


def _kind(named: str) -> str:
    return "Secret" if named.lower().startswith("secret") else "ConfigMap"


def _newest(events: Iterable[EventView]) -> EventView | None:
    return max(events, key=lambda event: event.last_seen or _LONG_AGO, default=None)


def _because(reason: Reason, message: str, remedy: str, since: datetime | None = None) -> StateReason:
    return StateReason(reason=reason, message=sentence(f"{message.rstrip('.')}: {remedy}"), since=since)
