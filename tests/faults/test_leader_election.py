"""Two operators at once: with a Lease one of them works, without one they do the same and do it once."""

from collections import Counter
from typing import Any

import pytest
from tests.component.documents import succeeded
from tests.component.operator_process import OperatorProcess
from tests.component.patience import eventually
from tests.component.stage import Stage
from tests.faults.injections import Delay, Hold, Rule

from lora_operator.running.self_check import LEASE_RIGHTS, RIGHTS
from lora_operator.views.names import ATTEMPT_LABEL, NAME_LABEL

TAKE_OVER_S = 20.0
# Short, as these tests are about who leads and not about how long a Lease lasts; long enough for a busy machine.
SHORT = {"leaseDurationSeconds": 6, "renewDeadlineSeconds": 5, "retryPeriodSeconds": 0.3}
RUNS = 6


def start_candidate(stage: Stage, **changes: Any) -> OperatorProcess:
    """An operator that takes part in the election, ready to work or to stand by."""
    rights = (*RIGHTS, *LEASE_RIGHTS)
    return stage.start(rights=rights, leaderElection=True, leaseNamespace=stage.namespace, **(SHORT | changes))


def leads(operator: OperatorProcess) -> bool:
    """Whether it says so in its metrics."""
    return operator.metric("lora_operator_leader") == 1.0


def start_pair(stage: Stage) -> tuple[OperatorProcess, OperatorProcess]:
    """The leader and the one that stands by."""
    first = start_candidate(stage)
    eventually(lambda: leads(first), "the first leads")
    return first, start_candidate(stage)


def lease(stage: Stage) -> dict[str, Any]:
    """What the Lease says."""
    spec: dict[str, Any] = stage.api.get(lease_path(stage))["spec"]
    return spec


def lease_path(stage: Stage) -> str:
    return f"/apis/coordination.k8s.io/v1/namespaces/{stage.namespace}/leases/lora-operator"


@pytest.mark.fault("A10")
def test_of_two_operators_one_leads_and_the_other_takes_over_when_it_is_killed(stage: Stage) -> None:
    """The standby is ready and writes nothing; after SIGKILL it makes the Job that the first could not."""
    first, second = start_pair(stage)
    # It has asked for its rights, and each such question is a create request.
    asked = second.writes()
    stage.apply("before")
    stage.wait_condition("Accepted", status="True", name="before")
    assert (leads(first), leads(second), second.get("/readyz")[0]) == (True, False, 200)
    assert second.writes() == asked
    assert not [series for series in second.metrics() if series.startswith("lorafinetune_info")]
    first.kill()
    stage.apply("after")
    eventually(lambda: leads(second), "the second leads", deadline_s=TAKE_OVER_S)
    stage.wait_condition("Accepted", status="True", name="after")
    assert [job["metadata"]["labels"][NAME_LABEL] for job in stage.objects("jobs")].count("before") == 1
    assert lease(stage)["leaseTransitions"] == 1


@pytest.mark.fault("A10")
def test_a_leader_that_is_told_to_stop_hands_over_without_waiting_for_the_lease_to_end(stage: Stage) -> None:
    """SIGTERM gives the Lease back, so that a Lease of an hour does not hold an upgrade up."""
    first = start_candidate(stage, leaseDurationSeconds=3600)
    eventually(lambda: leads(first), "the first leads")
    second = start_candidate(stage, leaseDurationSeconds=3600)
    stage.apply()
    stage.wait_condition("Accepted", status="True")
    assert first.stop() == 0
    assert "released the Lease" in first.text()
    eventually(lambda: leads(second), "the second leads", deadline_s=TAKE_OVER_S)
    pod = stage.wait_pod(stage.wait_job())
    stage.run_pod(pod)
    stage.end_pod(pod, 0, succeeded())
    stage.wait_condition("Complete", status="True")
    assert len(stage.objects("jobs")) == 1


@pytest.mark.fault("A10")
def test_an_operator_that_is_told_to_stop_finishes_what_it_has_begun_and_gives_the_lease_back_last(
    stage: Stage,
) -> None:
    """SIGTERM in the middle of a write: the Job, the status that tells of it, the Event, and only then the Lease."""
    proxy = stage.proxy()
    operator = start_candidate(stage, proxy=proxy)
    eventually(lambda: leads(operator), "it leads")
    proxy.add(Rule(fault=Delay(seconds=3), what="create jobs"))
    stage.apply()
    eventually(lambda: proxy.made("create jobs"), "the Job is on its way")
    assert stage.objects("jobs") == []
    assert operator.stop() == 0
    assert len(stage.objects("jobs")) == 1
    assert stage.condition("Accepted")["status"] == "True"
    assert lease(stage)["holderIdentity"] == ""
    calls = [call.what for call in proxy.calls if call.mutates]
    order = ["create jobs", "update lorafinetunes/status", "create events", "update leases"]
    assert sorted(order, key=lambda what: len(calls) - calls[::-1].index(what)) == order


@pytest.mark.fault("A11")
def test_a_leader_whose_renewals_hang_ends_and_the_other_takes_over(stage: Stage) -> None:
    """The network swallows them: the process ends with a sentence before the Lease has run out."""
    proxy = stage.proxy()
    first = start_candidate(stage, proxy=proxy)
    eventually(lambda: leads(first), "the first leads")
    second = start_candidate(stage)
    proxy.add(Rule(fault=Hold(answered=False), what="update leases"))
    assert first.process.wait(timeout=60) == 1
    assert f"The Lease {stage.namespace}/lora-operator could not be renewed for 5 s" in first.text()
    assert "Traceback" not in first.text()
    eventually(lambda: leads(second), "the second leads", deadline_s=TAKE_OVER_S)
    stage.apply()
    stage.wait_condition("Accepted", status="True")


@pytest.mark.fault("A11")
def test_a_leader_whose_lease_another_has_taken_ends(stage: Stage) -> None:
    """Whoever stands in the Lease leads, however it came there."""
    operator = start_candidate(stage)
    eventually(lambda: leads(operator), "it leads")
    stage.api.patch(lease_path(stage), {"spec": {"holderIdentity": "somebody-else"}})
    assert operator.process.wait(timeout=60) == 1
    assert "is held by somebody-else now" in operator.text()
    assert lease(stage)["holderIdentity"] == "somebody-else"


@pytest.mark.fault("A10")
def test_two_operators_without_leader_election_start_no_run_twice_and_come_to_rest(stage: Stage) -> None:
    """The same names and the same answers: one Job for each attempt, and both stop writing."""
    both = [stage.start(), stage.start()]
    for number in range(RUNS):
        stage.apply(f"run-{number}")
    for number in range(RUNS):
        stage.wait_condition("Accepted", status="True", name=f"run-{number}")
    pods = eventually(lambda: found if len(found := stage.objects("pods")) == RUNS else None, "all have a pod")
    for pod in pods:
        stage.run_pod(pod)
    for number in range(RUNS):
        stage.wait_condition("PodsReady", status="True", name=f"run-{number}")
    ends, loses_its_job, *_ = pods
    stage.end_pod(ends, 0, succeeded())
    stage.wait_condition("Complete", status="True", name=ends["metadata"]["labels"][NAME_LABEL])
    (owner,) = loses_its_job["metadata"]["ownerReferences"]
    stage.api.delete(stage.path("jobs", owner["name"]) + "?propagationPolicy=Background")
    stage.end_pod(loses_its_job, 143)
    stage.wait_job(attempt=2)
    rest(both)
    attempts = Counter(
        (job["metadata"]["labels"][NAME_LABEL], job["metadata"]["labels"][ATTEMPT_LABEL])
        for job in stage.objects("jobs")
    )
    assert set(attempts.values()) == {1}
    assert {name for name, _ in attempts} == {f"run-{number}" for number in range(RUNS)}
    assert all(operator.metric('lora_operator_reconcile_total{result="error"}') == 0.0 for operator in both)


def rest(operators: list[OperatorProcess]) -> None:
    """Wait until neither writes while both look again and again."""
    looks = 'lora_operator_reconcile_total{result="success"}'

    def settled() -> bool:
        writes = [operator.writes() for operator in operators]
        wanted = [operator.metric(looks) + RUNS for operator in operators]
        eventually(
            lambda: all(one.metric(looks) >= looked for one, looked in zip(operators, wanted, strict=True)),
            "both look again",
        )
        return [operator.writes() for operator in operators] == writes

    eventually(settled, "both write nothing more")
