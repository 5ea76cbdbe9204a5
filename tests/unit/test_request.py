"""What a LoRAFineTune asks of the cluster."""

from typing import Any

import pytest
from tests.unit.builders import UID, make_manifest

from lora_operator.model.request import PodRequest, Policy, read_policy, read_request
from lora_trainer.spec.manifest import RunOptions

OPTIONS = RunOptions(uid=UID)


def problems(**spec: Any) -> list[str]:
    """What is wrong with a resource, a sentence each."""
    request = read_request(make_manifest(spec=spec), OPTIONS)
    assert (request.train is None) == bool(request.problems)
    return [str(problem) for problem in request.problems]


def test_a_minimal_resource_asks_for_the_defaults() -> None:
    """One GPU, three retries, nothing else."""
    request = read_request(make_manifest(), OPTIONS)
    assert (request.pod, request.policy, request.problems) == (PodRequest(), Policy(), ())


BAD = [
    ({"resources": {"gpus": "one"}}, 'spec.resources.gpus is "one"', "whole number"),
    ({"resources": {"cpu": True}}, "spec.resources.cpu is true", 'as in 4 or "500m"'),
    ({"resources": {"cpu": 0}}, 'spec.resources.cpu is "0"', "above 0"),
    ({"resources": {"memory": "16 GB"}}, 'spec.resources.memory is "16 GB"', 'as in "16Gi"'),
    ({"resources": {"gpuResourceName": 7}}, "spec.resources.gpuResourceName is 7", "string"),
    ({"resources": []}, "spec.resources is []", "must be an object"),
    ({"scheduling": 3}, "spec.scheduling is 3", "must be an object"),
    ({"scheduling": {"nodeSelector": {"zone": 1}}}, "spec.scheduling.nodeSelector.zone is 1", 'as in zone: "1"'),
    ({"scheduling": {"tolerations": {}}}, "spec.scheduling.tolerations is {}", "at most 32 tolerations"),
    ({"scheduling": {"tolerations": [1]}}, "spec.scheduling.tolerations is [1]", "at most 32 tolerations"),
    ({"scheduling": {"priorityClassName": ""}}, 'spec.scheduling.priorityClassName is ""', "a PriorityClass"),
    ({"suspend": "yes"}, 'spec.suspend is "yes"', "true or false"),
    ({"maxRetries": 21}, "spec.maxRetries is 21", "from 0 to 20"),
    ({"activeDeadlineSeconds": 0}, "spec.activeDeadlineSeconds is 0", "from 1 to"),
    ({"pendingTimeoutSeconds": 0}, "spec.pendingTimeoutSeconds is 0", "from 1 to"),
    ({"ttlSecondsAfterFinished": -1}, "spec.ttlSecondsAfterFinished is -1", "from 0 to"),
]


@pytest.mark.parametrize(("spec", "field", "rule"), BAD, ids=[field for _, field, _ in BAD])
def test_a_bad_field_gets_one_sentence_with_field_value_and_rule(spec: dict[str, Any], field: str, rule: str) -> None:
    """And only one."""
    (message,) = problems(**spec)
    assert message.startswith((f"{field}: ", f"{field}, which "))
    assert rule in message


def test_all_problems_come_at_once() -> None:
    """Those of the run and those of the cluster."""
    found = problems(lora={"rank": 0}, maxRetries=-1, scheduling={"tolerations": "all"})
    assert len(found) == 3


@pytest.mark.parametrize("value", ["20000000", 20_000_000, "0.5Gi", "2.5G", "16Gi", "1e9", "20000k"])
def test_quantities_of_kubernetes_are_understood(value: object) -> None:
    """As numbers or strings."""
    assert problems(resources={"cpu": value, "memory": value}) == []


def test_tolerations_keep_their_known_keys_only() -> None:
    """An unknown one would make the API server refuse the Job."""
    toleration = {"key": "gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}
    manifest = make_manifest(spec={"scheduling": {"tolerations": [{**toleration, "colour": "red"}]}})
    assert read_request(manifest, OPTIONS).pod.tolerations == (toleration,)


def test_the_fields_that_may_change_are_read_alone() -> None:
    """Of a finished resource nothing else matters, and nothing may fail."""
    policy = read_policy(make_manifest(spec={"ttlSecondsAfterFinished": 5, "maxRetries": "many", "model": None}))
    assert policy == Policy(ttl_s=5)
    assert read_policy({"spec": None}) == Policy()


@pytest.mark.parametrize("amount", ["4", 4, "500m", ".5", "5.", "+4", "1e3", "1E-1", "100000000n", "2Gi", "1E", "3k"])
def test_every_amount_that_kubernetes_reads_is_taken(amount: object) -> None:
    """The API server has let it pass at apply, so the run must not fail for it later."""
    request = read_request(make_manifest(spec={"resources": {"cpu": amount}}), OPTIONS)
    assert (request.problems, request.pod.cpu) == ((), str(amount))


@pytest.mark.parametrize("amount", ["much", "", "0", "0m", "0e3", "-1", "1K", "1ki", "4 Gi", "16GiB", ".", "1e", True])
def test_what_kubernetes_does_not_read_as_an_amount_above_0_is_refused(amount: object) -> None:
    """Each field with a sentence of its own."""
    request = read_request(make_manifest(spec={"resources": {"cpu": amount, "memory": amount}}), OPTIONS)
    assert {problem.path for problem in request.problems} == {"spec.resources.cpu", "spec.resources.memory"}
