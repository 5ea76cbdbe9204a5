"""What the manifests of `serve` need beside what the run tells: words that vLLM splits, a user, a place to write."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.builders import CONFIG
from tests.unit.client.resources import finished, resource
from tests.unit.test_render import rendered

from lora_client.cluster.connection import ApiError, Cluster
from lora_client.output import Form
from lora_client.verbs.serve import serve
from lora_client.views.refusals import Refusal
from lora_client.views.serving import manifests, notes
from lora_trainer.spec.serving import HONOURS_PATTERNS

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
    assert plain.items() >= {"HOME": "/tmp", "USER": "vllm"}.items()  # noqa: S108 - of the container


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


class ServedRun(Cluster):
    """A run of a Job that is there or not, and claims of one mode, or of none that may be read."""

    def __init__(self, run: Object, mode: str = "ReadWriteMany", jobs: Sequence[Object] = ()) -> None:
        self.namespace, self.run, self.mode, self.jobs = "team-a", run, mode, jobs

    def get(self, plural: str, name: str) -> Object:
        if plural == "lorafinetunes":
            return self.run
        if not self.mode:
            raise ApiError(Refusal(code=403, reason="Forbidden", message="x", name=name, kind=plural))
        return {"metadata": {"name": name}, "spec": {"accessModes": [self.mode]}}

    def items(self, plural: str, *_: object, **__: object) -> list[Object]:
        assert plural == "jobs"
        if not self.mode:
            raise ApiError(Refusal(code=403, reason="Forbidden", message="x", kind=plural))
        return list(self.jobs)


@pytest.mark.parametrize("kind", ["vllm", "kserve"])
@pytest.mark.parametrize(
    ("mode", "want"),
    [
        ("ReadWriteOnce", "The claim adapters (ReadWriteOnce) stays on the server's node for as long as the server"),
        ("ReadWriteOncePod", "The claim adapters (ReadWriteOncePod) stays with the server's pod for as long as the"),
        ("", "Unless it is ReadWriteMany, the claim adapters stays on the server's node for as long as the server"),
        ("ReadWriteMany", ""),
        ("ReadOnlyMany", ""),
    ],
)
def test_a_claim_that_the_server_keeps_from_runs_is_noted(
    kind: str, mode: str, want: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server does not end, and runs on other nodes wait for the claim with their GPUs idle."""
    serve(ServedRun(resource(status=finished()), mode), "tone", kind, Form.TEXT)
    said = [line for line in capsys.readouterr().err.splitlines() if "runs that mount it wait elsewhere" in line]
    assert len(said) == bool(want)
    assert all(line.startswith(want) for line in said)


def test_a_server_gives_its_gpu_and_its_claim_back_before_it_starts_anew() -> None:
    """After an edit that a note advises; another pod beside it would wait for both."""
    deployment, _ = manifests(resource(status=finished()), "vllm")
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}


BEHIND_A_PROXY = {"cacheClaim": "lora-cache", "environment": {"HTTPS_PROXY": "http://proxy:3128", "NCCL_DEBUG": "INFO"}}


def plain_of(pod: Object) -> Object:
    """The variables of the server that are no Secret's."""
    return {each["name"]: each["value"] for each in pod["containers"][0]["env"] if "value" in each}


def test_a_server_reaches_the_hub_by_the_proxy_and_the_cache_of_the_training() -> None:
    """By the status, where the Job is gone. Knative mounts no claim to write to."""
    run = run_with(BEHIND_A_PROXY)
    pod = pod_of(run)
    want = {"HTTPS_PROXY": "http://proxy:3128", "https_proxy": "http://proxy:3128"}
    assert plain_of(pod).items() >= {**want, "HF_HOME": "/cache"}.items()
    assert "NCCL_DEBUG" not in plain_of(pod)
    assert {"name": "cache", "mountPath": "/cache"} in pod["containers"][0]["volumeMounts"]
    assert {"name": "cache", "persistentVolumeClaim": {"claimName": "lora-cache"}} in pod["volumes"]
    knative = pod_of(run, "kserve")
    assert plain_of(knative).items() >= want.items()
    assert "HF_HOME" not in plain_of(knative)
    assert all(mount["readOnly"] for mount in knative["containers"][0]["volumeMounts"])


def test_a_cache_on_the_adapters_claim_is_the_same_volume() -> None:
    """A pod that names a claim in two volumes may wait for the second for ever."""
    pod = pod_of(run_with({"cacheClaim": "adapters"}))
    assert pod["volumes"] == [{"name": "claim-0", "persistentVolumeClaim": {"claimName": "adapters"}}]
    assert pod["containers"][0]["volumeMounts"] == [
        {"name": "claim-0", "mountPath": "/adapters", "readOnly": True},
        {"name": "claim-0", "mountPath": "/cache"},
    ]


MIRROR: Object = {"hub_endpoint": "https://hub.example.com", "ca_bundle_config_map": "ca"}
LOST = "The run's Job is gone, which alone named HF_ENDPOINT and certificates"


@pytest.mark.parametrize("kind", ["vllm", "kserve"])
def test_a_server_asks_the_mirror_that_the_run_s_job_names(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its token is the mirror's, and not for the Hub itself; the certificates that a variable names are mounted."""
    job = rendered({}, dataclasses.replace(CONFIG, **MIRROR))
    cluster = ServedRun(resource(status=finished()), jobs=[{**job, "metadata": {"name": "tone-abcde-1"}}])
    serve(cluster, "tone", kind, Form.TEXT)
    printed = capsys.readouterr()
    spec = next(yaml.safe_load_all(printed.out))["spec"]
    pod = spec["predictor"] if kind == "kserve" else spec["template"]["spec"]
    assert plain_of(pod).items() >= {"HF_ENDPOINT": "https://hub.example.com"}.items()
    assert plain_of(pod)["SSL_CERT_FILE"] == "/etc/lora-ca/ca.crt"
    (mount,) = (mount for mount in pod["containers"][0]["volumeMounts"] if mount["mountPath"] == "/etc/lora-ca")
    assert [v["configMap"]["name"] for v in pod["volumes"] if v["name"] == mount["name"]] == ["ca"]
    assert not {"TRITON_CACHE_DIR", "LORA_GRACE_SECONDS", "HF_HOME"} & plain_of(pod).keys()
    assert LOST not in printed.err


@pytest.mark.parametrize(
    ("change", "kept", "said"),
    [
        ({}, {}, True),
        ({}, {"environment": {"HF_ENDPOINT": "https://hub.example.com"}}, False),
        ({"model": {"uri": "pvc://models/llama"}}, {}, False),
    ],
)
def test_without_the_job_it_is_noted_where_the_token_goes(change: Object, kept: Object, said: bool) -> None:
    """Unless the status tells the mirror, or the base is on a claim."""
    status = finished()
    status["resolved"]["pod"] = kept
    found = [note for note in notes(resource(status=status, **change)) if note.startswith(LOST)]
    assert len(found) == said
    assert all(
        "fetched from huggingface.co, with the credentials of Secret hf-token; in that case, add" in n for n in found
    )


def test_a_job_that_may_not_be_read_is_not_said_to_be_gone(capsys: pytest.CaptureFixture[str]) -> None:
    """What it names is missing all the same."""
    serve(ServedRun(resource(status=finished()), mode=""), "tone", "vllm", Form.TEXT)
    (said,) = (line for line in capsys.readouterr().err.splitlines() if "The run's Job" in line)
    assert "The run's Job cannot be read (" in said
    assert "), which alone names HF_ENDPOINT and certificates where the chart sets" in said
    assert "add them to env and volumes" in said


@pytest.mark.parametrize(
    ("kind", "claim", "offline"),
    [("vllm", "lora-cache", True), ("kserve", "lora-cache", False), ("vllm", "", False), ("kserve", "", False)],
)
def test_a_server_is_offline_only_with_a_cache(
    kind: str, claim: str, offline: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without one it has no model to load, and a note says what to do."""
    job = rendered({}, dataclasses.replace(CONFIG, offline=True, cache_claim=claim))
    cluster = ServedRun(resource(status=finished()), jobs=[{**job, "metadata": {"name": "tone-abcde-1"}}])
    serve(cluster, "tone", kind, Form.TEXT)
    printed = capsys.readouterr()
    spec = next(yaml.safe_load_all(printed.out))["spec"]
    pod = spec["predictor"] if kind == "kserve" else spec["template"]["spec"]
    assert ("HF_HUB_OFFLINE" in plain_of(pod)) == offline
    assert ("The training was offline (HF_HUB_OFFLINE), and the server has no cache" in printed.err) != offline


def test_a_merged_model_needs_no_hub() -> None:
    """It lies beside the adapter."""
    run = run_with(BEHIND_A_PROXY)
    run["status"]["artifact"] |= {"format": "merged"}
    assert plain_of(pod_of(run)).keys() == {"HOME", "USER"}
    assert not [note for note in notes(run) if note.startswith(LOST)]
