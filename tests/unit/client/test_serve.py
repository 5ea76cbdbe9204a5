"""What the manifests of `serve` need beside what the run tells: words that vLLM splits, a user, a place to write."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.client.resources import finished, resource

from lora_client.views.serving import manifests, notes
from lora_trainer.contract.serving import HONOURS_PATTERNS

ROOT = Path(__file__).parents[3]
Object = dict[str, Any]


def pod_of(run: Object, kind: str = "vllm") -> Object:
    """The pod that a server runs in."""
    spec = manifests(run, kind)[0]["spec"]
    pod: Object = spec["predictor"] if kind == "kserve" else spec["template"]["spec"]
    return pod


def test_a_path_that_vllm_would_split_is_given_as_json() -> None:
    """`name=path` is for one equals sign and no comma."""
    status = finished()
    status["artifact"]["uri"] = "pvc://adapters/lr=1e-4/tone"
    arguments = pod_of(resource(status=status))["containers"][0]["args"]
    given = arguments[arguments.index("--lora-modules") + 1]
    assert json.loads(given) == {"name": "tone", "path": "/adapters/lr=1e-4/tone"}


@pytest.mark.parametrize("kind", ["vllm", "kserve"])
def test_a_server_satisfies_the_restricted_standard(kind: str) -> None:
    """By its container alone: Knative refuses most fields of a pod."""
    pod = pod_of(resource(status=finished()), kind)
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "runAsGroup": 10001,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert pod.get("securityContext", {}).get("fsGroup") == (None if kind == "kserve" else 10001)


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_a_user_without_an_account_has_a_name_and_a_place_to_write(form: str) -> None:
    """PyTorch and vLLM look for both."""
    status = finished()
    status["artifact"] |= {"format": form}
    variables = pod_of(resource(status=status))["containers"][0]["env"]
    plain = {variable["name"]: variable["value"] for variable in variables if "value" in variable}
    assert plain == {"HOME": "/tmp", "USER": "vllm"}  # noqa: S108 - of the container


def run_with(kept: Object, plan: Object | None = None) -> Object:
    """A finished run of which the status tells what its pods had, and what was planned."""
    status = finished()
    status["resolved"]["pod"] = kept
    return resource(status={**status, "plan": plan or {}})


def resources_of(run: Object, kind: str) -> Object:
    """Of the server's container."""
    found: Object = pod_of(run, kind)["containers"][0]["resources"]
    return found


@pytest.mark.parametrize("kind", ["vllm", "kserve"])
def test_a_server_states_all_that_the_quota_of_a_team_counts(kind: str) -> None:
    """Kubernetes refuses each pod that does not, and a default of the namespace may be less than vLLM needs."""
    quota = next(yaml.safe_load_all((ROOT / "examples/team.yaml").read_text()))["spec"]["hard"]
    stated = resources_of(run_with({"cpu": "4", "memory": "32Gi", "gpuResourceName": "nvidia.com/gpu"}), kind)
    for resource_name in quota:
        half, _, name = resource_name.partition(".")
        # Of devices the API server takes the limit for the request.
        assert name in stated[half] or name in stated["limits"], resource_name
    assert {"cpu", "memory"} <= stated["requests"].keys()


@pytest.mark.parametrize(
    ("kept", "plan", "memory", "most"),
    [
        ({"cpu": "2", "memory": "8Gi"}, {"podMemoryBytes": 13 * 2**30 + 1}, "14Gi", "20Gi"),
        ({"cpu": "2", "memory": "32Gi"}, {"podMemoryBytes": 13 * 2**30}, "32Gi", "32Gi"),
        ({"cpu": "2", "memory": "32Gi"}, {}, "32Gi", "32Gi"),
        ({"cpu": "2"}, {"podMemoryBytes": 13 * 2**30}, "13Gi", "20Gi"),
    ],
)
def test_a_server_has_the_memory_of_the_training(kept: Object, plan: Object, memory: str, most: str) -> None:
    """What its pods had; what was planned, where that is more; and room for vLLM itself, of which nothing tells."""
    run = run_with(kept, plan)
    assert resources_of(run, "vllm") == {
        "requests": {"cpu": "2", "memory": memory},
        "limits": {"memory": most, "nvidia.com/gpu": "1"},
    }
    assert [note for note in notes(run) if f"CPU 2 and memory {memory}, are the training's for" in note]


@pytest.mark.parametrize(
    ("sharded", "want"), [(False, ("4", "16Gi", "20Gi", "1")), (True, ("32", "128Gi", "128Gi", "8"))]
)
def test_a_server_asks_for_its_share_of_the_gpus_alone(sharded: bool, want: tuple[str, ...]) -> None:
    """One GPU of a node with eight does not take the node's CPUs and memory with it."""
    run = run_with({"cpu": "32", "memory": "128Gi"})
    run["spec"]["resources"] = {"gpus": 8}
    run["status"]["resolved"]["sharded"] = sharded
    stated = resources_of(run, "vllm")
    requests, limits = stated["requests"], stated["limits"]
    assert (requests["cpu"], requests["memory"], limits["memory"], limits["nvidia.com/gpu"]) == want


def test_kserve_sets_no_limit_below_what_is_requested() -> None:
    """Its own default is one CPU."""
    stated = resources_of(run_with({"cpu": "4", "memory": "32Gi"}), "kserve")
    assert stated["limits"] == {"cpu": "4", "memory": "32Gi", "nvidia.com/gpu": "1"}


def test_of_a_run_that_tells_no_amounts_none_is_made_up() -> None:
    """Of a release that kept none."""
    run = resource(status=finished())
    assert resources_of(run, "kserve") == {"limits": {"nvidia.com/gpu": "1"}}
    assert not [note for note in notes(run) if "the training's" in note]


def test_the_server_s_image_is_of_a_release_that_serves_every_adapter() -> None:
    """And not whatever was pushed last; a newer model may need a newer one, which a note says."""
    run = resource(status=finished())
    image = pod_of(run)["containers"][0]["image"]
    assert image == f"vllm/vllm-openai:{HONOURS_PATTERNS.replace('vLLM ', 'v')}.0"
    assert any(image in note for note in notes(run))
