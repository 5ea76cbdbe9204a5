"""What a run that has not ended is doing: the reason that `kubectl get` shows as STATE, and the sentence behind it."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lora_operator.decide.blocks import Block
from lora_operator.decide.kueue import waiting
from lora_operator.decide.run import Run
from lora_operator.decide.trouble import trouble_of_job, trouble_of_pod
from lora_operator.decide.verdict import claims_success
from lora_operator.model import names
from lora_operator.model.conditions import StateReason
from lora_operator.model.jobs import suspension_of
from lora_operator.model.objects import JobView, PodView
from lora_operator.model.pods import (
    condition_of,
    has_ended,
    ignored_by_job,
    is_done,
    is_running,
    leader_first,
    newest_first,
    was_disrupted,
)
from lora_operator.model.wording import instant
from lora_trainer.spec.exit_codes import FINAL
from lora_trainer.spec.progress import Phase
from lora_trainer.spec.reasons import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """`reason` is what goes on; `pod` the pod that it is about. The trainer runs and can be asked where `running`."""

    reason: StateReason
    pod: PodView | None = None
    running: bool = False

    @property
    def ready_since(self) -> StateReason:
        """The reason of the condition PodsReady of a running pod."""
        pod = self.pod
        where = f"Pod {pod.name} runs on node {pod.node}" if pod else "The pod runs"
        since = condition_of(pod, "Ready").since if pod else None
        return StateReason(reason=Reason.POD_RUNNING, message=where, since=since)


def assess(run: Run, job: JobView) -> RunState:
    """What a run does whose Job exists and goes on."""
    pods = newest_first(run.job_pods)
    living = _telling(run, [pod for pod in leader_first(pods) if not has_ended(pod)])
    newest = living or (pods[0] if pods else None)
    if job.suspended:
        return RunState(reason=_suspended(run, job, living), pod=newest)
    if job.deleting:
        message = f"Job {job.name} is being deleted; a new one follows when its pod has stopped"
        return RunState(reason=StateReason(reason=Reason.RESTARTING, message=message), pod=newest)
    if living is None or _is_failing(run, job):
        return RunState(reason=_without_pod(run, job, newest), pod=newest)
    done = next(filter(claims_success, run.job_pods), None)
    if done is not None and living.deleting:  # the Job stops the pods of the other nodes
        message = f"Pod {done.name} has done its work, and pod {living.name} is being stopped"
        return RunState(reason=StateReason(reason=_ENDED[job.stage], message=message), pod=done)
    state = _with_pod(run, job, living)
    return state if state.running or run.nodes == 1 else _counted(run, state, running_nodes(run, job))


def _is_failing(run: Run, job: JobView) -> bool:
    """Whether the Job has given up, and only waits for the pods that it is stopping."""
    given_up = any(c.type == "FailureTarget" and c.status == "True" for c in job.conditions)
    return given_up and bool(run.failures)


def _counted(run: Run, state: RunState, running: int) -> RunState:
    """With the number of pods that run, where several must."""
    message = f"{state.reason.message}; {running} of {run.nodes} pods run"
    return dataclasses.replace(state, reason=dataclasses.replace(state.reason, message=message))


def _telling(run: Run, living: Sequence[PodView]) -> PodView | None:
    """Of the living pods the one that holds the others up, else the one that leads."""
    if run.nodes > 1:
        troubled = (pod for pod in living if trouble_of_pod(pod, run.observed.events) is not None)
        idle = (pod for pod in living if pod.deleting or not is_running(pod))
        return next(troubled, None) or next(idle, None) or next(iter(living), None)
    return next(iter(living), None)


def held_by_user() -> StateReason:
    """The user wants the run to wait."""
    message = "Suspended by spec.suspend: set it to false to resume"
    return StateReason(reason=Reason.SUSPENDED_BY_USER, message=message)


def awaiting_orphan(pod: PodView) -> RunState:
    """The Job is gone but its pod lives on: two must never write the same output, so the next attempt waits."""
    message = (
        f"Job of pod {pod.name} is gone, but the pod still runs; a new attempt follows when it has stopped: "
        f"kubectl delete pod {pod.name} stops it"
    )
    return RunState(reason=StateReason(reason=Reason.RESTARTING, message=message), pod=pod)


def awaiting_superseded(job: JobView) -> RunState:
    """A Job of an earlier attempt turned up: it is stopped, before anything else writes the same output."""
    message = f"Job {job.name} of an earlier attempt is being stopped; a new one follows"
    return RunState(reason=StateReason(reason=Reason.RESTARTING, message=message))


_AWAITING_POD = StateReason(reason=Reason.PENDING, message="Waiting for the cluster to create the pod")


def _suspended(run: Run, job: JobView, living: PodView | None) -> StateReason:
    held = suspension_of(job)
    since = held.since if held else None
    end = f"; pod {living.name} is being stopped" if living else ""
    if run.policy.suspend:
        return dataclasses.replace(held_by_user(), message=f"{held_by_user().message}{end}", since=since)
    if run.place is not None:
        why = waiting(run.place)
        return dataclasses.replace(why, message=f"{why.message}{end}", since=why.since or since)
    until = f"the client that suspended it sets spec.suspend of Job {job.name} to false"
    message = f"The Job is suspended, but not by spec.suspend of this LoRAFineTune: it continues when {until}{end}"
    return StateReason(reason=Reason.SUSPENDED_EXTERNALLY, message=message, since=since)


def _without_pod(run: Run, job: JobView, newest: PodView | None) -> StateReason:
    trouble = trouble_of_job(job, run.job_pods, run.observed.events)
    if trouble is not None:
        return trouble
    failed = run.failures if run.nodes > 1 else [pair for pair in run.failures if pair[0] is newest]
    if failed:
        pod, failure = failed[0]
        ends = pod.trainer.exit_code in FINAL or _used(run, job) > run.policy.max_retries
        return _but_held(failure if ends else _restarting(run, job, pod, failure), run.job_pods)
    if newest is not None:
        message = f"Pod {newest.name} has ended; waiting for its Job to report it"
        return _but_held(StateReason(reason=_ENDED[job.stage], message=message), run.job_pods)
    return _AWAITING_POD


def _but_held(why: StateReason, pods: Sequence[PodView]) -> StateReason:
    """With what keeps the Job from counting a pod whose trainer has ended."""
    pod = next((pod for pod in pods if pod.lingering_sidecar and not pod.deleting), None)
    if pod is None:
        return why
    message = (
        f"{why.message}. But container {pod.lingering_sidecar} of pod {pod.name} runs on, so the pod is not counted "
        "and keeps its GPUs: end that container, and keep it out of the next runs (trainer.podAnnotations in the "
        "chart's values)"
    )
    return dataclasses.replace(why, message=message)


def _with_pod(run: Run, job: JobView, pod: PodView) -> RunState:
    trouble = trouble_of_pod(pod, run.observed.events)
    if trouble is not None:
        return RunState(reason=trouble, pod=pod)
    if pod.deleting:
        left = run.retries.used < run.policy.max_retries
        follows = "a new one follows, and uses a retry" if left else "no retry is left for a new one"
        message = f"Pod {pod.name} was deleted and is being stopped; {follows}"
        return RunState(reason=StateReason(reason=Reason.RESTARTING, message=message), pod=pod)
    failures = run.failures
    if is_running(pod) and job.stage == names.PREFLIGHT:
        message = f"Pod {pod.name} looks at model, data and output, before GPUs are asked for{_after(failures)}"
        return RunState(reason=StateReason(reason=Reason.PREFLIGHT, message=message), pod=pod)
    if is_running(pod) and running_nodes(run, job) == run.nodes:
        return RunState(reason=_but_held(_running(run, failures), run.job_pods), pod=pod, running=True)
    return RunState(reason=_awaited(run, job, pod), pod=pod)


def _awaited(run: Run, job: JobView, pod: PodView) -> StateReason:
    """What must come about before all pods run."""
    lacks_pods = _lacks_pods(run, job)
    refused = trouble_of_job(job, run.job_pods, run.observed.events) if lacks_pods else None
    if refused is not None:
        return refused
    # One that was taken away is in the state Evicted until the next is there: left and entered again for the same pod,
    # it would be counted twice.
    if not run.failures or (was_disrupted(run.failures[0][0]) and not lacks_pods):
        why = _starting(pod)
        return dataclasses.replace(why, message=f"{why.message}{_after(run.failures)}")
    return _restarting(run, job, *run.failures[0])


def running_nodes(run: Run, job: JobView) -> int:
    """Nodes whose pod runs, or has done its part: the first one verifies and publishes when the others have ended."""
    return nodes_with(is_running, run.nodes, job, run.job_pods)


def _lacks_pods(run: Run, job: JobView) -> bool:
    """Whether the Job has yet to make the pod of a node."""
    return nodes_with(lambda pod: not has_ended(pod), run.nodes, job, run.job_pods) < run.nodes


def nodes_with(is_there: Callable[[PodView], bool], nodes: int, job: JobView, pods: Sequence[PodView]) -> int:
    """Of so many nodes those with such a pod, and those that are done.

    The machine of one that is done may be scaled down, and its pod removed with it: the Job has counted that. It has
    yet to count a pod that a proxy keeps from ending.
    """
    there = {pod.index for pod in pods if is_there(pod) or is_done(pod)}
    counted = {pod.index for pod in pods if is_done(pod) and not pod.lingering_sidecar}
    return min(len(there) + max(0, job.succeeded - len(counted)), nodes)


def _restarting(run: Run, job: JobView, pod: PodView, failure: StateReason) -> StateReason:
    if failure.reason is Reason.EVICTED and was_disrupted(pod):
        return dataclasses.replace(failure, message=f"{failure.message}. A new pod follows")
    used = _used(run, job)
    next_pod = f"retry {used} of {run.policy.max_retries}" if used else "a new pod"
    message = f"{_name(failure)}: {failure.message}. Now {next_pod} follows, with the same spec"
    return StateReason(reason=Reason.RESTARTING, message=message, since=failure.since)


def _used(run: Run, job: JobView) -> int:
    """What is used up, with a pod that somebody deleted, which its Job counts a moment later than that says it."""
    failed = sum(not ignored_by_job(pod) for pod, _ in run.failures) if run.nodes == 1 else 0
    return max(run.retries.used, job.retries_before + failed)


def _name(failure: StateReason) -> str:
    return "a transient error" if failure.reason is Reason.RESTARTING else failure.reason.value


def _starting(pod: PodView) -> StateReason:
    if not pod.node:
        message = f"Pod {pod.name} waits for a node"
    elif is_running(pod):
        message = "Waiting for the cluster to create the other pods"
    else:
        message = f"Node {pod.node} pulls the image and mounts the volumes of pod {pod.name}"
    return StateReason(reason=Reason.PENDING, message=message)


def _running(run: Run, failures: Sequence[tuple[PodView, StateReason]]) -> StateReason:
    phase = _phase(run.progress)
    if run.stalled_since is not None and phase is Phase.TRAINING:
        message = (
            f"The trainer has reported no step since {instant(run.stalled_since)}: it should end itself and resume "
            "from its last checkpoint; if it does not, delete its pod"
        )
        return StateReason(reason=Reason.STALLED, message=message + _after(failures))
    return StateReason(reason=Reason(phase.value), message=_doing(phase, run.progress) + _after(failures))


def _after(failures: Sequence[tuple[PodView, StateReason]]) -> str:
    if not failures:
        return ""
    count = "1 failed pod" if len(failures) == 1 else f"{len(failures)} failed pods"
    return f" (after {count}, the last with {_name(failures[0][1])})"


def _phase(progress: Block) -> Phase:
    return {phase.value: phase for phase in Phase}.get(str(progress.get("phase")), Phase.STARTING)


def _doing(phase: Phase, progress: Block) -> str:
    if phase is Phase.TRAINING:
        step, eta = progress.get("steps"), progress.get("eta")
        if not step:
            return "The trainer takes its first step"
        return f"Step {step}" + (f", about {eta} to go" if eta else "")
    return _DOING[phase]


# Of a run whose pod has ended while its Job has not.
_ENDED = {names.PREFLIGHT: Reason.PREFLIGHT, names.TRAIN: Reason.PUBLISHING}
_DOING = {
    Phase.STARTING: "The trainer starts",
    Phase.PREPARING: "The trainer fetches model and data and reads the data set",
    Phase.CHECKPOINTING: "The trainer saves a checkpoint",
    Phase.LOADING_MODEL: "The trainer loads the base model",
    Phase.EVALUATING: "The trainer measures the loss on the held-out rows",
    Phase.PUBLISHING: "The trainer writes the result, verifies it in a fresh process and publishes it",
}
