"""When the operator itself ends a run whose Job would go on: the verdict is stored first, then the Job is stopped."""

from datetime import datetime, timedelta

from lora_operator.decide.run import Run
from lora_operator.decide.state import RunState, nodes_with
from lora_operator.decide.trouble import trouble_of_job
from lora_operator.decide.verdict import Verdict, claims_success, deadline_exceeded, out_of_retries
from lora_operator.model.budget import is_spent
from lora_operator.model.conditions import StateReason, Type
from lora_operator.model.jobs import ending_of, is_ending, suspension_of
from lora_operator.model.names import PREFLIGHT
from lora_operator.model.objects import JobView
from lora_operator.model.pods import has_ended, ignored_by_job, is_running
from lora_operator.model.wording import parse_instant, sentence
from lora_trainer.spec.exit_codes import FINAL
from lora_trainer.spec.reasons import Reason

_LONGEST_BACKOFF_S = 600
"""For so long at most a Job makes no pod after one that failed (pkg/controller/job/backoff_utils.go of Kubernetes)."""


def give_up(run: Run, job: JobView, state: RunState) -> Verdict | None:
    """The end of a run that has a Job; None for one that is to go on."""
    if job.deleting or is_ending(job):
        return None
    if state.reason.reason is Reason.INVALID_IMAGE:
        return Verdict(succeeded=False, why=state.reason)
    elsewhere = job.managed_by or (run.place.cluster if run.place else "")
    if elsewhere:
        return _runs_elsewhere(job, elsewhere)
    if _has_used_up_its_retries(run, job, state):
        return out_of_retries(run.job_pods, run.memory, run.policy.max_retries)
    if has_no_time_left(run):
        return deadline_exceeded(run.policy, run.job_pods, run.memory)
    return waited_too_long(run, state)


def _runs_elsewhere(job: JobView, where: str) -> Verdict:
    message = (
        f"Job {job.name} is given to another cluster ({where}), as MultiKueue does: its pod and the proof of its "
        "result would be there, unseen; create a new LoRAFineTune for a queue of this cluster"
    )
    return Verdict(succeeded=False, why=StateReason(reason=Reason.MULTI_CLUSTER_QUEUE, message=sentence(message)))


def _has_used_up_its_retries(run: Run, job: JobView, state: RunState) -> bool:
    """Whether pods failed too often of which the Job counts only some: it leaves evictions out, and of several nodes it
    counts the failures of all together.

    A run whose pods all run goes on: what they do may yet succeed.
    """
    if state.running or job.suspended or run.retries.used <= run.policy.max_retries:
        return False
    failed = [pod for pod, _ in run.failures]
    by_the_job = max(job.failed, sum(not ignored_by_job(pod) for pod in failed))
    job_will_say = by_the_job > job.backoff_limit or any(pod.trainer.exit_code in FINAL for pod in failed)
    return bool(failed) and not job_will_say and not _may_learn_the_cause(run)


def _may_learn_the_cause(run: Run) -> bool:
    """Whether the pods that ended have only followed others so far, of which some live."""
    followed = all(failure.reason in (Reason.PEER_FAILED, Reason.EVICTED) for _, failure in run.failures)
    return run.nodes > 1 and followed and not all(map(has_ended, run.job_pods))


def has_no_time_left(run: Run) -> bool:
    """Whether a run that is not active now has nothing left of its deadline to go on in."""
    return run.active.active_since is None and not run.policy.suspend and is_spent(run.policy, run.used)


def waited_too_long(run: Run, state: RunState) -> Verdict | None:
    """The end of a run that waited longer than `pendingTimeoutSeconds`, with what it waited for."""
    left_s, timeout_s = pending_left_s(run, state), run.policy.pending_timeout_s
    if left_s is None or left_s > 0 or timeout_s is None:
        return None
    message = (
        f"The run waited longer than spec.pendingTimeoutSeconds ({timeout_s} s) without all its pods running, "
        f"most recently with {state.reason.reason.value} ({state.reason.message}): fix that and create a new "
        "LoRAFineTune"
    )
    since = _waiting_since(run) + timedelta(seconds=timeout_s)
    return Verdict(
        succeeded=False, why=StateReason(reason=Reason.PENDING_TIMEOUT, message=sentence(message), since=since)
    )


def pending_left_s(run: Run, state: RunState) -> float | None:
    """Seconds that the run may yet wait for its pods; None where nothing limits that, or where it does not wait."""
    job, policy = run.job, run.policy
    if job is not None and job.stage == PREFLIGHT and ending_of(job) is not None:
        job = None  # the run waits for the training's
    if policy.pending_timeout_s is None or policy.suspend or state.running or any(map(claims_success, run.job_pods)):
        return None
    if job is not None and (job.suspended or job.deleting or is_ending(job)):
        return None
    if job is not None and job.stage == PREFLIGHT and any(map(is_running, run.job_pods)):
        return None
    return (_waiting_since(run) + timedelta(seconds=policy.pending_timeout_s) - run.now).total_seconds()


def _waiting_since(run: Run) -> datetime:
    """Since when not all pods run, by the times at which the conditions of the status changed.

    Not included are the preflight, the time for which the run is suspended or in a queue, and a Job's own backoff.
    """
    stored, job = run.stored, run.job
    moments = [run.finetune.created_at]
    if stored.holds(Type.PREFLIGHT_PASSED):
        moments.append(stored.since(Type.PREFLIGHT_PASSED))
    missing = 0
    if job is not None:
        moments.append(job.started_at or job.created_at)
        missing = run.nodes - nodes_with(lambda pod: not has_ended(pod), run.nodes, job, run.job_pods)
        if not missing:
            # One that failed at once may never have been seen to run: the next one's wait is another.
            waiting = (pod.created_at for pod in run.job_pods if not has_ended(pod) and not is_running(pod))
            moments.append(min(waiting, default=None))
        if job.stage == PREFLIGHT:
            # No condition says when its pod runs: the change of the state does, and the ends of pods that are there.
            ending = ending_of(job)
            moments.append(parse_instant(stored.state_since))
            moments.append(run.now if ending is None and stored.state == Reason.PREFLIGHT else None)
            moments.append(job.completed_at or (ending.since if ending else None))
            moments.extend(pod.trainer.finished_at or pod.created_at for pod in run.job_pods)
    suspended, ready = stored.holds(Type.SUSPENDED), stored.holds(Type.PODS_READY)
    if suspended or (job is not None and suspension_of(job) is not None):
        moments.append(run.now)  # let go just now, of which neither the status nor the Job's start says yet
    elif suspended is False:
        moments.append(stored.since(Type.SUSPENDED))
    moments.append(stored.since(Type.PODS_READY) if ready is False else run.now if ready else None)
    since = max((moment for moment in moments if moment is not None), default=run.now)
    held_back = job is not None and bool(missing) and _holds_pods_back(run, job)
    return since + timedelta(seconds=_LONGEST_BACKOFF_S) if held_back else since


def _holds_pods_back(run: Run, job: JobView) -> bool:
    """Whether the Job waits by itself before it makes the next pod, and not for a cluster that refuses it."""
    ended = bool(job.failed or run.failures or run.retries.preempted)
    return ended and trouble_of_job(job, run.job_pods, run.observed.events) is None
