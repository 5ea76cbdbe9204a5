"""What docs/operate.md has people paste, on a real API server: its CEL is evaluated there, and its kubectl run."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.component.patience import eventually
from tests.component.stage import Stage
from tests.unit.gitops_page import ARGO_KEY, HEALTH, argo_check, argo_command, flux_check
from tests.unit.reached import ended, every_state

from localcluster.api import ApiError
from lora_operator.decide.states import group_of
from lora_trainer.spec.manifest import API_VERSION, KIND
from lora_trainer.spec.reasons import Reason

Object = dict[str, Any]
# In the order in which Flux asks for them.
ANSWERS = {"inProgress": "InProgress", "failed": "Failed", "current": "Current"}
ADMISSION = "/apis/admissionregistration.k8s.io/v1"
SAYS = "Flux would say "


def policy(name: str, check: Object) -> Object:
    """Refuses each status with what the expressions say of it, among them the name of none that is true.

    They name the object's fields as Flux has them, without the object itself before them.
    """
    said = " : ".join(f"({check[key]}) ? '{answer}'" for key, answer in ANSWERS.items())
    answer = f"[object.status].map(status, {said} : 'none')[0]"
    rule = {
        "apiGroups": ["lora-operator.io"],
        "apiVersions": ["v1alpha1"],
        "resources": ["lorafinetunes/status"],
        "operations": ["UPDATE"],
    }
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "matchConstraints": {"resourceRules": [rule]},
            "validations": [{"expression": "false", "messageExpression": f"'{SAYS}' + {answer}"}],
        },
    }


@pytest.fixture
def flux(stage: Stage) -> Iterator[Stage]:
    """A stage whose API server says of each status what Flux would."""
    name = f"flux-{stage.namespace}"
    here = {"matchLabels": {"kubernetes.io/metadata.name": stage.namespace}}
    binding = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": {
            "policyName": name,
            "validationActions": ["Deny"],
            "matchResources": {"namespaceSelector": here},
        },
    }
    kinds = {"validatingadmissionpolicies": policy(name, flux_check()), "validatingadmissionpolicybindings": binding}
    for plural, document in kinds.items():
        stage.api.post(f"{ADMISSION}/{plural}", document)
    try:
        yield stage
    finally:
        for plural in kinds:
            stage.api.delete(f"{ADMISSION}/{plural}/{name}")


def verdict(stage: Stage, name: str, status: Object) -> str:
    """What Flux would say of a status: first by the generation, then by the expressions. Empty where nobody is asked.

    Raises ApiError for expressions that cannot be evaluated.
    """
    try:
        stored = stage.api.patch(stage.path("lorafinetunes", name, "status") + "?dryRun=All", {"status": status})
    except ApiError as error:
        _, found, answer = str(error).partition(SAYS)
        if not found:
            raise
        stated = status.get("observedGeneration")
        waits = stated not in (None, stage.finetune(name)["metadata"]["generation"])
        return "InProgress" if waits or answer == "none" else answer
    assert stored["kind"] == KIND
    return ""


def test_flux_is_told_how_each_state_is(flux: Stage) -> None:
    """And that what no operator has seen yet goes on."""
    check = flux_check()
    assert (check["apiVersion"], check["kind"]) == (API_VERSION, KIND)
    default = flux.apply()["status"]
    eventually(lambda: verdict(flux, "tone", default), "the API server asks the policy")
    assert verdict(flux, "tone", default) == "InProgress"
    said = {name: (verdict(flux, "tone", status), group_of(status)) for name, status in every_state()}
    expected = {name: (HEALTH[group][1], group) for name, (_, group) in said.items() if group is not None}
    assert said == expected
    unseen = {**ended(Reason.OOM_KILLED), "observedGeneration": 2}
    assert verdict(flux, "tone", unseen) == "InProgress"


def test_the_check_for_argo_cd_goes_in_beside_what_is_there(stage: Stage) -> None:
    """As pasted, once and again, and it stays when the rest is applied anew, from the client's or the server's side."""
    metadata = {"name": "argocd-cm", "labels": {"app.kubernetes.io/part-of": "argocd"}}
    theirs = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"url": "https://argo.example"}}
    here = f"--namespace={stage.namespace}"
    arguments, patch = argo_command()
    at = arguments.index("--namespace")
    assert arguments[at + 1] == "argocd"
    arguments[at : at + 2] = [here]
    for way in ((), ("--server-side",)):
        stage.cluster.kubectl("apply", here, *way, "--filename=-", stdin=json.dumps(theirs))
        for _ in range(2):
            stage.cluster.kubectl(*arguments, stdin=patch)
        stage.cluster.kubectl("apply", here, *way, "--filename=-", stdin=json.dumps(theirs))
        kept = stage.api.get(stage.path("configmaps", "argocd-cm"))
        assert kept["data"] == {"url": "https://argo.example", ARGO_KEY: argo_check()}
        assert kept["metadata"]["labels"] == metadata["labels"]
        stage.api.delete(stage.path("configmaps", "argocd-cm"))
