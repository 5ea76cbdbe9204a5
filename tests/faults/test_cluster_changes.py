"""A14 and A17: admission refuses, and the operator is of another release."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.component.cluster_acts import finish_deletion
from tests.component.documents import Object, succeeded
from tests.component.patience import eventually
from tests.component.stage import Stage
from tests.faults.earlier import restore, take_from_history
from tests.faults.injections import Answer, Rule
from tests.faults.one_run import Run, begin
from tests.faults.proofs import Proofs
from tests.unit.reports import make_report

from localcluster.api import ApiError
from lora_operator.views.names import PREFLIGHT

POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
# What both releases know: to the earlier one the definition's default Auto is ConfigInvalid.
OF_BOTH = {"quantization": "None"}
BINDINGS = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"


@contextmanager
def _policy(stage: Stage, operation: str, expression: str, message: str) -> Iterator[None]:
    """A ValidatingAdmissionPolicy on the Jobs of this namespace; in force once entered."""
    name = f"jobs-{uuid.uuid4().hex[:8]}"
    rule = {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": [operation], "resources": ["jobs"]}
    validations = [{"expression": expression, "message": message}]
    spec = {"matchConstraints": {"resourceRules": [rule]}, "validations": validations, "failurePolicy": "Fail"}
    selector = {"matchLabels": {"kubernetes.io/metadata.name": stage.namespace}}
    binding = {"policyName": name, "validationActions": ["Deny"], "matchResources": {"namespaceSelector": selector}}
    stage.api.post(POLICIES, {"metadata": {"name": name}, "spec": spec})
    stage.api.post(BINDINGS, {"metadata": {"name": name}, "spec": binding})
    try:
        probe = _denies_creation if operation == "CREATE" else _denies_change
        eventually(partial(probe, stage), "the policy is in force")
        yield
    finally:
        stage.api.delete(f"{BINDINGS}/{name}")
        stage.api.delete(f"{POLICIES}/{name}")


def _denies_creation(stage: Stage) -> bool:
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "probe"}]}}
    try:
        stage.api.post(
            stage.path("jobs") + "?dryRun=All", {"metadata": {"name": "probe"}, "spec": {"template": template}}
        )
    except ApiError as error:
        return error.status == 422
    return False


def _denies_change(stage: Stage) -> bool:
    name = stage.objects("jobs")[0]["metadata"]["name"]
    try:
        stage.api.patch(stage.path("jobs", name) + "?dryRun=All", {"spec": {"suspend": True}})
    except ApiError as error:
        return error.status == 422
    return False


@pytest.mark.fault("A14.policy", "A14.begins")
def test_a_policy_that_denies_the_job_is_quoted_and_the_run_begins_when_it_goes(stage: Stage, faults: Proofs) -> None:
    """The policy's own sentence is in the condition and in a Warning."""
    operator = stage.start()
    rule = "every Job needs the label cost-centre"
    with _policy(stage, "CREATE", "has(object.metadata.labels) && 'cost-centre' in object.metadata.labels", rule):
        run = begin(stage, "a14")
        faults.saw("A14.policy", run, rule=rule)
        assert rule in run.wait_event("AdmissionDenied")
        assert run.jobs == []
        refused = faults.remember(run)
    faults.kept("A14.begins", refused)
    assert "Traceback" not in operator.text()


@pytest.mark.fault("A14.policy", "A14.begins")
@pytest.mark.parametrize("code", [401, 403, 404, 409, 429])
def test_a_webhook_that_denies_the_job_is_quoted_whatever_code_it_chose(
    stage: Stage, faults: Proofs, code: int
) -> None:
    """It says nothing of the operator's credentials, of a name or of an overload; other runs begin meanwhile."""
    rule = 'admission webhook "costs.example" denied the request: no budget'
    proxy = stage.proxy()
    denial = proxy.add(Rule(fault=Answer(code=code, reason="", message=rule), what="create jobs", about="a14"))
    operator = stage.start(proxy=proxy)
    run = begin(stage, "a14")
    faults.saw("A14.policy", run, rule=rule)
    begin(stage, "other").running_pod()
    refused = faults.remember(run)
    denial.lift()
    faults.kept("A14.begins", refused)
    assert "Traceback" not in operator.text()
    assert operator.process.poll() is None


@pytest.mark.fault("A14.change", "A14.pods")
def test_a_policy_that_denies_a_change_of_the_job_is_quoted_and_the_run_goes_on(stage: Stage, faults: Proofs) -> None:
    """A wish to suspend that cannot be carried out is reported; the pod runs on, and the wish is carried out later."""
    stage.start()
    run = begin(stage, "a14-held")
    run.running_pod()
    before = faults.remember(run)
    rule = "Jobs are not paused in November"
    with _policy(stage, "UPDATE", "!has(object.spec.suspend) || !object.spec.suspend", rule):
        run.change(suspend=True)
        faults.saw("A14.change", run, rule=rule)
        faults.kept("A14.pods", before)
    run.wait("Suspended", "True", "SuspendedByUser")
    run.wait("Accepted", "True")


@pytest.mark.fault("A14.quota", "A14.begins")
def test_a_quota_that_denies_the_job_is_quoted_and_the_run_begins_when_it_is_raised(
    stage: Stage, faults: Proofs
) -> None:
    """count/jobs.batch 0, then 1; what was accepted before stays as it is."""
    quota = stage.path("resourcequotas", "none")
    hard = {"count/jobs.batch": "0"}
    stage.api.post(stage.path("resourcequotas"), {"metadata": {"name": "none"}, "spec": {"hard": hard}})
    eventually(lambda: stage.api.get(quota).get("status", {}).get("hard"), "the quota is in force")
    stage.start()
    run = begin(stage, "a14-quota")
    faults.saw("A14.quota", run, quota="none")
    refused = faults.remember(run)
    stage.api.patch(quota, {"spec": {"hard": {"count/jobs.batch": "1"}}})
    faults.kept("A14.begins", refused)


@pytest.mark.fault(
    "A17.nothing", "A17.pods", "A17.jobs", "A17.verdict", "A17.retries", "A17.one-job", "A17.ends-well", "A17.back"
)
@pytest.mark.parametrize("back", [False, True], ids=["upgrade", "rollback"])
def test_an_operator_of_another_release_takes_the_runs_over_and_ends_them(
    stage: Stage, tmp_path: Path, faults: Proofs, back: bool
) -> None:
    """Running, retried, deleted once, suspended, on two nodes and ended: begun by the one, and ended by the other."""
    old = take_from_history(tmp_path / "earlier").start()
    present: dict[str, Any] = {}
    first, second = (present, old) if back else (old, present)
    operator = stage.start(**first)
    begun = _begin_in_every_state(stage)
    for run in begun:
        run.wait_told()
    before = faults.remember(*begun)
    assert operator.stop() == 0
    stage.start(**second)
    for run in begun:
        run.be_looked_at()
    for name in ("A17.pods", "A17.jobs", "A17.retries"):
        faults.kept(name, before)
    faults.saw("A17.nothing", since=before)
    suspended = next(run for run in begun if run.name == "suspended")
    suspended.change(suspend=False)
    suspended.running_pod()
    with faults.proving("A17.back"):
        faults.kept("A17.ends-well", before)
        faults.kept("A17.verdict", before)
        now = faults.kept("A17.one-job", before)
    assert {name: len(jobs) for name, jobs in now.jobs.items()} == {run.name: 1 for run in begun}
    late = begin(stage, "late", **OF_BOTH)
    late.running_pod()
    faults.kept("A17.ends-well", faults.remember(late))


def _begin_in_every_state(stage: Stage) -> list[Run]:
    """Runs of the operator that works now, each in a state of its own."""
    specs: dict[str, Any] = {"running": {}, "retried": {}, "deleted": {}, "ended": {}}
    specs |= {"nodes": {"resources": {"nodes": 2}}, "suspended": {"suspend": True}}
    runs = {name: begin(stage, name, **OF_BOTH, **spec) for name, spec in specs.items()}
    lost = runs["retried"].running_pod()
    stage.end_pod(lost, 137, reason="OOMKilled")
    job = runs["deleted"].job()["metadata"]["name"]
    runs["deleted"].wait("Accepted", "True")
    stage.api.delete(stage.path("jobs", job) + "?propagationPolicy=Background")
    runs["deleted"].job(2)
    pods = eventually(lambda: runs["nodes"].pods if len(runs["nodes"].pods) == 2 else None, "both nodes have a pod")
    for number, pod in enumerate(pods):
        stage.run_pod(pod, ip=f"127.82.17.{number + 1}")
    for name in ("running", "ended"):
        runs[name].running_pod()
    runs["deleted"].running_pod()
    runs["retried"].running_pod(other_than=lost)
    runs["retried"].wait_retries(outOfMemory=1)
    stage.end_pod(runs["ended"].pod(), 0, succeeded())
    runs["ended"].wait("Complete", "True", "Succeeded")
    runs["suspended"].wait("Suspended", "True", "SuspendedByUser")
    runs["nodes"].wait("PodsReady", "True")
    eventually(lambda: runs["deleted"].status.get("attempt") == 2, "the second attempt is in the status")
    return [*runs.values()]


@pytest.mark.fault("A17.recorded")
def test_the_runs_that_a_release_before_left_are_taken_over_as_they_are(stage: Stage, faults: Proofs) -> None:
    """Running, on several nodes, in a second attempt, retried, suspended and finished: no Job or pod is touched."""
    runs = restore(stage)
    first = runs["retried"].pod()
    stage.end_pod(first, 137, reason="OOMKilled")
    eventually(lambda: len(runs["nodes"].pods) == 2, "both nodes have a pod")
    for number, name in enumerate(("running", "again", "nodes")):
        for pod in runs[name].pods:
            stage.run_pod(pod, ip=f"127.82.17.{number + 1}")
    stage.end_pod(runs["done"].pod(), 0, succeeded())
    stage.run_pod(runs["retried"].pod(other_than=first))
    before, finished = _jobs_and_pods(runs), runs["done"].status
    stage.start()
    for name in ("running", "again", "nodes", "retried"):
        runs[name].wait("PodsReady", "True")
        eventually(partial(_counts_time, runs[name]), f"the time of {name} counts from now on")
    runs["retried"].wait_retries(outOfMemory=1)
    for run in runs.values():
        run.be_looked_at()
    with faults.proving("A17.recorded"):
        assert _jobs_and_pods(runs) == before
    assert (runs["again"].status["attempt"], runs["running"].status["progress"]["checkpointStep"]) == (2, 100)
    assert runs["suspended"].condition("Suspended")["reason"] == "SuspendedByUser"
    assert _undated(runs["done"].status) == _undated(finished)
    (pod,) = runs["running"].pods
    stage.end_pod(pod, 0, succeeded())
    runs["running"].wait("Complete", "True", "Succeeded")
    runs["suspended"].change(suspend=False)
    runs["suspended"].running_pod()
    assert len(runs["suspended"].jobs) == 1


@pytest.mark.parametrize("back", [False, True], ids=["upgrade", "rollback"])
def test_a_run_that_does_not_train_yet_is_taken_over_by_another_release(
    stage: Stage, tmp_path: Path, back: bool
) -> None:
    """Its model and data were being fetched, or it was being looked at: it comes to one training Job, and ends well."""
    old = take_from_history(tmp_path / "earlier").start()
    operator = stage.start() if back else stage.start(**old, cacheClaim="models")
    role = PREFLIGHT if back else "prepare"
    run = begin(stage, "early", preflight="Run", **OF_BOTH)
    before = stage.wait_pod(stage.wait_job(stage=role))
    stage.run_pod(before)
    run.wait_state("Preflight" if back else "Preparing")
    assert operator.stop() == 0
    stage.start(**(old if back else {"cacheClaim": "models"}))
    if not back:
        path = stage.path("pods", before["metadata"]["name"])
        eventually(lambda: "deletionTimestamp" in stage.api.get(path)["metadata"], "the old Job is stopped")
        finish_deletion(stage, before)
        looking = stage.wait_pod(stage.wait_job(stage=PREFLIGHT))
        assert stage.jobs_of("prepare") == []
        stage.run_pod(looking)
        stage.end_pod(looking, 0, make_report().to_message())
    pod = run.running_pod()
    assert len(run.jobs) == 1
    stage.end_pod(pod, 0, succeeded())
    run.wait("Complete", "True", "Succeeded")
    assert len(run.jobs) == 1


def _jobs_and_pods(runs: dict[str, Run]) -> dict[str, Any]:
    """What must not change: the Jobs' own words, and which pods there are and that none is stopped."""
    jobs = {
        (name, job["metadata"]["uid"]): (job["metadata"].get("annotations"), job["spec"])
        for name, run in runs.items()
        for job in run.jobs
    }
    pods = {p["metadata"]["uid"]: p["metadata"].get("deletionTimestamp") for run in runs.values() for p in run.pods}
    return {"jobs": jobs, "pods": pods}


def _counts_time(run: Run) -> bool:
    return "activeSince" in run.status


def _undated(status: Object) -> Object:
    conditions = [{**condition, "observedGeneration": 0} for condition in status["conditions"]]
    return {**status, "observedGeneration": 0, "conditions": conditions}
