"""What the operator decides on and what it decides: plain frozen data, no client types, no clock."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from lora_operator.model.names import COLLECTING, TRAIN
from lora_operator.model.wording import block_of, is_of_webhook, parse_instant
from lora_trainer.spec.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTune:
    """One LoRAFineTune. `manifest` is what is read of the object: spec, status, who it is and since when, its queue."""

    namespace: str
    name: str
    uid: str
    generation: int
    resource_version: str
    deleting: bool
    manifest: Mapping[str, Any]

    @property
    def spec(self) -> Mapping[str, Any]:
        """The spec; empty where a foreign writer left none."""
        spec = self.manifest.get("spec")
        return spec if isinstance(spec, Mapping) else {}

    @property
    def status(self) -> Mapping[str, Any]:
        """The status as last written, by us or by the CRD's default; empty where it is another run's."""
        status = self.manifest.get("status")
        return status if isinstance(status, Mapping) else {}

    @property
    def lingers(self) -> bool:
        """Whether it is being deleted, and only finalizers of others keep it: its children are collected after that."""
        finalizers = block_of(self.manifest, "metadata").get("finalizers") or ()
        return self.deleting and bool(finalizers) and not any(name in finalizers for name in COLLECTING)

    @property
    def created_at(self) -> datetime | None:
        """When the API server took it in; None where a foreign writer left no such time."""
        return parse_instant(block_of(self.manifest, "metadata").get("creationTimestamp"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionView:
    """A condition of a Job or a Pod."""

    type: str
    status: str
    reason: str = ""
    message: str = ""
    since: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A Job. `owner_uid` is that of the LoRAFineTune whose it is, its controller's unless somebody took the reference
    off; `suspend_intent` is what we last asked for.

    `attempt` is, for a stage before the training, that of the training which follows; `retries_before` is what was used
    up of `maxRetries` before it. `queue` is the Job's LocalQueue, empty for none: Kueue then owns `suspended`.
    `has_our_labels`: it carries the labels that our watches select by. `owners` are the references of a Job that has
    none to a controller, else None. `managed_by` is the controller that runs it, empty for Kubernetes' own. `image` is
    the trainer's as we rendered it, which admission may have changed. `ttl_s`: Kubernetes deletes it so many seconds
    after it has ended.
    """

    name: str
    uid: str
    owner_uid: str
    attempt: int
    suspended: bool
    suspend_intent: bool | None
    backoff_limit: int
    active_deadline_s: int | None
    active: int
    failed: int
    conditions: tuple[ConditionView, ...]
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    deleting: bool
    stage: str = TRAIN
    queue: str = ""
    retries_before: int = 0
    succeeded: int = 0
    has_our_labels: bool = True
    owners: tuple[Mapping[str, Any], ...] | None = None
    managed_by: str = ""
    image: str = ""
    ttl_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadView:
    """Kueue's record of one of our Jobs, by which it grants quota. `active` False: not admitted, whatever is free.

    `suspend_intent` is what we last asked for in behalf of `spec.suspend`, None where we never did. `cluster` is the
    other cluster to which MultiKueue sends the Job, empty for none.
    """

    name: str
    uid: str
    job_uid: str
    active: bool
    suspend_intent: bool | None
    conditions: tuple[ConditionView, ...]
    cluster: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerView:
    """State of the trainer's container; `exit_code` and `termination_message` are set once it has ended, `started_at`
    once it has begun."""

    waiting_reason: str = ""
    waiting_message: str = ""
    running: bool = False
    exit_code: int | None = None
    termination_reason: str = ""
    termination_message: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PodView:
    """A Pod of one of our Jobs. `job_uid` is that of the Job that controls and counts it, empty for an orphan and for a
    pod that somebody else made and the Job adopted, which has a `controller_uid` alone; `attempt` and `stage` are those
    of that Job, 0 where it is unknown.

    `index` is the number of its node among those that train together; 0 leads and reports. `failures_before` are the
    failures of this number that the Job counted before it, where it counts by index. `claims` are the names of
    the PersistentVolumeClaims of a pod that waits for a node, and `wants_gpu_labels` says that it may go only to nodes
    with labels of GPU feature discovery. `image` is that of the trainer's container. `lingering_sidecar` is a container
    that somebody put into the pod and that runs on after the trainer.
    """

    name: str
    uid: str
    job_uid: str
    phase: str
    reason: str
    message: str
    node: str
    ip: str
    created_at: datetime
    deleting: bool
    conditions: tuple[ConditionView, ...]
    trainer: ContainerView
    controller_uid: str = ""
    attempt: int = 0
    index: int = 0
    failures_before: int = 0
    stage: str = TRAIN
    claims: tuple[str, ...] = ()
    wants_gpu_labels: bool = False
    image: str = ""
    lingering_sidecar: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLimit:
    """Main memory that a pod may use, as a quantity, and who can give it more: the rest of a sentence."""

    amount: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventView:
    """A Kubernetes Event about one of our Jobs or Pods, newest state of a repeated one."""

    about_uid: str
    type: str
    reason: str
    message: str
    last_seen: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What the API server has refused lately, or taken and not kept: it is not asked for it again for a while.

    `patch` is the change that was wanted, None for a creation. `message` is the server's own text.
    """

    kind: str
    name: str
    code: int
    reason: str
    message: str
    patch: "Patch | None" = None

    @property
    def is_name_conflict(self) -> bool:
        """Whether somebody else's object has the name; a webhook may choose any code."""
        return self.code == 409 and not is_of_webhook(self.message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a running trainer answered last. `asked`: it had its time to, so that no progress is its silence."""

    progress: Progress | None = None
    asked: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """Everything that is known of a FineTune's children; `former_jobs` are the last states of Jobs that are gone.

    `kueue`: the cluster has Kueue, so that `workloads` are known. `progress` and `asked` are those of `Answer`.
    `refusals` are what is not to be tried again yet.
    """

    jobs: tuple[JobView, ...] = ()
    former_jobs: tuple[JobView, ...] = ()
    pods: tuple[PodView, ...] = ()
    kueue: bool = False
    workloads: tuple[WorkloadView, ...] = ()
    events: tuple[EventView, ...] = ()
    progress: Progress | None = None
    asked: bool = True
    refusals: tuple[Refusal, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """A merge patch of one Job, or of Kueue's Workload of one."""

    kind: str = "Job"
    name: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectRef:
    """An object to delete, with the uid it must have."""

    kind: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord:
    """An Event to post about the FineTune after its status was written. `type` is Normal or Warning."""

    type: str
    reason: str
    message: str


def soonest(*waits_s: float | None) -> float | None:
    """The shortest of these waits; None where there is nothing to wait for."""
    return min((wait_s for wait_s in waits_s if wait_s is not None), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be done now, in this order: create, patch, status, delete, events.

    `rule` made it. `status` is the whole status; equal to the present one means no write. `verify` are the Jobs which,
    with their pods and the resource itself, are to be read live before one more decision; empty for none.
    `watch_events` asks for the children's Events at the next look. `ask_progress` names the pod that is asked for its
    progress, once; the answer goes into `Observed.progress` of another look. `due_in_s` is when something falls due on
    time, however patient the rest is.
    """

    create: tuple[Mapping[str, Any], ...] = ()
    patch: tuple[Patch, ...] = ()
    status: Mapping[str, Any] = field(default_factory=dict)
    delete: tuple[ObjectRef, ...] = ()
    events: tuple[EventRecord, ...] = ()
    requeue_after_s: float | None = None
    due_in_s: float | None = None
    verify: frozenset[str] = frozenset()
    rule: str = ""
    watch_events: bool = False
    ask_progress: PodView | None = None
