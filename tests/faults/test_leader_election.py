"""Two operators at once: the one that holds the Lease works."""

import signal
from typing import Any

import pytest
import yaml
from tests.component.documents import succeeded
from tests.component.operator_process import OperatorProcess
from tests.component.patience import eventually
from tests.component.stage import REPOSITORY, Stage
from tests.faults.injections import Hold, Rule
from tests.faults.one_run import begin
from tests.faults.proofs import Proofs

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


@pytest.mark.fault("A10.standby", "A10.take-over", "A10.one-job")
def test_of_two_operators_one_leads_and_the_other_takes_over_when_it_is_killed(stage: Stage, faults: Proofs) -> None:
    """The standby is ready and writes nothing; after SIGKILL it makes the Job that the first could not."""
    first, second = start_pair(stage, **CHARTS_OWN)
    # It has asked for its rights, and each such question is a create request.
    asked = second.writes()
    before = begin(stage, "before")
    before.wait("Accepted", "True")
    with faults.proving("A10.standby"):
        assert (leads(first), leads(second), second.get("/readyz")[0]) == (True, False, 200)
        assert second.writes() == asked
        assert not [series for series in second.metrics() if series.startswith("lorafinetune_info")]
    standing_by = faults.remember(before)
    first.kill()
    after = begin(stage, "after")
    faults.saw("A10.take-over", since=standing_by)
    after.wait("Accepted", "True")
    assert len(faults.kept("A10.one-job", faults.remember(before, after)).all_jobs()) == 2
    assert lease(stage)["leaseTransitions"] == 1


@pytest.mark.fault("A10.hand-over")
def test_a_leader_that_is_stopped_hands_over_without_waiting_for_the_lease_to_end(stage: Stage, faults: Proofs) -> None:
    """SIGTERM gives the Lease back, so that a Lease of an hour does not hold an upgrade up."""
    first, second = start_pair(stage, **LONG)
    stage.apply()
    stage.wait_condition("Accepted", status="True")
    with faults.proving("A10.hand-over"):
        assert first.stop() == 0
        assert "released the Lease" in first.text()
        eventually(lambda: leads(second), "the second leads")
    pod = stage.wait_pod(stage.wait_job())
    stage.run_pod(pod)
    stage.end_pod(pod, 0, succeeded())
    stage.wait_condition("Complete", status="True")
    assert len(stage.objects("jobs")) == 1


@pytest.mark.fault("A10.hand-over")
def test_an_operator_that_is_stopped_finishes_what_it_has_begun_and_gives_the_lease_back_last(
    stage: Stage, faults: Proofs
) -> None:
    """SIGTERM in the middle of a write: the Job is made, and only then the Lease is free; the next one goes on."""
    proxy = stage.proxy()
    operator = start_candidate(stage, proxy=proxy, **LONG)
    eventually(lambda: leads(operator), "it leads")
    proxy.add(Rule(fault=Hold(answered=False), what="create jobs"))
    run = begin(stage, "tone")
    eventually(lambda: proxy.held, "the Job is on its way")
    assert run.jobs == []
    with faults.proving("A10.hand-over"):
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


@pytest.mark.fault("A11.ends", "A11.exit", "A11.jobs", "A11.one-job", "A11.begins")
def test_a_leader_whose_renewals_hang_ends_and_the_other_takes_over(stage: Stage, faults: Proofs) -> None:
    """The network swallows them: the process ends with a sentence before the Lease has run out."""
    proxy = stage.proxy()
    first = start_candidate(stage, proxy=proxy)
    eventually(lambda: leads(first), "the first leads")
    made = begin(stage, "made")
    made.wait("Accepted", "True")
    # It waits as long as the first one's Lease says.
    second = start_candidate(stage, **LONG)
    before = faults.remember(made)
    proxy.add(Rule(fault=Hold(answered=False), what="update leases"))
    with faults.proving("A11.exit"):
        assert first.end_by_itself() == 1
        eventually(lambda: leads(second), "the second leads")
    faults.saw("A11.ends", since=before, text=first.text(), lease=f"{stage.namespace}/lora-operator")
    assert "Traceback" not in first.text()
    begun = begin(stage, "begun")
    faults.kept("A11.begins", faults.remember(begun))
    faults.kept("A11.jobs", before)
    faults.kept("A11.one-job", faults.remember(made, begun))


@pytest.mark.fault("A11.taken")
def test_a_leader_whose_lease_another_has_taken_ends(stage: Stage, faults: Proofs) -> None:
    """Whoever stands in the Lease leads, however it came there."""
    operator = start_candidate(stage, **LONG)
    eventually(lambda: leads(operator), "it leads")
    run = begin(stage, "taken")
    stage.api.patch(lease_path(stage), {"spec": {"holderIdentity": "somebody-else"}})
    assert operator.end_by_itself() == 1
    faults.saw("A11.taken", run, holder="somebody-else")
    assert lease(stage)["holderIdentity"] == "somebody-else"


@pytest.mark.fault("A11.frozen", "A11.exit", "A11.jobs", "A11.one-job", "A11.begins")
def test_a_leader_that_was_frozen_and_goes_on_changes_nothing_any_more(stage: Stage, faults: Proofs) -> None:
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
        faults.kept("A11.begins", faults.remember(begun))
        lost.wait_event("JobRecreated")
        before = faults.remember(lost, begun)
    finally:
        first.process.send_signal(signal.SIGCONT)
    with faults.proving("A11.exit"):
        assert first.end_by_itself() == 1
        assert leads(second)
    faults.saw("A11.frozen", since=before, text=first.text(), lease=f"{stage.namespace}/lora-operator")
    lost.be_looked_at()
    begun.be_looked_at()
    faults.kept("A11.jobs", before)
    faults.kept("A11.one-job", before)
    assert lost.status["attempt"] == 2


@pytest.mark.fault("A10.restart")
def test_a_container_that_restarts_in_its_pod_takes_its_own_lease_at_once(stage: Stage, faults: Proofs) -> None:
    """After SIGKILL nobody gives the Lease back, which would last an hour; one in another pod waits for its end."""
    first = start_candidate(stage, **LONG)
    eventually(lambda: leads(first), "the first leads")
    standby = start_candidate(stage, **LONG)
    first.kill()
    run = begin(stage, "restarted")
    again = start_candidate(stage, **LONG)
    with faults.proving("A10.restart"):
        assert (again.pod, standby.pod) == (first.pod, "operator-1")
        eventually(lambda: leads(again), "the one that was started again leads")
        run.wait("Accepted", "True")
        assert lease(stage)["leaseTransitions"] == 0
        assert not leads(standby)
