"""B2 to B10, B17, B20: a pod ends before its work is done. Why is reported, and what follows is right."""

import dataclasses
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import pytest
from tests.component.cluster_acts import disrupt, evict, find_node, finish_deletion, lose_node, set_condition
from tests.component.documents import Object, failed
from tests.component.patience import eventually
from tests.component.stage import Stage, node_metadata
from tests.faults.hostile_pods import answer, played_pods, progress
from tests.faults.moments import HELD, Moment
from tests.faults.one_run import SEEN_S, Run, begin
from tests.faults.promises import Kept
from tests.faults.proofs import Proofs
from tests.ports import free_address

from lora_trainer.contract.reasons import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Early:
    """An end that is tried again: its row, what the kubelet writes, and what fills the row's texts."""

    code: int
    message: str = ""
    termination: str = ""
    fill: Mapping[str, Any] = field(default_factory=dict)
    again: str
    last: str


def _says(sentence: str) -> Mapping[str, Any]:
    return {"sentence": sentence}


LOCKED = (
    "the run's folder tone-1 is in use by attempt 1 on tone-old-1-0: this trainer waited 300 s for it and is started "
    "again later"
)
STALLED = "the training reported no progress for 1800 s and was ended: see the stacks in its log"
# From the start of a Job on; on a busy machine its pod runs, and the status says so, after a third of it.
LATE_S = 25
ECC = "CUDA error: uncorrectable ECC error encountered (XID 48) on cuda:0"
EARLY: Mapping[str, Early] = {
    "b5": Early(code=137, termination="OOMKilled", fill={"limit": "8Gi"}, again="B5.again", last="B5.last"),
    "b7-container": Early(
        code=137,
        termination="ContainerStatusUnknown",
        message="The container could not be located when the pod was terminated",
        again="B7.container",
        last="B7.last",
    ),
    "b9": Early(code=72, message=failed(Reason.GPU_FAULT, ECC), fill=_says(ECC), again="B9.again", last="B9.last"),
    "b10": Early(
        code=75, message=failed(Reason.STALLED, STALLED), fill=_says(STALLED), again="B10.again", last="B10.last"
    ),
    "b20": Early(
        code=75, message=failed(Reason.OUTPUT_LOCKED, LOCKED), fill=_says(LOCKED), again="B20.again", last="B20.last"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried:
    """Runs by name and their first pods, which have ended, what there was before, and what was seen then."""

    runs: Mapping[str, Run]
    firsts: Mapping[str, Object]
    before: Mapping[str, Moment]
    seen: Proofs


@pytest.fixture(scope="module")
def retried(shared: Stage) -> Retried:
    """For each early end a run whose first pod ended so; the Job controller retries all of them after a while."""
    runs = {name: begin(shared, name) for name in (*EARLY, "b17-loop")}
    firsts = {name: run.running_pod() for name, run in runs.items()}
    seen = Proofs()
    runs["b17-loop"].change(maxRetries=1)
    before = {name: seen.remember(run) for name, run in runs.items()}
    for name, end in EARLY.items():
        shared.end_pod(firsts[name], end.code, end.message, reason=end.termination, in_s=SEEN_S)
        # Until the next pod is there.
        said = seen.saw(end.again, runs[name], **end.fill)
        assert "{" not in said, "it is the sentence of the summary, not its text"
    shared.end_pod(firsts["b17-loop"], 1, "Traceback (most recent call last):\nValueError: first")
    return Retried(runs=runs, firsts=firsts, before=before, seen=seen)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("b5", marks=pytest.mark.fault("B5.again", "B5.one-job", "B5.ends-well")),
        pytest.param("b7-container", marks=pytest.mark.fault("B7.container", "B7.one-job", "B7.ends-well")),
        pytest.param("b9", marks=pytest.mark.fault("B9.again", "B9.one-job", "B9.ends-well")),
        pytest.param("b10", marks=pytest.mark.fault("B10.again", "B10.one-job", "B10.ends-well")),
        pytest.param("b20", marks=pytest.mark.fault("B20.again", "B20.one-job", "B20.ends-well")),
    ],
)
def test_an_early_end_is_named_counted_by_its_cause_and_tried_again(
    retried: Retried, faults: Proofs, name: str
) -> None:
    """The state names the reason and the sentence; the same Job makes another pod, which can complete the run."""
    end, run = EARLY[name], retried.runs[name]
    row = end.again.partition(".")[0]
    faults.take_over(end.again, retried.seen)
    run.running_pod(other_than=retried.firsts[name])
    run.wait_said("Complete", "after 1 failed pod")
    now = faults.kept(f"{row}.one-job", retried.before[name])
    assert len(now.all_jobs()) == 1
    faults.kept(f"{row}.ends-well", now)
    assert run.status["retries"] == now.finetunes[run.name]["status"]["retries"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("b5", marks=pytest.mark.fault("B5.last")),
        pytest.param("b7-container", marks=pytest.mark.fault("B7.last")),
        pytest.param("b9", marks=pytest.mark.fault("B9.last")),
        pytest.param("b10", marks=pytest.mark.fault("B10.last")),
        pytest.param("b20", marks=pytest.mark.fault("B20.last")),
    ],
)
def test_an_early_end_without_a_retry_left_is_the_verdict(shared: Stage, faults: Proofs, name: str) -> None:
    """With maxRetries 0: the same reason and sentence, with the remedy where there is one, and no second pod."""
    end = EARLY[name]
    run = begin(shared, f"{name}-last", maxRetries=0)
    pod = run.running_pod()
    shared.end_pod(pod, end.code, end.message, reason=end.termination)
    assert "{" not in faults.saw(end.last, run, **end.fill)
    assert run.condition("ArtifactPublished")["status"] == "False"
    assert [pod["metadata"]["uid"]] == run.pods_of_this_moment()


@pytest.mark.fault("B10.stalled")
def test_a_trainer_that_takes_no_step_is_stalled_before_it_ends(stage: Stage, faults: Proofs) -> None:
    """It answers, always the same: the state says so, and that its pod should end itself."""
    stage.start(stallTimeoutSeconds=2)
    run, address = begin(stage, "b10-stands"), free_address()
    with played_pods() as pods:
        # It takes steps until that is seen, as of one that stands still the state is Training for two seconds only.
        steps = count(5)
        pods.play(address, lambda _, writer: answer(_, writer, body=progress(step=next(steps), total_steps=10**6)))
        stage.run_pod(run.pod(), ip=address)
        run.wait_state("Training")
        pods.play(address, partial(answer, body=progress(step=10**5, total_steps=10**6)))
        # On a busy machine it may have been asked so seldom that it seemed to stand still before.
        eventually(lambda: run.status["progress"]["step"] == 10**5, "its last step is in the status")
        faults.saw("B10.stalled", run)
    assert run.status["progress"]["step"] == 10**5


@pytest.mark.fault("B2.evicted", "B2.deleted", "B2.counts", "B2.retries", "B2.one-job", "B2.ends-well", "B2.grace")
def test_pods_that_are_drained_or_deleted_are_replaced_and_use_up_no_retry(shared: Stage, faults: Proofs) -> None:
    """Both get their grace period to save in; even with maxRetries 0 the run goes on in the same Job."""
    drained, deleted = begin(shared, "b2-drained", maxRetries=0), begin(shared, "b2-deleted", maxRetries=0)
    firsts = {run.name: run.running_pod() for run in (drained, deleted)}
    before = faults.remember(drained, deleted)
    evict(shared, firsts["b2-drained"])
    shared.api.delete(shared.path("pods", firsts["b2-deleted"]["metadata"]["name"]))
    faults.saw("B2.evicted", drained)
    faults.saw("B2.deleted", deleted)
    with faults.proving("B2.grace"):
        for run in (drained, deleted):
            (pod,) = run.pods
            assert pod["metadata"]["deletionGracePeriodSeconds"] == 120
            finish_deletion(shared, pod)
    for run in (drained, deleted):
        run.running_pod(other_than=firsts[run.name])
        faults.saw("B2.counts", run)
    faults.kept("B2.ends-well", before)
    faults.kept("B2.retries", before)
    assert len(faults.kept("B2.one-job", before).all_jobs()) == 2


@pytest.mark.fault("B3.scheduler", "B3.counts", "B3.one-job", "B3.retries", "B3.ends-well")
def test_a_run_whose_node_the_scheduler_takes_goes_on_in_the_same_job(shared: Stage, faults: Proofs) -> None:
    """Even with maxRetries 0."""
    said = "default-scheduler: preempting to accommodate a higher priority pod"
    run = begin(shared, "b3-scheduler", maxRetries=0)
    first = run.running_pod()
    before = faults.remember(run)
    disrupt(shared, first, "PreemptionByScheduler", said)
    faults.saw("B3.scheduler", run, sentence=said)
    finish_deletion(shared, first)
    run.running_pod(other_than=first)
    faults.saw("B3.counts", run)
    for name in ("B3.ends-well", "B3.retries", "B3.one-job"):
        faults.kept(name, before)


@pytest.mark.fault("B4")
def test_a_trainer_that_answers_sigterm_with_exit_code_0_has_not_succeeded(shared: Stage, faults: Proofs) -> None:
    """The Job takes it for done. The run is not: there is no summary of a verified adapter."""
    run = begin(shared, "b4")
    pod = run.running_pod()
    evict(shared, pod)
    finish_deletion(shared, pod, 0, "saved, good bye")
    with faults.proving("B4.no-artifact"):
        faults.saw("B4.unknown", run)
        assert "artifact" not in run.status


@pytest.mark.fault("B6.verdict", "B6.silent", "B6.one-job", "B6.no-retry")
def test_a_gpu_with_too_little_memory_ends_the_run_with_the_peak_and_advice(shared: Stage, faults: Proofs) -> None:
    """Exit code 71 comes with the trainer's sentence; nothing is tried again, which would fail again."""
    peak = "a micro-batch of 1 needs more than 23.6 GiB: lower maxSequenceLength, or take quantization NF4"
    run = begin(shared, "b6")
    pod = run.running_pod()
    shared.end_pod(pod, 71, failed(Reason.CUDA_OUT_OF_MEMORY, peak))
    assert faults.saw("B6.verdict", run, sentence=peak) == peak
    silent = begin(shared, "b6-silent")
    shared.end_pod(silent.running_pod(), 71, "torch.OutOfMemoryError: CUDA out of memory")
    faults.saw("B6.silent", silent)
    with faults.proving("B6.no-retry"):
        assert [pod["metadata"]["uid"]] == run.pods_of_this_moment()
        run.wait_retries()
    faults.kept("B6.one-job", faults.remember(run, silent))


@pytest.mark.fault("B9.unfit")
def test_a_gpu_that_is_too_old_for_the_image_ends_the_run_at_once(shared: Stage, faults: Proofs) -> None:
    """No retry would find another image; nor does the advice send anybody to repair the node."""
    said = "the GPU Tesla V100 has compute capability 7.0, and the trainer's image needs 7.5 or more: choose newer GPUs"
    run = begin(shared, "b9-unfit")
    pod = run.running_pod()
    shared.end_pod(pod, 64, failed(Reason.GPU_FAULT, said))
    faults.saw("B9.unfit", run, sentence=said)
    assert [pod["metadata"]["uid"]] == run.pods_of_this_moment()
    assert "GPUFault" not in {one["code"] for one in run.status.get("advice", ())}


@pytest.mark.fault(
    "B7.unreachable", "B7.one-writer", "B7.pods", "B7.retries", "B7.one-job", "B7.ends-well", "B7.advice"
)
def test_a_lost_node_is_named_and_no_second_pod_writes_before_the_first_is_surely_gone(
    stage: Stage, faults: Proofs
) -> None:
    """Silent, then deleted by the taint manager, which nobody confirms; the out-of-service taint lets the run go on."""
    node = f"lost-{uuid.uuid4().hex[:8]}"
    elsewhere = dataclasses.replace(stage, node=node)
    stage.api.post("/api/v1/nodes", {"metadata": node_metadata(node), "spec": {"unschedulable": True}})
    try:
        stage.start()
        run = begin(stage, "b7", maxRetries=0)
        pod = run.pod()
        elsewhere.run_pod(pod)
        run.wait("PodsReady", "True")
        before = faults.remember(run)
        lose_node(stage, pod)
        faults.saw("B7.unreachable", run, node=node)
        assert "out-of-service" not in json.dumps(run.status.get("advice", []))
        lose_node(stage, pod, ago_s=300)
        faults.saw("B7.advice", run)
        faults.kept("B7.pods", before)
        disrupt(stage, pod, "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint")
        run.be_looked_at()
        faults.kept("B7.one-writer", before)
        assert [pod["metadata"]["uid"]] == run.pods_of_this_moment()
        assert run.condition("PodsReady")["reason"] == "NodeUnreachable"
        taint = {"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}
        stage.api.patch(f"/api/v1/nodes/{node}", {"spec": {"taints": [taint]}})
        run.running_pod(other_than=pod)
        run.wait_retries(nodeLost=1)
        faults.kept("B7.one-writer", before)
        faults.kept("B7.one-job", before)
        faults.kept("B7.ends-well", before)
        with faults.proving("B7.retries"):
            assert HELD[Kept.RETRIES](before, faults.remember(run)) == []
    finally:
        stage.api.delete(f"/api/v1/nodes/{node}")


@pytest.mark.fault("B7.pods", "B7.retries")
def test_a_node_that_answers_again_goes_on_with_the_same_pod(shared: Stage, faults: Proofs) -> None:
    """A network that was away for a minute costs nothing."""
    run = begin(shared, "b7-back")
    pod = run.running_pod()
    before = faults.remember(run)
    lose_node(shared, pod)
    run.wait("PodsReady", "False", "NodeUnreachable")
    run.wait_event("NodeUnreachable")
    shared.run_pod(pod)
    run.wait("PodsReady", "True")
    faults.kept("B7.pods", before)
    with faults.proving("B7.retries"):
        assert HELD[Kept.RETRIES](before, faults.remember(run)) == []
        run.wait_retries()


@pytest.mark.fault("B8.nothing", "B8.silent", "B8.back", "B8.pods", "B8.retries", "B8.ends-well")
def test_a_kubelet_that_restarts_costs_nothing(stage: Stage, faults: Proofs) -> None:
    """Its pods are unready until it has looked at them, and if that lasts the node counts as lost: they go on."""
    stage.start()
    run = begin(stage, "b8", maxRetries=0)
    pod = run.running_pod()
    run.wait_told()
    before = faults.remember(run)
    set_condition(
        stage, pod, "Ready", "False", reason="ContainersNotReady", message="containers with unready status: [trainer]"
    )
    run.be_looked_at()
    faults.saw("B8.nothing", since=before)
    lose_node(stage, pod)
    faults.saw("B8.silent", run, node=stage.node)
    find_node(stage, pod)
    faults.saw("B8.back", run)
    for name in ("B8.pods", "B8.retries", "B8.ends-well"):
        faults.kept(name, before)


@pytest.mark.fault("B17.retries")
def test_a_run_whose_every_pod_fails_ends_with_the_last_error(shared: Stage, retried: Retried, faults: Proofs) -> None:
    """maxRetries 1: after the second failure BackoffLimitExceeded, with the end of the log and the count."""
    run = retried.runs["b17-loop"]
    second = run.pod(other_than=retried.firsts["b17-loop"])
    shared.end_pod(second, 1, "Traceback (most recent call last):\nValueError: second")
    faults.saw("B17.retries", run, error="ValueError: second")
    assert len(run.pods) == 2


@pytest.mark.fault("B17.deadline", "B17.grace")
def test_a_run_that_takes_too_long_is_stopped_and_says_so(shared: Stage, faults: Proofs) -> None:
    """The Job's own deadline: the pod gets its grace period, and the verdict names the field."""
    run = begin(shared, "b17-late", activeDeadlineSeconds=LATE_S)
    pod = run.running_pod()
    late = eventually(
        lambda: next((p for p in run.pods if p["metadata"].get("deletionTimestamp")), None), "it is stopped"
    )
    with faults.proving("B17.grace"):
        assert late["metadata"]["deletionGracePeriodSeconds"] == 120
        assert run.condition("Failed")["status"] == "Unknown"
    finish_deletion(shared, pod)
    faults.saw("B17.deadline", run, seconds=str(LATE_S))
