"""The cache of base models: the preflight fills it before the training pod exists; a second run fetches no weights."""

import json
from collections.abc import Iterator

import pytest
from tests.e2e.conftest import Installed
from tests.e2e.support import CLAIM, condition, finetune, rows, status, verdict, wait_end

from hub.deploy import NAMESPACE as HUB
from localcluster.client import Client
from lora_operator.model.names import place_of

CACHE = {**CLAIM, "metadata": {"name": "model-cache"}}
_PREFLIGHT = "--selector=lora-operator.io/role=preflight"


@pytest.fixture
def with_cache(installed: Installed) -> Iterator[Installed]:
    """The operator configured to keep base models on a claim of each namespace."""
    installed.upgrade("--set=defaults.cacheClaim=model-cache")
    yield installed
    installed.upgrade()


def _weight_bytes(client: Client) -> int:
    """Bytes of weights that the stand-in for the Hub has served since it started."""
    served = json.loads(client.kubectl("get", f"--raw=/api/v1/namespaces/{HUB}/services/hub:80/proxy/-/served"))
    return sum(counts["bytes"] for path, counts in served.items() if path.endswith(".safetensors"))


def test_a_second_run_trains_without_downloading_weights(with_cache: Installed, namespace: str) -> None:
    """The first run's preflight fetches the model once; the second one's finds it, and both train from the claim."""
    client = with_cache.client
    client.apply(CLAIM, CACHE, rows(), namespace=namespace)
    before = _weight_bytes(client)
    fetched = []
    for name in ("first", "second"):
        client.apply(finetune(name, preflight="Run"), namespace=namespace)
        assert verdict(wait_end(client, namespace, name))[:2] == ("True", "Succeeded")
        assert condition(client, namespace, name, "PreflightPassed")["status"] == "True"
        fetched.append(_weight_bytes(client) - before)
    assert fetched[0] > 100_000, "the first run fetched the weights"
    assert fetched[1] == fetched[0], "the second run fetched none"
    jobs = client.get("jobs", _PREFLIGHT, f"--namespace={namespace}")["items"]
    assert len(jobs) == 2
    for job in jobs:
        limits = job["spec"]["template"]["spec"]["containers"][0]["resources"].get("limits", {})
        assert "nvidia.com/gpu" not in limits


def test_a_missing_model_ends_the_run_before_a_training_pod_exists(with_cache: Installed, namespace: str) -> None:
    """The preflight's sentence is the run's verdict; no training Job was made, so no GPU was asked for."""
    client = with_cache.client
    client.apply(CLAIM, CACHE, rows(), namespace=namespace)
    client.apply(finetune("nobody", model={"uri": "hf://nobody/no-such-model"}, preflight="Run"), namespace=namespace)
    complete, reason, message = verdict(wait_end(client, namespace, "nobody"))
    assert (complete, reason) == ("False", "ModelNotFound")
    assert "nobody/no-such-model" in message
    jobs = client.get("jobs", f"--namespace={namespace}")["items"]
    assert [place_of(job["metadata"]["name"])[1] for job in jobs] == ["preflight"]
    assert not status(client, namespace, "nobody").get("jobName")
