"""A14: admission refuses."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from tests.component.patience import eventually
from tests.component.stage import Stage
from tests.faults.injections import Answer, Rule
from tests.faults.moments import Kept
from tests.faults.one_run import begin
from tests.faults.seen import Sees, kept, remember, saw

from localcluster.api import ApiError
from lora_trainer.spec.reasons import Reason

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


def test_a_policy_that_denies_the_job_is_quoted_and_the_run_begins_when_it_goes(stage: Stage) -> None:
    """The policy's own sentence is in the condition and in a Warning."""
    operator = stage.start()
    rule = "every Job needs the label cost-centre"
    with _policy(stage, "CREATE", "has(object.metadata.labels) && 'cost-centre' in object.metadata.labels", rule):
        run = begin(stage, "a14")
        saw(
            Sees(
                conditions={
                    "Accepted": ("False", Reason.ADMISSION_DENIED),
                    "PodsReady": ("False", Reason.ADMISSION_DENIED),
                },
                says=(rule,),
                event=("Warning", Reason.ADMISSION_DENIED),
            ),
            run,
        )
        assert rule in run.wait_event("AdmissionDenied")
        assert run.jobs == []
        refused = remember(run)
    kept(Kept.BEGINS, refused)
    assert "Traceback" not in operator.text()


@pytest.mark.parametrize("code", [401, 403, 404, 409, 429])
def test_a_webhook_that_denies_the_job_is_quoted_whatever_code_it_chose(stage: Stage, code: int) -> None:
    """It says nothing of the operator's credentials, of a name or of an overload; other runs begin meanwhile."""
    rule = 'admission webhook "costs.example" denied the request: no budget'
    proxy = stage.proxy()
    denial = proxy.add(Rule(fault=Answer(code=code, reason="", message=rule), what="create jobs", about="a14"))
    operator = stage.start(proxy=proxy)
    run = begin(stage, "a14")
    saw(
        Sees(
            conditions={
                "Accepted": ("False", Reason.ADMISSION_DENIED),
                "PodsReady": ("False", Reason.ADMISSION_DENIED),
            },
            says=(rule,),
            event=("Warning", Reason.ADMISSION_DENIED),
        ),
        run,
    )
    begin(stage, "other").running_pod()
    refused = remember(run)
    denial.lift()
    kept(Kept.BEGINS, refused)
    assert "Traceback" not in operator.text()
    assert operator.process.poll() is None


def test_a_policy_that_denies_a_change_of_the_job_is_quoted_and_the_run_goes_on(stage: Stage) -> None:
    """A wish to suspend that cannot be carried out is reported; the pod runs on, and the wish is carried out later."""
    stage.start()
    run = begin(stage, "a14-held")
    run.running_pod()
    before = remember(run)
    rule = "Jobs are not paused in November"
    with _policy(stage, "UPDATE", "!has(object.spec.suspend) || !object.spec.suspend", rule):
        run.change(suspend=True)
        saw(
            Sees(
                conditions={"Accepted": ("False", Reason.ADMISSION_DENIED), "PodsReady": ("True", None)}, says=(rule,)
            ),
            run,
        )
        kept(Kept.PODS, before)
    run.wait("Suspended", "True", "SuspendedByUser")
    run.wait("Accepted", "True")


def test_a_quota_that_denies_the_job_is_quoted_and_the_run_begins_when_it_is_raised(stage: Stage) -> None:
    """count/jobs.batch 0, then 1; what was accepted before stays as it is."""
    quota = stage.path("resourcequotas", "none")
    hard = {"count/jobs.batch": "0"}
    stage.api.post(stage.path("resourcequotas"), {"metadata": {"name": "none"}, "spec": {"hard": hard}})
    eventually(lambda: stage.api.get(quota).get("status", {}).get("hard"), "the quota is in force")
    stage.start()
    run = begin(stage, "a14-quota")
    saw(
        Sees(
            conditions={"Accepted": ("False", Reason.QUOTA_EXCEEDED)},
            says=("exceeded quota: none", "count/jobs.batch=1, used: count/jobs.batch=0"),
            event=("Warning", Reason.QUOTA_EXCEEDED),
        ),
        run,
    )
    refused = remember(run)
    stage.api.patch(quota, {"spec": {"hard": {"count/jobs.batch": "1"}}})
    kept(Kept.BEGINS, refused)
