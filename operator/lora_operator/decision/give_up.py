"""When the operator itself ends a run whose Job would go on: the verdict is stored first, then the Job is stopped.

None is stored without a live read of the Job and its pods, since what is stopped cannot be taken back.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from lora_operator.decision.case import Case
from lora_operator.decision.proof import Verdict, claims_success
from lora_operator.decision.situation import Scene, Situation, nodes_with
from lora_operator.decision.verdict import deadline_exceeded, out_of_retries
from lora_operator.views import names
from lora_operator.views.budget import is_spent
from lora_operator.views.conditions import Finding, Type, previous_condition
from lora_operator.views.jobs import ending_of, is_ending, suspension_of
from lora_operator.views.model import JobView, PodView
from lora_operator.views.pods import failures_of, has_ended, ignored_by_job, is_running
from lora_operator.views.wording import parse_instant, sentence
from lora_trainer.contract.exit_codes import FINAL
from lora_trainer.contract.reasons import Reason

_BEGINNING = datetime.fromtimestamp(0, UTC)


def give_up(case: Case, scene: Scene, situation: Situation) -> Verdict | None:
    """The end of a run that has a Job; None for one that is to go on."""
    job = scene.job
    if job.deleting or is_ending(job):
        return None
    if situation.state.reason is Reason.INVALID_IMAGE:
        return Verdict(succeeded=False, finding=situation.state)
    elsewhere = job.managed_by or (scene.place.cluster if scene.place else "")
    if elsewhere:
        return _runs_elsewhere(job, elsewhere)
    if _has_used_up_its_retries(case, scene, situation):
        return out_of_retries(scene.pods, scene.memory, case.request.policy.max_retries)
    if has_no_time_left(case):
        return deadline_exceeded(case.request.policy, scene.pods, scene.memory)
    return waited_too_long(case, job, scene.pods, situation)


def _runs_elsewhere(job: JobView, where: str) -> Verdict:
    message = (
        f"Job {job.name} is given to another cluster ({where}), as MultiKueue does: its pod and the proof of its "
        "result would be there, unseen; create a new LoRAFineTune for a queue of this cluster"
    )
    return Verdict(succeeded=False, finding=Finding(reason=Reason.MULTI_CLUSTER_QUEUE, message=sentence(message)))


def has_no_time_left(case: Case) -> bool:
    """Whether a run that is not active now has nothing left of its deadline to go on in."""
    policy = case.request.policy
    return case.spent.active_since is None and not policy.suspend and is_spent(policy, case.used)


def waited_too_long(case: Case, job: JobView | None, pods: Sequence[PodView], situation: Situation) -> Verdict | None:
    """The end of a run that waited longer than `pendingTimeoutSeconds`, with what it waited for."""
    left_s = pending_left_s(case, job, pods, situation)
    timeout_s = case.request.policy.pending_timeout_s
    if left_s is None or left_s > 0 or timeout_s is None:
        return None
    state = situation.state
    message = (
        f"The run waited longer than spec.pendingTimeoutSeconds ({timeout_s} s) without all its pods running, "
        f"most recently with {state.reason.value} ({state.message}): fix that and create a new LoRAFineTune"
    )
    since = _waiting_since(case, job, pods) + timedelta(seconds=timeout_s)
    finding = Finding(reason=Reason.PENDING_TIMEOUT, message=sentence(message), since=since)
    return Verdict(succeeded=False, finding=finding)


def pending_left_s(case: Case, job: JobView | None, pods: Sequence[PodView], situation: Situation) -> float | None:
    """Seconds that the run may yet wait for its pods; None where nothing limits that, or where it does not wait."""
    policy = case.request.policy
    if policy.pending_timeout_s is None or policy.suspend or situation.running or any(map(claims_success, pods)):
        return None
    if job is not None and (job.suspended or job.deleting or is_ending(job) or _is_early_work(case, job, pods)):
        return None
    due = _waiting_since(case, job, pods) + timedelta(seconds=policy.pending_timeout_s)
    return (due - case.now).total_seconds()


def _waiting_since(case: Case, job: JobView | None, pods: Sequence[PodView]) -> datetime:
    """Since when not all pods run, the time before the Job, suspended and in a queue not included."""
    # Conditions may have come from a backup.
    moments = [case.finetune.created_at, *_ends_of_early_stages(case)]
    if job is not None:
        moments.append(_end_of_backoff(case, job))
        moments.extend(_ends(case, job))
        moments.append(job.started_at or job.created_at)
        # No condition says when a pod of an early stage ceased to run. And one that was drained is gone, maybe unseen:
        # the next is made when the last has ended. Of several nodes, once all that are not done have a pod, the first
        # of those that wait.
        nodes = case.request.pod.nodes
        moments.extend(pod.created_at for pod in pods if nodes == 1 or pod.stage != names.TRAIN)
        if nodes_with(lambda pod: not has_ended(pod), nodes, job, pods) == nodes:
            waiting = (pod.created_at for pod in pods if not has_ended(pod) and not is_running(pod))
            moments.append(min(waiting, default=None))
    held = previous_condition(case.finetune, Type.SUSPENDED)
    if held.get("status") == "True" or (job is not None and suspension_of(job) is not None):
        moments.append(case.now)  # let go just now, of which neither the status nor the Job's start says yet
    elif held.get("status") == "False":
        moments.append(parse_instant(held.get("lastTransitionTime")))
    ready = previous_condition(case.finetune, Type.PODS_READY)
    if ready.get("status") == "False":
        moments.append(parse_instant(ready.get("lastTransitionTime")))
    elif ready or job is None:
        moments.append(case.now)
    return max(moment for moment in [*moments, _BEGINNING] if moment is not None)


def _ends(case: Case, job: JobView) -> list[datetime]:
    """When the Job's pods ended, without those that waited for a node in vain: they end, and wait again."""
    ends = (end for end in case.rounds.of(job) if not case.rounds.waited_in_vain(end))
    return [end.finished_at for end in ends if end.finished_at is not None]


def _end_of_backoff(case: Case, job: JobView) -> datetime | None:
    """When the Job has made the next pods or, until it has, when it may: for a while it keeps them back itself.

    The more failed, the longer: 10 seconds to 10 minutes (pkg/controller/job/backoff_utils.go of Kubernetes 1.34).
    """
    rounds, ready = case.rounds.of(job), previous_condition(case.finetune, Type.PODS_READY)
    nodes = case.request.pod.nodes if job.stage == names.TRAIN else 1
    failed = _failures(case, job, nodes)
    stopped = parse_instant(ready.get("lastTransitionTime")) if ready.get("status") == "False" else None
    ended = max([*_ends(case, job), *filter(None, [stopped])], default=None)
    if not failed or ended is None:
        return None
    due = ended + timedelta(seconds=min(10 * 2 ** min(failed - 1, 6), 600))
    made = {end.index: end.made_at for end in rounds if not end.has_ended}
    return due if len(made) < nodes else min(due, max(made.values()))


def _failures(case: Case, job: JobView, nodes: int) -> int:
    """By how many failed pods the Job waits for the next ones: of the node with most of them, or of all nodes."""
    rounds = case.rounds.of(job)
    if job.waits_by_index:
        # It keeps the last that failed of each node, which has the number of those before it, until the next is made.
        return max((end.pod.failures_before + 1 for end in rounds if end.failure is not None), default=0)
    # Those that were drained are gone: the run's retries count them, and the condition of the run says when.
    return max(sum(end.has_ended for end in rounds), sum(case.retries.counts.values()) * nodes)


def _ends_of_early_stages(case: Case) -> list[datetime | None]:
    """When the stages before the training ended, as their Jobs say or, of one that is gone, the status."""
    ends = [(job.completed_at, ending_of(job)) for job in case.children.stages.values()]
    passed = previous_condition(case.finetune, Type.PREFLIGHT_PASSED)
    stored = parse_instant(passed.get("lastTransitionTime")) if passed.get("status") == "True" else None
    return [stored, *(at or ending.since for at, ending in ends if ending is not None)]


def _is_early_work(case: Case, job: JobView, pods: Sequence[PodView]) -> bool:
    """Whether a stage before the training is at work, or was by a pod that is gone and whose successor is to come."""
    succeeds = not pods and any(case.retries.counts.values())
    return job.stage != names.TRAIN and (succeeds or any(is_running(pod) for pod in pods))


def _has_used_up_its_retries(case: Case, scene: Scene, situation: Situation) -> bool:
    """Whether pods ended early too often, of which the Job itself counts only some.

    A run whose pods all run goes on: what they do may yet succeed.
    """
    job, pods = scene.job, scene.pods
    if situation.running or job.suspended or case.used.retries <= case.request.policy.max_retries:
        return False
    failed = [pod for pod, _ in failures_of(pods, scene.memory)]
    by_the_job = max(job.failed, sum(not ignored_by_job(pod) for pod in failed))
    job_will_say = by_the_job > job.backoff_limit or any(pod.trainer.exit_code in FINAL for pod in failed)
    return bool(failed) and not job_will_say
