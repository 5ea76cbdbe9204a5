"""Two operators at once: the one that holds the Lease works."""

import signal
from typing import Any

import yaml
from tests.component.documents import succeeded
from tests.component.operator_process import OperatorProcess
from tests.component.patience import eventually
from tests.component.stage import REPOSITORY, Stage
from tests.faults.injections import Hold, Rule
from tests.faults.moments import Kept
from tests.faults.one_run import begin
from tests.faults.seen import Sees, kept, remember, saw

CHART = yaml.safe_load((REPOSITORY / "helm/lora-finetune-operator/values.yaml").read_text())["config"]
# What the promise of the time rests on.
CHARTS_OWN = {key: CHART[key] for key in ("leaseDurationSeconds", "renewDeadlineSeconds", "retryPeriodSeconds")}
# Short, as these tests are about who leads and not about how long a Lease lasts.
SHORT = {"leaseDurationSeconds": 6, "renewDeadlineSeconds": 5, "retryPeriodSeconds": 0.3}
# For a leader that must not lose its Lease, however long a busy machine lets it wait for an answer.
LONG = {"leaseDurationSeconds": 3600, "renewDeadlineSeconds": 600}


def start_candidate(stage: Stage, **changes: Any) -> OperatorProcess:
    """An operator that is ready to work or to stand by."""
    return stage.start(**(SHORT | changes))


def leads(operator: OperatorProcess) -> bool:
    """Whether it says so in its metrics."""
    return operator.metric("lora_operator_leader") == 1.0


def start_pair(stage: Stage, **changes: Any) -> tuple[OperatorProcess, OperatorProcess]:
    """The leader and the one that stands by."""
    first = start_candidate(stage, **changes)
    eventually(lambda: leads(first), "the first leads")
    return first, start_candidate(stage, **changes)


def lease(stage: Stage) -> dict[str, Any]:
    """What the Lease says."""
    spec: dict[str, Any] = stage.api.get(lease_path(stage))["spec"]
    return spec


def lease_path(stage: Stage) -> str:
    return f"/apis/coordination.k8s.io/v1/namespaces/{stage.namespace}/leases/lora-operator"


def test_of_two_operators_one_leads_and_the_other_takes_over_when_it_is_killed(stage: Stage) -> None:
    """The standby is ready and writes nothing; after SIGKILL it makes the Job that the first could not."""
    first, second = start_pair(stage, **CHARTS_OWN)
    # It has asked for its rights, and each such question is a create request.
    asked = second.writes()
    before = begin(stage, "before")
    before.wait("Accepted", "True")
    assert (leads(first), leads(second), second.get("/readyz")[0]) == (True, False, 200)
    assert second.writes() == asked
    assert not [series for series in second.metrics() if series.startswith("lorafinetune_info")]
    standing_by = remember(before)
    first.kill()
    after = begin(stage, "after")
    saw(Sees(metric="lora_operator_leader", within_s=20), since=standing_by)
    after.wait("Accepted", "True")
    assert len(kept(Kept.ONE_JOB, remember(before, after)).all_jobs()) == 2
    assert lease(stage)["leaseTransitions"] == 1


def test_a_leader_that_is_stopped_hands_over_without_waiting_for_the_lease_to_end(stage: Stage) -> None:
    """SIGTERM gives the Lease back, so that a Lease of an hour does not hold an upgrade up."""
    first, second = start_pair(stage, **LONG)
    stage.apply()
    stage.wait_condition("Accepted", status="True")
    assert first.stop() == 0
    assert "released the Lease" in first.text()
    eventually(lambda: leads(second), "the second leads")
    pod = stage.wait_pod(stage.wait_job())
    stage.run_pod(pod)
    stage.end_pod(pod, 0, succeeded())
    stage.wait_condition("Complete", status="True")
    assert len(stage.objects("jobs")) == 1


def test_an_operator_that_is_stopped_finishes_what_it_has_begun_and_gives_the_lease_back_last(stage: Stage) -> None:
    """SIGTERM in the middle of a write: the Job is made, and only then the Lease is free; the next one goes on."""
    proxy = stage.proxy()
    operator = start_candidate(stage, proxy=proxy, **LONG)
    eventually(lambda: leads(operator), "it leads")
    proxy.add(Rule(fault=Hold(answered=False), what="create jobs"))
    run = begin(stage, "tone")
    eventually(lambda: proxy.held, "the Job is on its way")
    assert run.jobs == []
    operator.process.send_signal(signal.SIGTERM)
    eventually(lambda: "stopping" in operator.text(), "it is about to end")
    proxy.let_go()
    assert operator.end_by_itself() == 0
    (job,) = run.jobs
    assert lease(stage)["holderIdentity"] == ""
    assert [call.what for call in proxy.calls if call.mutates][-1] == "update leases"
    start_candidate(stage, **LONG)
    run.wait("Accepted", "True")
    assert [other["metadata"]["uid"] for other in run.jobs] == [job["metadata"]["uid"]]


def test_a_leader_whose_renewals_hang_ends_and_the_other_takes_over(stage: Stage) -> None:
    """The network swallows them: the process ends with a sentence before the Lease has run out."""
    proxy = stage.proxy()
    first = start_candidate(stage, proxy=proxy)
    eventually(lambda: leads(first), "the first leads")
    made = begin(stage, "made")
    made.wait("Accepted", "True")
    # It waits as long as the first one's Lease says.
    second = start_candidate(stage, **LONG)
    before = remember(made)
    proxy.add(Rule(fault=Hold(answered=False), what="update leases"))
    assert first.end_by_itself() == 1
    eventually(lambda: leads(second), "the second leads")
    saw(
        Sees(log=(f"The Lease {stage.namespace}/lora-operator could not be renewed for 5 s",)),
        since=before,
        text=first.text(),
    )
    assert "Traceback" not in first.text()
    begun = begin(stage, "begun")
    kept(Kept.BEGINS, remember(begun))
    kept(Kept.JOBS, before)
    kept(Kept.ONE_JOB, remember(made, begun))


def test_a_leader_whose_lease_another_has_taken_ends(stage: Stage) -> None:
    """Whoever stands in the Lease leads, however it came there."""
    operator = start_candidate(stage, **LONG)
    eventually(lambda: leads(operator), "it leads")
    run = begin(stage, "taken")
    stage.api.patch(lease_path(stage), {"spec": {"holderIdentity": "somebody-else"}})
    assert operator.end_by_itself() == 1
    saw(Sees(log=("is held by somebody-else now",)), run)
    assert lease(stage)["holderIdentity"] == "somebody-else"


def test_a_leader_that_was_frozen_and_goes_on_changes_nothing_any_more(stage: Stage) -> None:
    """SIGSTOP for longer than the Lease: what it slept over is done by the other one, and is not done again by it."""
    first, second = start_pair(stage, **CHARTS_OWN)
    lost = begin(stage, "lost")
    lost.wait("PodsReady", "False", "VolumeNotReady")
    first.process.send_signal(signal.SIGSTOP)
    try:
        stage.api.delete(stage.path("jobs", lost.job()["metadata"]["name"]) + "?propagationPolicy=Background")
        begun = begin(stage, "begun")
        eventually(lambda: leads(second), "the second leads")
        lost.job(2)
        kept(Kept.BEGINS, remember(begun))
        lost.wait_event("JobRecreated")
        before = remember(lost, begun)
    finally:
        first.process.send_signal(signal.SIGCONT)
    assert first.end_by_itself() == 1
    assert leads(second)
    saw(Sees(log=(f"The Lease {stage.namespace}/lora-operator ",)), since=before, text=first.text())
    lost.be_looked_at()
    begun.be_looked_at()
    kept(Kept.JOBS, before)
    kept(Kept.ONE_JOB, before)
    assert lost.status["attempt"] == 2


def test_a_container_that_restarts_in_its_pod_takes_its_own_lease_at_once(stage: Stage) -> None:
    """After SIGKILL nobody gives the Lease back, which would last an hour; one in another pod waits for its end."""
    first = start_candidate(stage, **LONG)
    eventually(lambda: leads(first), "the first leads")
    standby = start_candidate(stage, **LONG)
    first.kill()
    run = begin(stage, "restarted")
    again = start_candidate(stage, **LONG)
    assert (again.pod, standby.pod) == (first.pod, "operator-1")
    eventually(lambda: leads(again), "the one that was started again leads")
    run.wait("Accepted", "True")
    assert lease(stage)["leaseTransitions"] == 0
    assert not leads(standby)
