"""B2, B4 to B7, B9, B10, B17, B20: a pod ends before its work is done. Why is told, and what follows is right."""

import dataclasses
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from tests.component.cluster_acts import disrupt, evict, finish_deletion, lose_node
from tests.component.documents import Object, failed, succeeded
from tests.component.patience import eventually
from tests.component.stage import Stage
from tests.faults.one_run import Run, begin

from lora_trainer.contract.reasons import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Early:
    """An end that is tried again: what the kubelet writes, the reason, what the user reads, and what is counted."""

    code: int
    reason: Reason
    says: str
    message: str = ""
    termination: str = ""
    counts: str = "error"


LOCKED = "pod tone-old-1-0 still writes to pvc://adapters/tone: it was waited for 300 s"
STALLED = "no step in 1800 s: the process is stopped, the checkpoint of step 40 is kept"
ECC = "CUDA error: uncorrectable ECC error encountered (XID 48) on cuda:0"
EARLY: Mapping[str, Early] = {
    "b5": Early(code=137, termination="OOMKilled", reason=Reason.OOM_KILLED, says="8Gi", counts="outOfMemory"),
    "b7-container": Early(
        code=137,
        termination="ContainerStatusUnknown",
        message="The container could not be located when the pod was terminated",
        reason=Reason.NODE_LOST,
        says="lost the container",
        counts="nodeLost",
    ),
    "b9": Early(code=72, message=failed(Reason.GPU_FAULT, ECC), reason=Reason.GPU_FAULT, says="XID 48"),
    "b10": Early(code=75, message=failed(Reason.STALLED, STALLED), reason=Reason.STALLED, says="no step in 1800 s"),
    "b20": Early(code=75, message=failed(Reason.OUTPUT_LOCKED, LOCKED), reason=Reason.OUTPUT_LOCKED, says=LOCKED),
}


@pytest.fixture(scope="module")
def retried(shared: Stage) -> Mapping[str, tuple[Run, Object]]:
    """For each early end a run whose first pod ended so, all at once: the Job controller retries after 10 s."""
    runs = {name: begin(shared, name) for name in (*EARLY, "b17-loop")}
    firsts = {name: run.pod() for name, run in runs.items()}
    for name, pod in firsts.items():
        shared.run_pod(pod)
        runs[name].wait("PodsReady", "True")
    runs["b17-loop"].change(maxRetries=1)
    for name, end in EARLY.items():
        shared.end_pod(firsts[name], end.code, end.message, reason=end.termination)
    shared.end_pod(firsts["b17-loop"], 1, "Traceback (most recent call last):\nValueError: first")
    return {name: (runs[name], firsts[name]) for name in runs}


@pytest.mark.fault("B5", "B7", "B9", "B10", "B20")
@pytest.mark.parametrize("name", EARLY)
def test_an_early_end_is_named_counted_by_its_cause_and_tried_again(
    shared: Stage, retried: Mapping[str, tuple[Run, Object]], name: str
) -> None:
    """The state names the reason and the sentence; the same Job makes another pod, which can complete the run."""
    end, (run, first) = EARLY[name], retried[name]
    told = run.wait_event("Restarting")
    assert end.reason.value in told
    assert end.says in told
    assert "{" not in told, "it is the sentence of the summary, not its text"
    run.wait_retries(**{end.counts: 1})
    second = run.running_pod(other_than=first)
    assert len(run.jobs) == 1
    assert end.reason.value in run.wait_told("Complete", "after 1 failed pod")
    shared.end_pod(second, 0, succeeded())
    run.wait("Complete", "True", "Succeeded")
    run.wait_retries(**{end.counts: 1})


@pytest.mark.fault("B5", "B7", "B9", "B10", "B20")
@pytest.mark.parametrize("name", EARLY)
def test_an_early_end_without_a_retry_left_is_the_verdict(shared: Stage, name: str) -> None:
    """With maxRetries 0: the same reason and sentence, with the remedy where there is one, and no second pod."""
    end = EARLY[name]
    run = begin(shared, f"{name}-last", maxRetries=0)
    pod = run.running_pod()
    shared.end_pod(pod, end.code, end.message, reason=end.termination)
    verdict = run.wait("Failed", "True", end.reason.value)
    assert end.says in verdict["message"]
    assert "{" not in verdict["message"]
    assert run.condition("Complete")["status"] == "False"
    assert run.condition("ArtifactPublished")["status"] == "False"
    assert [pod["metadata"]["uid"]] == run.pods_of_this_moment()
    if name == "b5":
        assert "spec.resources.memory" in verdict["message"]
    if name == "b9":
        assert end.says in run.wait_event("GPUFault")


@pytest.mark.fault("B2")
def test_pods_that_are_drained_or_deleted_are_replaced_and_use_up_no_retry(shared: Stage) -> None:
    """Both get their grace period to save in; even with maxRetries 0 the run goes on in the same Job."""
    drained, deleted = begin(shared, "b2-drained", maxRetries=0), begin(shared, "b2-deleted", maxRetries=0)
    firsts = {run.name: run.running_pod() for run in (drained, deleted)}
    evict(shared, firsts["b2-drained"])
    shared.api.delete(shared.path("pods", firsts["b2-deleted"]["metadata"]["name"]))
    told = drained.wait("PodsReady", "False", "Evicted")["message"]
    assert "does not count against maxRetries" in told
    deleted.wait("PodsReady", "False")
    for run in (drained, deleted):
        (pod,) = run.pods
        assert pod["metadata"]["deletionGracePeriodSeconds"] == 120
        finish_deletion(shared, pod)
    for run in (drained, deleted):
        second = run.running_pod(other_than=firsts[run.name])
        run.wait_retries(preempted=1)
        (job,) = run.jobs
        assert job["status"].get("failed", 0) == 0
        shared.end_pod(second, 0, succeeded())
        run.wait("Complete", "True")


@pytest.mark.fault("B4")
def test_a_trainer_that_answers_sigterm_with_exit_code_0_has_not_succeeded(shared: Stage) -> None:
    """The Job takes it for done. The run is not: there is no summary of a verified adapter."""
    run = begin(shared, "b4")
    pod = run.running_pod()
    evict(shared, pod)
    finish_deletion(shared, pod, 0, "saved, good bye")
    verdict = run.wait("Failed", "True", "ResultUnknown")
    assert "no summary of a verified adapter" in verdict["message"]
    assert "create a new LoRAFineTune" in verdict["message"]
    assert run.condition("Complete")["status"] == "False"
    assert run.condition("ArtifactPublished")["status"] == "False"
    assert "artifact" not in run.status


@pytest.mark.fault("B6")
def test_a_gpu_with_too_little_memory_ends_the_run_with_the_peak_and_advice(shared: Stage) -> None:
    """Exit code 71 comes with the trainer's sentence; nothing is tried again, which would fail again."""
    peak = "a micro-batch of 1 needs more than 23.6 GiB: lower maxSequenceLength, or take quantization NF4"
    run = begin(shared, "b6")
    pod = run.running_pod()
    shared.end_pod(pod, 71, failed(Reason.CUDA_OUT_OF_MEMORY, peak))
    assert run.wait("Failed", "True", "CUDAOutOfMemory")["message"] == peak
    assert [pod["metadata"]["uid"]] == run.pods_of_this_moment()
    run.wait_retries()
    silent = begin(shared, "b6-silent")
    shared.end_pod(silent.running_pod(), 71, "torch.OutOfMemoryError: CUDA out of memory")
    told = silent.wait("Failed", "True", "CUDAOutOfMemory")["message"]
    assert "torch.OutOfMemoryError" in told
    assert "quantization NF4" in told


@pytest.mark.fault("B7")
def test_a_lost_node_is_named_and_no_second_pod_writes_before_the_first_is_surely_gone(shared: Stage) -> None:
    """Silent, then deleted by the taint manager, which nobody confirms; the out-of-service taint lets the run go on."""
    node = f"lost-{uuid.uuid4().hex[:8]}"
    elsewhere = dataclasses.replace(shared, node=node)
    shared.api.post("/api/v1/nodes", {"metadata": {"name": node}, "spec": {"unschedulable": True}})
    try:
        run = begin(shared, "b7", maxRetries=0)
        pod = run.pod()
        elsewhere.run_pod(pod)
        run.wait("PodsReady", "True")
        lose_node(shared, pod)
        told = run.wait("PodsReady", "False", "NodeUnreachable")["message"]
        assert node in told
        assert "out-of-service" in told
        disrupt(shared, pod, "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint")
        run.be_looked_at()
        assert [pod["metadata"]["uid"]] == run.pods_of_this_moment()
        assert run.condition("PodsReady")["reason"] == "NodeUnreachable"
        taint = {"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}
        shared.api.patch(f"/api/v1/nodes/{node}", {"spec": {"taints": [taint]}})
        second = run.running_pod(other_than=pod)
        run.wait_retries(nodeLost=1)
        shared.end_pod(second, 0, succeeded())
        run.wait("Complete", "True")
    finally:
        shared.api.delete(f"/api/v1/nodes/{node}")


@pytest.mark.fault("B7")
def test_a_node_that_answers_again_goes_on_with_the_same_pod(shared: Stage) -> None:
    """A network that was away for a minute costs nothing."""
    run = begin(shared, "b7-back")
    pod = run.running_pod()
    lose_node(shared, pod)
    run.wait("PodsReady", "False", "NodeUnreachable")
    run.wait_event("NodeUnreachable")
    shared.run_pod(pod)
    run.wait("PodsReady", "True")
    assert [pod["metadata"]["uid"]] == run.pods_of_this_moment()
    run.wait_retries()


@pytest.mark.fault("B17")
def test_a_run_whose_every_pod_fails_ends_with_the_last_error(
    shared: Stage, retried: Mapping[str, tuple[Run, Object]]
) -> None:
    """maxRetries 1: after the second failure BackoffLimitExceeded, with the end of the log and the count."""
    run, first = retried["b17-loop"]
    second = run.pod(other_than=first)
    shared.end_pod(second, 1, "Traceback (most recent call last):\nValueError: second")
    verdict = run.wait("Failed", "True", "BackoffLimitExceeded")
    assert "ValueError: second" in verdict["message"]
    assert "the last of 2 failures" in verdict["message"]
    run.wait_retries(error=2)
    assert len(run.pods) == 2


@pytest.mark.fault("B17")
def test_a_run_that_takes_too_long_is_stopped_and_says_so(shared: Stage) -> None:
    """The Job's own deadline: the pod gets its grace period, and the verdict names the field."""
    run = begin(shared, "b17-late", activeDeadlineSeconds=8)
    pod = run.running_pod()
    late = eventually(lambda: next((p for p in run.pods if p["metadata"].get("deletionTimestamp")), None), "it is told")
    assert late["metadata"]["deletionGracePeriodSeconds"] == 120
    assert run.condition("Failed")["status"] == "Unknown"
    finish_deletion(shared, pod)
    verdict = run.wait("Failed", "True", "DeadlineExceeded")
    assert "spec.activeDeadlineSeconds (8 s)" in verdict["message"]
    assert run.status["completionTime"]
    assert run.condition("ArtifactPublished")["status"] == "False"
