"""What a pod says of itself: whether it lives, runs, was disrupted, what it left behind and how it failed."""

from collections.abc import Iterable
from functools import lru_cache

from lora_operator.model.conditions import StateReason
from lora_operator.model.objects import ConditionView, MemoryLimit, PodView
from lora_operator.model.wording import last_line, sentence
from lora_trainer.spec.codec import CodecError
from lora_trainer.spec.exit_codes import ExitCode, reason_of
from lora_trainer.spec.reasons import FAILURES, Reason
from lora_trainer.spec.summary import Summary


def has_ended(pod: PodView) -> bool:
    """Whether the trainer has stopped for good; a pod is never restarted in place."""
    return pod.phase in {"Succeeded", "Failed"} or pod.trainer.exit_code is not None


def is_running(pod: PodView) -> bool:
    """Whether the trainer runs, as far as the node has reported."""
    return pod.trainer.running and not has_ended(pod)


def is_done(pod: PodView) -> bool:
    """Whether the trainer has done its node's part, though a proxy may keep the pod from being counted yet."""
    return pod.phase == "Succeeded" or (pod.trainer.exit_code == ExitCode.OK and pod.phase != "Failed")


def was_disrupted(pod: PodView) -> bool:
    """Whether the cluster took the pod away: drained, preempted, evicted. Such an end does not count as a failure."""
    return condition_of(pod, "DisruptionTarget").status == "True"


def ignored_by_job(pod: PodView) -> bool:
    """Whether the Job's pod failure policy leaves this end out of its own count."""
    return was_disrupted(pod) or pod.trainer.exit_code == ExitCode.PEER_FAILED


def evicted_by_node_pressure(pod: PodView) -> bool:
    """Whether its node evicted the pod for want of memory or disk, of its own or of what the pod may take.

    A new pod there may meet the same. The kubelet gives one reason of disruption for three ends, which the pod's own
    reason tells apart: a node that shuts down in an orderly way (`Terminated`), and room for a critical pod
    (`Preempting`), are none of the run's (kubelet/nodeshutdown and kubelet/preemption of Kubernetes 1.34). A pod above
    a limit of its own for disk is evicted without a disruption (kubelet/eviction).
    """
    if was_disrupted(pod):
        by_the_node = condition_of(pod, "DisruptionTarget").reason == "TerminationByKubelet"
        return by_the_node and pod.reason not in (SHUT_DOWN, "Preempting")
    return pod.phase == "Failed" and pod.reason == "Evicted"


SHUT_DOWN = "Terminated"
"""The reason of a pod whose node shuts down."""


def condition_of(pod: PodView, kind: str) -> ConditionView:
    """The pod's condition of that type; an empty one where it has none."""
    return next((c for c in pod.conditions if c.type == kind), ConditionView(type=kind, status=""))


def newest_first(pods: Iterable[PodView]) -> list[PodView]:
    """Latest creation first, and by name where two are of the same second."""
    return sorted(pods, key=lambda pod: (pod.created_at, pod.name), reverse=True)


def leader_first(pods: Iterable[PodView]) -> list[PodView]:
    """Newest first, those of node 0 before the others: it reports for all nodes."""
    return sorted(newest_first(pods), key=lambda pod: pod.index != 0)


def summary_of(pod: PodView) -> Summary | None:
    """What the trainer wrote at its end; None where it wrote nothing or the message is but a tail of its log."""
    return _summary_in(pod.trainer.termination_message)


@lru_cache(maxsize=1024)  # twice as many as a run's pods that are looked at, each of which several parts of a look read
def _summary_in(message: str) -> Summary | None:
    try:
        return Summary.from_message(message)
    except CodecError:
        return None


_UNKNOWN_LIMIT = MemoryLimit()


def failures_of(pods: Iterable[PodView], memory: MemoryLimit) -> list[tuple[PodView, StateReason]]:
    """Ended pods and how they failed, newest first; of several nodes the cause comes before what followed from it."""
    failed = [(pod, failure) for pod in newest_first(pods) if (failure := failure_of(pod, memory)) is not None]
    if not any(pod.index for pod, _ in failed):
        return failed
    return sorted(failed, key=lambda pair: pair[1].reason in {Reason.PEER_FAILED, Reason.EVICTED})


def failure_of(pod: PodView, memory: MemoryLimit = _UNKNOWN_LIMIT) -> StateReason | None:
    """How an ended pod failed; None for one that lives or whose trainer ended with 0. `memory` is its limit."""
    code = pod.trainer.exit_code
    if not has_ended(pod) or code == ExitCode.OK or (code is None and pod.phase == "Succeeded"):
        return None
    reason, message = _cause(pod, code, memory)
    return StateReason(reason=reason, message=sentence(message), since=pod.trainer.finished_at)


def _cause(pod: PodView, code: int | None, memory: MemoryLimit) -> tuple[Reason, str]:
    summary = summary_of(pod)
    if summary is None or code == ExitCode.TERMINATED:
        taken = _taken_away(pod)
        if taken:
            return Reason.EVICTED, taken
    if summary is not None and summary.reason in FAILURES:
        return summary.reason, summary.message
    if code is None:
        return _cause_of_the_node(pod)
    # 137 is SIGKILL, and memory is only one reason to send it; the kubelet also makes it up for a container it lost.
    if pod.trainer.termination_reason == "ContainerStatusUnknown":
        said = last_line(pod.trainer.termination_message) or "the node did not say why"
        return Reason.NODE_LOST, f"Node {pod.node or '(unknown)'} lost the container of pod {pod.name}: {said}"
    if pod.deleting and code == ExitCode.KERNEL_OUT_OF_MEMORY and pod.trainer.termination_reason != "OOMKilled":
        return Reason.EVICTED, f"Pod {pod.name} was deleted and killed, since it did not stop in time"
    killed = code == ExitCode.KERNEL_OUT_OF_MEMORY
    reason = Reason.INTERNAL_ERROR if killed else reason_of(code)
    said = last_line(pod.trainer.termination_message)
    meaning = _KILLED if killed else _MEANINGS.get(reason, f"The trainer ended with exit code {code}")
    if pod.trainer.termination_reason == "OOMKilled":
        reason = Reason.OOM_KILLED
        meaning = f"The trainer needed more than its {memory.amount} of main memory: {memory.remedy}"
    return reason, f"{meaning}; it last said: {said}" if said else meaning


def _taken_away(pod: PodView) -> str:
    """What took a pod away; empty for one that its trainer ended, or that ended before its trainer did."""
    if was_disrupted(pod):
        why = condition_of(pod, "DisruptionTarget").message or pod.message
        return f"The cluster took pod {pod.name} away" + (f": {last_line(why)}" if why else "")
    if evicted_by_node_pressure(pod) and pod.trainer.exit_code is not None:
        return f"Node {pod.node or '(unknown)'} evicted pod {pod.name}: {last_line(pod.message)}"
    return ""


def _cause_of_the_node(pod: PodView) -> tuple[Reason, str]:
    reason = {"NodeLost": Reason.NODE_LOST, "Evicted": Reason.EVICTED}.get(pod.reason, Reason.INTERNAL_ERROR)
    said = last_line(f"{pod.reason} {pod.message}") or "the node did not say why"
    return reason, f"Pod {pod.name} failed before its trainer said how it ended: {said}"


_KILLED = (
    "The trainer was killed (SIGKILL), by its node's account not for memory: look at the pod's events, which list a "
    "failed liveness probe"
)
_MEANINGS = {
    Reason.CONFIG_INVALID: "The trainer refused its configuration",
    Reason.DATASET_INVALID: "The data set cannot be used",
    Reason.MODEL_NOT_FOUND: "The model or the data set was not found",
    Reason.NON_FINITE_LOSS: (
        "The loss became infinite or not a number: create a new LoRAFineTune with a lower spec.training.learningRate"
    ),
    Reason.CUDA_OUT_OF_MEMORY: (
        "The GPU's memory is too small: create a new LoRAFineTune with a lower spec.training.maxSequenceLength, "
        "microBatchSize 1 or quantization NF4"
    ),
    Reason.GPU_FAULT: "The GPU failed or was not there: check the node's GPU and its device plugin",
    Reason.STORAGE_FULL: "A volume could not be written: check its free space and its permissions",
    Reason.RESTARTING: "A network or a service failed for a while",
    Reason.PEER_FAILED: "Another process of the run failed, and this one ended with it: look at the other pods' logs",
    Reason.MODEL_ACCESS_DENIED: "Access to model or data set was denied: check the token in the Secret of secretRef",
    Reason.CHECKPOINT_INVALID: "No checkpoint can be resumed from",
    Reason.EVICTED: "The trainer was stopped before its work was done",
    Reason.INTERNAL_ERROR: "The trainer failed unexpectedly: look at its pod's log",
}
