"""What is to be done about an object that the API server refuses. The texts are those of Kubernetes 1.34."""

import pytest

from lora_operator.decide.trouble import classify_refusal
from lora_trainer.spec.reasons import Reason


def test_a_limit_range_is_reported_with_the_field_that_can_keep_it() -> None:
    """Its rule says what is too much or too little, and not where that was asked for: a preflight has no field."""
    for rule in ("maximum memory usage per Container is 1Gi, but limit is 8Gi", "minimum cpu usage per Pod is 2, but"):
        _, remedy = classify_refusal(rule)
        for word in ("spec.resources", "LimitRange", "config.preflightCPU", "config.preflightMemory"):
            assert word in remedy


@pytest.mark.parametrize(
    "rule",
    [
        "maximum cpu usage per Pod is 8.  No limit is specified",
        "cpu max limit to request ratio per Container is 2, but no limit is specified or limit is 0",
        "[maximum ephemeral-storage usage per Pod is 9Gi.  No limit is specified, and another rule]",
    ],
)
def test_a_limit_range_on_limits_that_pods_do_not_have_is_not_met_by_a_field(rule: str) -> None:
    """Whatever a new run asks for, its pods would be refused as well."""
    reason, remedy = classify_refusal(f'pods "x" is forbidden: {rule}')
    assert reason is Reason.ADMISSION_DENIED
    assert "no limit on CPU or ephemeral storage" in remedy
    assert "LimitRange set a default" in remedy
    assert "spec.resources" not in remedy


def test_a_limit_range_that_refuses_for_two_reasons_gets_both_remedies() -> None:
    """The API server lists them in one sentence, in either order."""
    rules = [
        "maximum cpu usage per Pod is 4.  No limit is specified",
        "maximum memory usage per Pod is 8Gi, but limit is 9",
    ]
    for listed in (rules, rules[::-1]):
        _, remedy = classify_refusal(f'pods "x" is forbidden: [{", ".join(listed)}]')
        assert "LimitRange set a default" in remedy
        assert "spec.resources" in remedy


def test_a_quota_on_what_pods_do_not_state_is_reported_with_what_makes_them_state_it() -> None:
    """To free some of it, or to wait, would be in vain: the alert on quota would come after a day."""
    _, remedy = classify_refusal('pods "x" is forbidden: failed quota: team: must specify limits.cpu for: trainer')
    assert "LimitRange" in remedy
    assert "requests" in remedy
    assert "free some" not in remedy


def test_a_security_context_constraint_is_granted_to_the_account_of_the_pods() -> None:
    """OpenShift has an answer of its own to who may run as which user."""
    _, remedy = classify_refusal('pods "x" is forbidden: unable to validate against any security context constraint')
    assert "oc adm policy add-scc-to-user nonroot-v2 -z default -n NAMESPACE" in remedy
    assert "trainer.serviceAccountName" in remedy


@pytest.mark.parametrize("resource", ["cpu", "memory", "ephemeral-storage"])
def test_a_default_limit_below_the_request_is_reported_with_both_ends(resource: str) -> None:
    """The API server names neither the LimitRange that set the limit nor who asked for more."""
    said = f'Pod "x" is invalid: spec.containers[0].resources.requests: must be less than or equal to {resource} limit'
    _, remedy = classify_refusal(f"{said} of 500m")
    for word in ("LimitRange", "spec.resources", "config.preflightCPU"):
        assert word in remedy


REFUSALS = {
    'pods "x" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1': "QuotaExceeded",
    'pods "x" is forbidden: failed quota: team: must specify limits.cpu for: trainer': "AdmissionDenied",
    'pods "x" is forbidden: failed quota: q: must specify limits.cpu for: x; limits.memory for: x': "AdmissionDenied",
    'pods "x" is forbidden: violates PodSecurity "restricted:latest": seccompProfile': "PodSecurityViolation",
    'jobs.batch is forbidden: User "system:serviceaccount:a:b" cannot create resource "jobs" in API group': "Forbidden",
    'pods "x" is forbidden: maximum memory usage per Container is 1Gi, but limit is 8Gi': "AdmissionDenied",
    'pods "x" is forbidden: no PriorityClass with name training-low was found': "AdmissionDenied",
    'error looking up service account team-a/lora-trainer: serviceaccount "lora-trainer" not found': "AdmissionDenied",
    'pods "x" is forbidden: unable to validate against any security context constraint: [provider "anyuid": Forbidden: '
    "not usable by user or serviceaccount, provider restricted-v2: .containers[0].runAsUser: Invalid value: 10001: "
    "must be in the ranges: [1000680000, 1000689999]]": "PodSecurityViolation",
    'Pod "x" is invalid: spec.containers[0].resources.requests: Invalid value: "1": must be less than or equal to cpu '
    "limit of 500m": "AdmissionDenied",
    "unable to create new content in namespace a because it is being terminated": "AdmissionDenied",
}


@pytest.mark.parametrize("message", REFUSALS)
def test_a_refusal_is_classified_by_its_text(message: str) -> None:
    """The API server has one code for all of them: 403."""
    reason, remedy = classify_refusal(message)
    assert reason.value == REFUSALS[message]
    assert remedy
