"""A14 and A17: admission refuses, and the operator is of another release."""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from tests.component.documents import Object, succeeded
from tests.component.patience import eventually
from tests.component.stage import Stage
from tests.faults.earlier import restore
from tests.faults.one_run import Run, begin

from localcluster.api import ApiError

POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
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


@pytest.mark.fault("A14")
def test_a_policy_that_denies_the_job_is_quoted_and_the_run_begins_when_it_goes(stage: Stage) -> None:
    """The policy's own sentence is in the condition and in a Warning."""
    operator = stage.start()
    rule = "every Job needs the label cost-centre"
    with _policy(stage, "CREATE", "has(object.metadata.labels) && 'cost-centre' in object.metadata.labels", rule):
        run = begin(stage, "a14")
        refused = run.wait("Accepted", "False", "AdmissionDenied")
        assert rule in refused["message"]
        assert rule in run.wait_event("AdmissionDenied")
        assert run.condition("PodsReady")["reason"] == "AdmissionDenied"
        assert run.jobs == []
    run.wait("Accepted", "True")
    run.running_pod()
    assert "Traceback" not in operator.text()


@pytest.mark.fault("A14")
def test_a_policy_that_denies_a_change_of_the_job_is_quoted_and_the_run_goes_on(stage: Stage) -> None:
    """A wish to suspend that cannot be carried out is told; the pod runs on, and the wish is carried out later."""
    stage.start()
    run = begin(stage, "a14-held")
    pod = run.running_pod()
    rule = "Jobs are not paused in November"
    with _policy(stage, "UPDATE", "!has(object.spec.suspend) || !object.spec.suspend", rule):
        run.change(suspend=True)
        refused = run.wait("Accepted", "False", "AdmissionDenied")
        assert rule in refused["message"]
        assert run.condition("PodsReady")["status"] == "True"
        assert [pod["metadata"]["uid"]] == run.pods_of_this_moment()
        assert not run.pods[0]["metadata"].get("deletionTimestamp")
    run.wait("Suspended", "True", "SuspendedByUser")
    run.wait("Accepted", "True")


@pytest.mark.fault("A14")
def test_a_quota_that_denies_the_job_is_quoted_and_the_run_begins_when_it_is_raised(stage: Stage) -> None:
    """count/jobs.batch 0, then 1; what was accepted before stays as it is."""
    quota = stage.path("resourcequotas", "none")
    hard = {"count/jobs.batch": "0"}
    stage.api.post(stage.path("resourcequotas"), {"metadata": {"name": "none"}, "spec": {"hard": hard}})
    eventually(lambda: stage.api.get(quota).get("status", {}).get("hard"), "the quota is in force")
    stage.start()
    run = begin(stage, "a14-quota")
    assert "count/jobs.batch=1, used: count/jobs.batch=0" in run.wait("Accepted", "False", "QuotaExceeded")["message"]
    assert "have it raised" in run.wait_event("QuotaExceeded")
    stage.api.patch(quota, {"spec": {"hard": {"count/jobs.batch": "1"}}})
    run.running_pod()
    assert run.condition("Accepted")["status"] == "True"
    assert run.status["attempt"] == 1


@pytest.mark.fault("A17")
def test_the_runs_that_the_release_before_left_are_taken_over_as_they_are(stage: Stage) -> None:
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


@pytest.mark.fault("A17")
def test_the_release_before_finds_what_this_one_makes(stage: Stage) -> None:
    """A rollback: the names, labels and annotations of its Jobs are there, in a configuration of the same version."""
    recorded = restore(stage)["nodes"]
    stage.start()
    run = begin(stage, "now", resources={"nodes": 2})
    run.wait("Accepted", "True")
    for plural in ("services", "jobs"):
        (theirs,), (ours,) = recorded.children(plural), run.children(plural)
        for key in ("labels", "annotations"):
            assert theirs["metadata"].get(key, {}).keys() <= ours["metadata"].get(key, {}).keys()
        assert theirs["metadata"]["name"].count("-") == ours["metadata"]["name"].count("-")
        assert theirs["metadata"]["ownerReferences"][0].keys() == ours["metadata"]["ownerReferences"][0].keys()
    (theirs,) = recorded.children("configmaps")
    template = run.children("jobs")[0]["spec"]["template"]
    ours = json.loads(template["metadata"]["annotations"]["lora-operator.io/config"])
    assert json.loads(theirs["data"]["config.json"])["version"] == ours["version"]


def _jobs_and_pods(runs: dict[str, Run]) -> dict[str, Any]:
    """What must not change: the Jobs' own words, and which pods there are and that none is told to stop."""
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
