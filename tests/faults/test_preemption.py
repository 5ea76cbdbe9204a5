"""B3: Kueue takes a run's quota away for a more important workload."""

from tests.component.cluster_acts import finish_deletion
from tests.component.documents import finetune
from tests.component.patience import eventually
from tests.component.stage import Stage, now
from tests.faults.moments import Kept
from tests.faults.one_run import Run
from tests.faults.queue_kind import PREEMPTED, QUEUE, admit, kueue, make_workload, preempt
from tests.faults.seen import Sees, kept, remember, saw

from lora_trainer.spec.reasons import Reason

__all__ = ["kueue"]


def test_a_run_that_kueue_preempts_waits_in_its_queue_and_goes_on(stage: Stage, kueue: None) -> None:
    """Kueue's own sentence is shown; its quota counts as free once the pod has stopped, and no retry is used up."""
    stage.start()
    manifest = finetune("b3", maxRetries=0)
    manifest["metadata"]["labels"] = QUEUE
    stage.api.post(stage.path("lorafinetunes"), manifest)
    run = Run(stage=stage, name="b3")
    job = run.job()
    make_workload(stage, "b3", job)
    admit(stage, "b3", job, admitted=True)
    first = run.running_pod()
    before = remember(run)
    # What comes in the same second, by which the API server tells the time, has cost the run nothing.
    eventually(lambda: "" < run.status.get("activeSince", "") < now(), "it has been active for a second")
    preempt(stage, "b3", job, stopped=False)
    run.wait_state("Preempted")
    assert run.condition("QuotaReserved")["status"] == "True"
    eventually(lambda: run.pods[0]["metadata"].get("deletionTimestamp"), "the pod is stopped")
    finish_deletion(stage, first)
    preempt(stage, "b3", job, stopped=True)
    saw(
        Sees(
            state=Reason.PREEMPTED,
            conditions={"Suspended": ("True", Reason.PREEMPTED), "QuotaReserved": ("False", Reason.PREEMPTED)},
            says=(PREEMPTED,),
            event=("Warning", Reason.PREEMPTED),
            retries={"preempted": 1},
        ),
        run,
    )
    admit(stage, "b3", job, admitted=True)
    run.running_pod(other_than=first)
    for what in (Kept.ENDS_WELL, Kept.RETRIES, Kept.ONE_JOB):
        kept(what, before)
    assert run.status["attempt"] == 1
