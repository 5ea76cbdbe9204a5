"""What a run that has not ended is doing: the reason that `kubectl get` shows as STATE, and the sentence behind it."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lora_operator.decision.proof import claims_success
from lora_operator.decision.quota import Place, waiting
from lora_operator.decision.stages.stage import Stage
from lora_operator.decision.trouble import trouble_of_job, trouble_of_pod
from lora_operator.views.conditions import Finding
from lora_operator.views.model import EventView, JobView, MemoryLimit, PodView
from lora_operator.views.pods import (
    condition_of,
    failures_of,
    has_ended,
    is_done,
    is_running,
    leader_first,
    newest_first,
)
from lora_operator.views.request import Request
from lora_operator.views.wording import instant
from lora_trainer.contract.exit_codes import FINAL
from lora_trainer.contract.progress import Phase
from lora_trainer.contract.reasons import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """`state` is what goes on; `pod` the pod that it is about. The trainer runs and can be asked where `running`."""

    state: Finding
    pod: PodView | None = None
    running: bool = False

    @property
    def ready_since(self) -> Finding:
        """The finding of the condition PodsReady of a running pod."""
        pod = self.pod
        where = f"Pod {pod.name} runs on node {pod.node}" if pod else "The pod runs"
        since = condition_of(pod, "Ready").since if pod else None
        return Finding(reason=Reason.POD_RUNNING, message=where, since=since)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a situation is read from. `progress` is the progress block of the status, as it will be written.

    `nodes` is the number of pods that the Job has at a time, `place` the Job's in a queue. `stalled_since`: a training
    that should have taken a step for long has reported none since then. `retries` is what is used up of `maxRetries`.
    """

    stage: Stage
    request: Request
    nodes: int
    job: JobView
    pods: Sequence[PodView]
    events: Sequence[EventView]
    progress: Mapping[str, Any]
    memory: MemoryLimit
    place: Place | None = None
    stalled_since: datetime | None = None
    retries: int = 0


def assess(scene: Scene) -> Situation:
    """The situation of a run whose Job exists and goes on."""
    pods = newest_first(scene.pods)
    living = _telling(scene, [pod for pod in leader_first(scene.pods) if not has_ended(pod)])
    newest = living or (pods[0] if pods else None)
    if scene.job.suspended:
        return Situation(state=_suspended(scene, living), pod=newest)
    if scene.job.deleting:
        message = f"Job {scene.job.name} is being deleted; a new one follows when its pod has stopped"
        return Situation(state=Finding(reason=Reason.RESTARTING, message=message), pod=newest)
    if living is None or _is_failing(scene):
        return Situation(state=_without_pod(scene, newest), pod=newest)
    done = next(filter(claims_success, scene.pods), None)
    if done is not None and living.deleting:  # the Job stops the pods of the other nodes
        message = f"Pod {done.name} has done its work, and pod {living.name} is being stopped"
        return Situation(state=Finding(reason=scene.stage.ended, message=message), pod=done)
    situation = _with_pod(scene, living)
    return situation if situation.running or scene.nodes == 1 else _counted(scene, situation)


def _is_failing(scene: Scene) -> bool:
    """Whether the Job has given up, and only waits for the pods that it is stopping."""
    given_up = any(c.type == "FailureTarget" and c.status == "True" for c in scene.job.conditions)
    return given_up and bool(failures_of(scene.pods, scene.memory))


def _counted(scene: Scene, situation: Situation) -> Situation:
    """With the number of pods that run, where several must."""
    message = f"{situation.state.message}; {_running_nodes(scene)} of {scene.nodes} pods run"
    return dataclasses.replace(situation, state=dataclasses.replace(situation.state, message=message))


def _telling(scene: Scene, living: Sequence[PodView]) -> PodView | None:
    """Of the living pods the one that holds the others up, else the one that leads."""
    if scene.nodes > 1:
        troubled = (pod for pod in living if trouble_of_pod(pod, scene.events) is not None)
        idle = (pod for pod in living if pod.deleting or not is_running(pod))
        return next(troubled, None) or next(idle, None) or next(iter(living), None)
    return next(iter(living), None)


def held_by_user() -> Finding:
    """The user wants the run to wait."""
    message = "Suspended by spec.suspend: set it to false to resume"
    return Finding(reason=Reason.SUSPENDED_BY_USER, message=message)


def awaiting_orphan(pod: PodView) -> Situation:
    """The Job is gone but its pod lives on: two must never write the same output, so the next attempt waits."""
    message = (
        f"Job of pod {pod.name} is gone, but the pod still runs; a new attempt follows when it has stopped: "
        f"kubectl delete pod {pod.name} stops it"
    )
    return Situation(state=Finding(reason=Reason.RESTARTING, message=message), pod=pod)


def awaiting_superseded(job: JobView) -> Situation:
    """A Job of an earlier attempt or release turned up: it is stopped, before anything else writes the same output."""
    message = f"Job {job.name} of an earlier attempt or release is being stopped; a new one follows"
    return Situation(state=Finding(reason=Reason.RESTARTING, message=message))


_AWAITING_POD = Finding(reason=Reason.PENDING, message="Waiting for the cluster to create the pod")


def _suspended(scene: Scene, living: PodView | None) -> Finding:
    since = next((c.since for c in scene.job.conditions if c.type == "Suspended" and c.status == "True"), None)
    end = f"; pod {living.name} is being stopped" if living else ""
    if scene.request.policy.suspend:
        return dataclasses.replace(held_by_user(), message=f"{held_by_user().message}{end}", since=since)
    if scene.place is not None:
        finding = waiting(scene.place)
        return dataclasses.replace(finding, message=f"{finding.message}{end}", since=finding.since or since)
    until = f"the client that suspended it sets spec.suspend of Job {scene.job.name} to false"
    message = f"The Job is suspended, but not by spec.suspend of this LoRAFineTune: it continues when {until}{end}"
    return Finding(reason=Reason.SUSPENDED_EXTERNALLY, message=message, since=since)


def _without_pod(scene: Scene, newest: PodView | None) -> Finding:
    trouble = trouble_of_job(scene.job, scene.pods, scene.events)
    if trouble is not None:
        return trouble
    failed = failures_of(scene.pods if scene.nodes > 1 else [newest] if newest else [], scene.memory)
    if failed:
        pod, failure = failed[0]
        ends = pod.trainer.exit_code in FINAL or _failures(scene) > scene.request.policy.max_retries
        return _but_held(failure if ends else _restarting(scene, failure), scene.pods)
    if newest is not None:
        message = f"Pod {newest.name} has ended; waiting for its Job to report it"
        return _but_held(Finding(reason=scene.stage.ended, message=message), scene.pods)
    return _AWAITING_POD


def _but_held(finding: Finding, pods: Sequence[PodView]) -> Finding:
    """With what keeps the Job from counting a pod whose trainer has ended."""
    pod = next((pod for pod in pods if pod.outlasting and not pod.deleting), None)
    if pod is None:
        return finding
    message = (
        f"{finding.message}. But container {pod.outlasting} of pod {pod.name} runs on, so the pod is not counted and "
        "keeps its GPUs: end that container, and keep it out of the next runs (trainer.podAnnotations in the chart's "
        "values)"
    )
    return dataclasses.replace(finding, message=message)


def _with_pod(scene: Scene, pod: PodView) -> Situation:
    trouble = trouble_of_pod(pod, scene.events)
    if trouble is not None:
        return Situation(state=trouble, pod=pod)
    if pod.deleting:
        message = f"Pod {pod.name} was deleted and is being stopped; a new one follows"
        return Situation(state=Finding(reason=Reason.RESTARTING, message=message), pod=pod)
    failures = [failure for _, failure in failures_of(scene.pods, scene.memory)]
    if is_running(pod) and scene.stage.at_work is not None:
        work = scene.stage.at_work(pod)
        return Situation(state=dataclasses.replace(work, message=work.message + _after(failures)), pod=pod)
    if is_running(pod) and _running_nodes(scene) == scene.nodes:
        return Situation(state=_but_held(_running(scene, failures), scene.pods), pod=pod, running=True)
    return Situation(state=_awaited(scene, pod, failures), pod=pod)


def _awaited(scene: Scene, pod: PodView, failures: Sequence[Finding]) -> Finding:
    """What must come about before all pods run."""
    refused = trouble_of_job(scene.job, scene.pods, scene.events) if _lacks_pods(scene) else None
    if refused is not None:
        return refused
    return _restarting(scene, failures[0]) if failures else _starting(pod)


def _running_nodes(scene: Scene) -> int:
    """Nodes whose pod runs, or has done its part: the first one verifies and publishes when the others have ended."""
    return nodes_with(is_running, scene.nodes, scene.job, scene.pods)


def _lacks_pods(scene: Scene) -> bool:
    """Whether the Job has yet to make the pod of a node."""
    return nodes_with(lambda pod: not has_ended(pod), scene.nodes, scene.job, scene.pods) < scene.nodes


def nodes_with(is_there: Callable[[PodView], bool], nodes: int, job: JobView, pods: Sequence[PodView]) -> int:
    """Of so many nodes those with such a pod, and those that are done.

    The machine of one that is done may be scaled down, and its pod removed with it: the Job has counted that. It has
    yet to count a pod that a proxy keeps from ending.
    """
    there = {pod.index for pod in pods if is_there(pod) or is_done(pod)}
    counted = {pod.index for pod in pods if is_done(pod) and not pod.outlasting}
    return min(len(there) + max(0, job.succeeded - len(counted)), nodes)


def _restarting(scene: Scene, failure: Finding) -> Finding:
    if failure.reason is Reason.EVICTED:
        return dataclasses.replace(failure, message=f"{failure.message}. A new pod follows")
    used = _failures(scene)
    next_pod = f"retry {used} of {scene.request.policy.max_retries}" if used else "a new pod"
    message = f"{_name(failure)}: {failure.message}. Now {next_pod} follows, with the same spec"
    return Finding(reason=Reason.RESTARTING, message=message, since=failure.since)


def _failures(scene: Scene) -> int:
    """What counts against maxRetries, the failures of all nodes as one.

    The Job may count one a little later than its pod says it, or know of one whose pod is gone.
    """
    return max(scene.retries, scene.job.retries_before + math.ceil(scene.job.failed / scene.nodes))


def _name(failure: Finding) -> str:
    return "a transient error" if failure.reason is Reason.RESTARTING else failure.reason.value


def _starting(pod: PodView) -> Finding:
    if not pod.node:
        message = f"Pod {pod.name} waits for a node"
    elif is_running(pod):
        message = "Waiting for the cluster to create the other pods"
    else:
        message = f"Node {pod.node} pulls the image and mounts the volumes of pod {pod.name}"
    return Finding(reason=Reason.PENDING, message=message)


def _running(scene: Scene, failures: Sequence[Finding]) -> Finding:
    phase = _phase(scene.progress)
    if scene.stalled_since is not None and phase is Phase.TRAINING:
        message = (
            f"The trainer has reported no step since {instant(scene.stalled_since)}: it should end itself and resume "
            "from its last checkpoint; if it does not, delete its pod"
        )
        return Finding(reason=Reason.STALLED, message=message + _after(failures))
    return Finding(reason=Reason(phase.value), message=_doing(phase, scene) + _after(failures))


def _after(failures: Sequence[Finding]) -> str:
    if not failures:
        return ""
    count = "1 failed pod" if len(failures) == 1 else f"{len(failures)} failed pods"
    return f" (after {count}, the last with {_name(failures[0])})"


def _phase(progress: Mapping[str, Any]) -> Phase:
    return {phase.value: phase for phase in Phase}.get(str(progress.get("phase")), Phase.STARTING)


def _doing(phase: Phase, scene: Scene) -> str:
    if phase is Phase.TRAINING:
        step, eta = scene.progress.get("steps"), scene.progress.get("eta")
        if not step:
            return "The trainer takes its first step"
        return f"Step {step}" + (f", about {eta} to go" if eta else "")
    return _DOING[phase]


_DOING = {
    Phase.STARTING: "The trainer starts",
    Phase.PREPARING: "The trainer fetches model and data and reads the data set",
    Phase.CHECKPOINTING: "The trainer saves a checkpoint",
    Phase.LOADING_MODEL: "The trainer loads the base model",
    Phase.EVALUATING: "The trainer measures the loss on the held-out rows",
    Phase.PUBLISHING: "The trainer writes the result, verifies it in a fresh process and publishes it",
}
