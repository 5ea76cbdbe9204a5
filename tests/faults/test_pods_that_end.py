"""B2 to B10, B17, B20: a pod ends before its work is done. Why is reported, and what follows is right."""

import dataclasses
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count

import pytest
from tests.component.cluster_acts import disrupt, evict, find_node, finish_deletion, lose_node, set_condition
from tests.component.documents import Object, failed
from tests.component.patience import eventually
from tests.component.stage import Stage, node_metadata
from tests.faults.hostile_pods import answer, played_pods, progress
from tests.faults.moments import HELD, Kept, Moment
from tests.faults.one_run import SEEN_S, Run, begin
from tests.faults.seen import Sees, kept, remember, saw
from tests.ports import free_address

from lora_trainer.spec.reasons import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Early:
    """An end that is tried again: what the kubelet writes, and what is seen with a retry left and without one."""

    code: int
    message: str = ""
    termination: str = ""
    again: Sees
    last: Sees


def _again(*says: str) -> Sees:
    """A retry in the same Job."""
    return Sees(state=Reason.RESTARTING, says=says, event=("Warning", Reason.RESTARTING), retries={"used": 1})


def _last(reason: Reason, *says: str) -> Sees:
    """The verdict."""
    conditions = {"Failed": ("True", reason), "Complete": ("False", reason)}
    return Sees(conditions=conditions, says=says, event=("Warning", reason))


def _end(code: int, reason: Reason, sentence: str) -> Early:
    """One that the trainer itself reports."""
    return Early(
        code=code,
        message=failed(reason, sentence),
        again=_again(reason.value, sentence),
        last=_last(reason, sentence),
    )


LOCKED = (
    "the run's folder tone-1 is in use by process 7 on tone-old-1-0: this one waited 120 s for it and is tried "
    "again later"
)
STALLED = "the training reported no progress for 1800 s and was ended: see the stacks in its log"
# From the start of a Job on; on a busy machine its pod runs, and the status says so, after a third of it.
LATE_S = 25
ECC = "CUDA error: uncorrectable ECC error encountered (XID 48) on cuda:0"
EARLY: Mapping[str, Early] = {
    "b5": Early(
        code=137,
        termination="OOMKilled",
        again=_again("OOMKilled", "8Gi"),
        last=_last(Reason.OOM_KILLED, "8Gi", "spec.resources.memory"),
    ),
    "b7-container": Early(
        code=137,
        termination="ContainerStatusUnknown",
        message="The container could not be located when the pod was terminated",
        again=_again("NodeLost", "lost the container"),
        last=_last(Reason.NODE_LOST, "lost the container"),
    ),
    "b9": _end(72, Reason.GPU_FAULT, ECC),
    "b10": _end(75, Reason.STALLED, STALLED),
    "b20": _end(75, Reason.OUTPUT_LOCKED, LOCKED),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried:
    """Runs by name and their first pods, which have ended, and what there was before."""

    runs: Mapping[str, Run]
    firsts: Mapping[str, Object]
    before: Mapping[str, Moment]


@pytest.fixture(scope="module")
def retried(shared: Stage) -> Retried:
    """For each early end a run whose first pod ended so; the Job controller retries all of them after a while."""
    runs = {name: begin(shared, name) for name in (*EARLY, "b17-loop")}
    firsts = {name: run.running_pod() for name, run in runs.items()}
    runs["b17-loop"].change(maxRetries=1)
    before = {name: remember(run) for name, run in runs.items()}
    for name, end in EARLY.items():
        shared.end_pod(firsts[name], end.code, end.message, reason=end.termination, in_s=SEEN_S)
        # Until the next pod is there.
        said = saw(end.again, runs[name])
        assert "{" not in said, "it is the sentence of the summary, not its text"
    shared.end_pod(firsts["b17-loop"], 1, "Traceback (most recent call last):\nValueError: first")
    return Retried(runs=runs, firsts=firsts, before=before)


@pytest.mark.parametrize("name", EARLY)
def test_an_early_end_is_named_counted_by_its_cause_and_tried_again(retried: Retried, name: str) -> None:
    """The state names the reason and the sentence; the same Job makes another pod, which can complete the run."""
    run = retried.runs[name]
    run.running_pod(other_than=retried.firsts[name])
    run.wait_said("Complete", "after 1 failed pod")
    now = kept(Kept.ONE_JOB, retried.before[name])
    assert len(now.all_jobs()) == 1
    kept(Kept.ENDS_WELL, now)
    assert run.status["retries"] == now.finetunes[run.name]["status"]["retries"]


@pytest.mark.parametrize("name", EARLY)
def test_an_early_end_without_a_retry_left_is_the_verdict(shared: Stage, name: str) -> None:
    """With maxRetries 0: the same reason and sentence, with the remedy where there is one, and no second pod."""
    end = EARLY[name]
    run = begin(shared, f"{name}-last", maxRetries=0)
    pod = run.running_pod()
    shared.end_pod(pod, end.code, end.message, reason=end.termination)
    assert "{" not in saw(end.last, run)
    assert run.condition("ArtifactPublished")["status"] == "False"
    assert [pod["metadata"]["uid"]] == run.pods_of_this_moment()


def test_a_trainer_that_takes_no_step_is_stalled_before_it_ends(stage: Stage) -> None:
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
        saw(
            Sees(state=Reason.STALLED, says=("no step since", "from its last checkpoint")),
            run,
        )
    assert run.status["progress"]["step"] == 10**5


def test_pods_that_are_drained_or_deleted_are_replaced_and_a_drain_uses_no_retry(shared: Stage) -> None:
    """Both get their grace period to save in, and the run goes on in the same Job: a drained one even with maxRetries
    0, a deleted one with a retry less."""
    drained, deleted = begin(shared, "b2-drained", maxRetries=0), begin(shared, "b2-deleted", maxRetries=1)
    firsts = {run.name: run.running_pod() for run in (drained, deleted)}
    before = remember(drained, deleted)
    evict(shared, firsts["b2-drained"])
    shared.api.delete(shared.path("pods", firsts["b2-deleted"]["metadata"]["name"]))
    saw(Sees(conditions={"PodsReady": ("False", Reason.EVICTED)}, says=("does not count against maxRetries",)), drained)
    saw(
        Sees(
            conditions={"PodsReady": ("False", Reason.RESTARTING)},
            says=("was deleted and is being stopped; a new one follows, and uses a retry",),
        ),
        deleted,
    )
    for run in (drained, deleted):
        (pod,) = run.pods
        assert pod["metadata"]["deletionGracePeriodSeconds"] == 120
        finish_deletion(shared, pod)
    for run, retries in ((drained, {"preempted": 1}), (deleted, {"used": 1})):
        run.running_pod(other_than=firsts[run.name])
        saw(Sees(conditions={"PodsReady": ("True", None)}, retries=retries), run)
    kept(Kept.ENDS_WELL, before)
    assert len(kept(Kept.ONE_JOB, before).all_jobs()) == 2


def test_a_pod_that_is_deleted_with_no_retry_left_is_the_run_s_last(shared: Stage) -> None:
    """The Job counts it; that is said while it stops."""
    run = begin(shared, "b2-last", maxRetries=0)
    pod = run.running_pod()
    shared.api.delete(shared.path("pods", pod["metadata"]["name"]))
    run.wait_said("PodsReady", "no retry is left for a new one")
    finish_deletion(shared, pod)
    saw(_last(Reason.BACKOFF_LIMIT_EXCEEDED, "maxRetries is 0"), run)


def test_a_run_whose_node_the_scheduler_takes_goes_on_in_the_same_job(shared: Stage) -> None:
    """Even with maxRetries 0."""
    said = "default-scheduler: preempting to accommodate a higher priority pod"
    run = begin(shared, "b3-scheduler", maxRetries=0)
    first = run.running_pod()
    before = remember(run)
    disrupt(shared, first, "PreemptionByScheduler", said)
    saw(
        Sees(conditions={"PodsReady": ("False", Reason.EVICTED)}, says=(said, "does not count against maxRetries")),
        run,
    )
    finish_deletion(shared, first)
    run.running_pod(other_than=first)
    saw(Sees(conditions={"PodsReady": ("True", None)}, retries={"preempted": 1}), run)
    for what in (Kept.ENDS_WELL, Kept.RETRIES, Kept.ONE_JOB):
        kept(what, before)


def test_a_trainer_that_answers_sigterm_with_exit_code_0_has_not_succeeded(shared: Stage) -> None:
    """The Job takes it for done. The run is not: there is no summary of a verified adapter."""
    run = begin(shared, "b4")
    pod = run.running_pod()
    evict(shared, pod)
    finish_deletion(shared, pod, 0, "saved, good bye")
    saw(
        Sees(
            conditions={
                "Failed": ("True", Reason.RESULT_UNKNOWN),
                "Complete": ("False", Reason.RESULT_UNKNOWN),
                "ArtifactPublished": ("False", None),
            },
            says=("no summary of a verified adapter", "create a new LoRAFineTune"),
            event=("Warning", Reason.RESULT_UNKNOWN),
        ),
        run,
    )
    assert "artifact" not in run.status


def test_a_gpu_with_too_little_memory_ends_the_run_with_the_peak_and_advice(shared: Stage) -> None:
    """Exit code 71 comes with the trainer's sentence; nothing is tried again, which would fail again."""
    peak = "a micro-batch of 1 needs more than 23.6 GiB: lower maxSequenceLength, or take quantization NF4"
    run = begin(shared, "b6")
    pod = run.running_pod()
    shared.end_pod(pod, 71, failed(Reason.CUDA_OUT_OF_MEMORY, peak))
    assert (
        saw(
            Sees(
                conditions={"Failed": ("True", Reason.CUDA_OUT_OF_MEMORY)},
                says=(peak,),
                event=("Warning", Reason.CUDA_OUT_OF_MEMORY),
            ),
            run,
        )
        == peak
    )
    silent = begin(shared, "b6-silent")
    shared.end_pod(silent.running_pod(), 71, "torch.OutOfMemoryError: CUDA out of memory")
    saw(
        Sees(
            conditions={"Failed": ("True", Reason.CUDA_OUT_OF_MEMORY)},
            says=("torch.OutOfMemoryError", "quantization NF4"),
        ),
        silent,
    )
    assert [pod["metadata"]["uid"]] == run.pods_of_this_moment()
    run.wait_retries()
    kept(Kept.ONE_JOB, remember(run, silent))


def test_a_gpu_that_is_too_old_for_the_image_ends_the_run_at_once(shared: Stage) -> None:
    """No retry would find another image."""
    said = "the GPU Tesla V100 has compute capability 7.0, and the trainer's image needs 7.5 or more: choose newer GPUs"
    run = begin(shared, "b9-unfit")
    pod = run.running_pod()
    shared.end_pod(pod, 64, failed(Reason.GPU_FAULT, said))
    saw(Sees(conditions={"Failed": ("True", Reason.GPU_FAULT)}, says=(said,), event=("Warning", Reason.GPU_FAULT)), run)
    assert [pod["metadata"]["uid"]] == run.pods_of_this_moment()


def test_a_lost_node_is_named_and_no_second_pod_writes_before_the_first_is_surely_gone(stage: Stage) -> None:
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
        before = remember(run)
        lose_node(stage, pod)
        saw(
            Sees(
                conditions={"PodsReady": ("False", Reason.NODE_UNREACHABLE)},
                says=(node, "out-of-service"),
                event=("Warning", Reason.NODE_UNREACHABLE),
            ),
            run,
        )
        kept(Kept.PODS, before)
        disrupt(stage, pod, "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint")
        run.be_looked_at()
        kept(Kept.ONE_WRITER, before)
        assert [pod["metadata"]["uid"]] == run.pods_of_this_moment()
        assert run.condition("PodsReady")["reason"] == "NodeUnreachable"
        taint = {"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}
        stage.api.patch(f"/api/v1/nodes/{node}", {"spec": {"taints": [taint]}})
        run.running_pod(other_than=pod)
        assert "used" not in run.status.get("retries", {})
        kept(Kept.ONE_WRITER, before)
        kept(Kept.ONE_JOB, before)
        kept(Kept.ENDS_WELL, before)
        assert HELD[Kept.RETRIES](before, remember(run)) == []
    finally:
        stage.api.delete(f"/api/v1/nodes/{node}")


def test_a_node_that_answers_again_goes_on_with_the_same_pod(shared: Stage) -> None:
    """A network that was away for a minute costs nothing."""
    run = begin(shared, "b7-back")
    pod = run.running_pod()
    before = remember(run)
    lose_node(shared, pod)
    run.wait("PodsReady", "False", "NodeUnreachable")
    run.wait_event("NodeUnreachable")
    shared.run_pod(pod)
    run.wait("PodsReady", "True")
    kept(Kept.PODS, before)
    assert HELD[Kept.RETRIES](before, remember(run)) == []
    run.wait_retries()


def test_a_kubelet_that_restarts_costs_nothing(stage: Stage) -> None:
    """Its pods are unready until it has looked at them, and if that lasts the node counts as lost: they go on."""
    stage.start()
    run = begin(stage, "b8", maxRetries=0)
    pod = run.running_pod()
    run.wait_told()
    before = remember(run)
    set_condition(
        stage, pod, "Ready", "False", reason="ContainersNotReady", message="containers with unready status: [trainer]"
    )
    run.be_looked_at()
    saw(Sees(nothing=True), since=before)
    lose_node(stage, pod)
    saw(
        Sees(
            conditions={"PodsReady": ("False", Reason.NODE_UNREACHABLE)},
            says=(stage.node, "the run continues when the node is back"),
        ),
        run,
    )
    find_node(stage, pod)
    saw(Sees(conditions={"PodsReady": ("True", None)}, retries={}), run)
    for what in (Kept.PODS, Kept.RETRIES, Kept.ENDS_WELL):
        kept(what, before)


def test_a_run_whose_every_pod_fails_ends_with_the_last_error(shared: Stage, retried: Retried) -> None:
    """maxRetries 1: after the second failure BackoffLimitExceeded, with the end of the log and the count."""
    run = retried.runs["b17-loop"]
    second = run.pod(other_than=retried.firsts["b17-loop"])
    shared.end_pod(second, 1, "Traceback (most recent call last):\nValueError: second")
    saw(
        Sees(
            conditions={"Failed": ("True", Reason.BACKOFF_LIMIT_EXCEEDED)},
            says=("ValueError: second", "the last of 2 failures"),
            event=("Warning", Reason.BACKOFF_LIMIT_EXCEEDED),
            retries={"used": 2},
        ),
        run,
    )
    assert len(run.pods) == 2


def test_a_run_that_takes_too_long_is_stopped_and_says_so(shared: Stage) -> None:
    """The Job's own deadline: the pod gets its grace period, and the verdict names the field."""
    run = begin(shared, "b17-late", activeDeadlineSeconds=LATE_S)
    pod = run.running_pod()
    late = eventually(
        lambda: next((p for p in run.pods if p["metadata"].get("deletionTimestamp")), None), "it is stopped"
    )
    assert late["metadata"]["deletionGracePeriodSeconds"] == 120
    assert run.condition("Failed")["status"] == "Unknown"
    finish_deletion(shared, pod)
    saw(
        Sees(
            conditions={"Failed": ("True", Reason.DEADLINE_EXCEEDED), "ArtifactPublished": ("False", None)},
            says=(f"spec.activeDeadlineSeconds ({LATE_S} s)",),
            event=("Warning", Reason.DEADLINE_EXCEEDED),
            status=("completionTime",),
        ),
        run,
    )
