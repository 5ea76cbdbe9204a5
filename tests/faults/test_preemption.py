"""B3: Kueue takes a run's quota away for a more important workload."""

import pytest
from tests.component.cluster_acts import finish_deletion
from tests.component.documents import finetune
from tests.component.patience import eventually
from tests.component.stage import Stage, now
from tests.faults.one_run import Run
from tests.faults.proofs import Proofs
from tests.faults.queue_kind import PREEMPTED, QUEUE, admit, kueue, make_workload, preempt

__all__ = ["kueue"]


@pytest.mark.fault("B3.preempted", "B3.one-job", "B3.retries", "B3.ends-well")
def test_a_run_that_kueue_preempts_waits_in_its_queue_and_goes_on(stage: Stage, kueue: None, faults: Proofs) -> None:
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
    before = faults.remember(run)
    # What comes in the same second, by which the API server tells the time, has cost the run nothing.
    eventually(lambda: "" < run.status.get("activeSince", "") < now(), "it has been active for a second")
    preempt(stage, "b3", job, stopped=False)
    run.wait_state("Preempted")
    assert run.condition("QuotaReserved")["status"] == "True"
    eventually(lambda: run.pods[0]["metadata"].get("deletionTimestamp"), "the pod is stopped")
    finish_deletion(stage, first)
    preempt(stage, "b3", job, stopped=True)
    faults.saw("B3.preempted", run, sentence=PREEMPTED)
    admit(stage, "b3", job, admitted=True)
    run.running_pod(other_than=first)
    for name in ("B3.ends-well", "B3.retries", "B3.one-job"):
        faults.kept(name, before)
    assert run.status["attempt"] == 1
