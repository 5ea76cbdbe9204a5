"""The pods of `pull` and `ask`, and the manifests of `serve`."""

import copy
import dataclasses
import json
from typing import Any

import pytest
from tests.unit.builders import CONFIG
from tests.unit.client.resources import condition, finished, resource
from tests.unit.test_render import rendered

from lora_client.cluster.connection import Cluster
from lora_client.errors import ClientError
from lora_client.verbs.ask import conversation
from lora_client.views import serving
from lora_client.views.helper_pod import Need, adapter_place, holder, pod, trouble
from lora_client.views.serving import manifests
from lora_operator.model.request import read_request
from lora_operator.render.placement import training_placement
from lora_trainer.spec.manifest import RunOptions

Object = dict[str, Any]
PULL, ASK = Need(verb="pull"), Need(verb="ask", model=True)
TEMPLATE: Object = {
    "spec": {
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "imagePullSecrets": [{"name": "registry"}],
        "priorityClassName": "high",
        "containers": [
            {
                "name": "trainer",
                "image": "registry.example/trainer:1",
                "env": [
                    {"name": "HF_ENDPOINT", "value": "http://hub"},
                    {"name": "MODEL_HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf-token", "key": "HF_TOKEN"}}},
                    {"name": "OUTPUT_HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "writer", "key": "HF_TOKEN"}}},
                ],
                "resources": {
                    "requests": {"cpu": "4", "memory": "8Gi"},
                    "limits": {"memory": "8Gi", "nvidia.com/gpu": "1"},
                },
                "volumeMounts": [
                    {"name": "config", "mountPath": "/etc/lora"},
                    {"name": "cache", "mountPath": "/cache"},
                    {"name": "claim-0", "mountPath": "/claims/adapters"},
                ],
            }
        ],
        "volumes": [
            {"name": "config", "downwardAPI": {}},
            {"name": "cache", "persistentVolumeClaim": {"claimName": "models"}},
            {"name": "claim-0", "persistentVolumeClaim": {"claimName": "adapters"}},
        ],
    }
}


def made(need: Need, template: Object = TEMPLATE, **spec: Any) -> Object:
    """The helper of a finished run."""
    run = resource(status=finished(), **spec)
    return pod(run, template, adapter_place(run), need)


def assert_restricted(spec: Object) -> None:
    """By the restricted Pod Security Standard, and without the API's token."""
    container = spec["containers"][0]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["automountServiceAccountToken"] is False
    assert all(v.keys() <= {"name", "emptyDir", "persistentVolumeClaim", "configMap"} for v in spec["volumes"])


def test_a_pulling_pod_sees_one_claim_and_knows_no_secret() -> None:
    """It goes where the training went, with the image that trained, and takes no GPU and no priority."""
    spec = made(PULL)["spec"]
    assert_restricted(spec)
    container = spec["containers"][0]
    assert container["image"] == "registry.example/trainer:1"
    assert container["env"] == []
    assert "nvidia.com/gpu" not in json.dumps(container["resources"])
    assert spec["nodeSelector"] == {"pool": "gpu"}
    assert spec["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert "priorityClassName" not in spec
    assert [v.get("persistentVolumeClaim") for v in spec["volumes"]] == [None, {"claimName": "adapters"}]
    assert container["volumeMounts"][-1] == {"name": "claim-1", "mountPath": "/claims/adapters", "readOnly": True}


def test_a_pod_runs_as_the_user_that_trained() -> None:
    """Where the platform assigns users, none is named."""
    assigned = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    template = copy.deepcopy(TEMPLATE)
    template["spec"]["securityContext"] = assigned
    assert made(PULL, template)["spec"]["securityContext"] == assigned
    assert made(PULL)["spec"]["securityContext"]["runAsUser"] == 10001


def test_an_asking_pod_reaches_the_base_model_as_the_training_did() -> None:
    """By its cache and the model's token, and not by the token that may write."""
    spec = made(ASK)["spec"]
    assert_restricted(spec)
    container = spec["containers"][0]
    assert [variable["name"] for variable in container["env"]] == ["HF_ENDPOINT", "MODEL_HF_TOKEN"]
    assert container["resources"] == {"requests": {"cpu": "4", "memory": "8Gi"}, "limits": {"memory": "8Gi"}}
    assert {m["mountPath"]: m.get("readOnly", False) for m in container["volumeMounts"]} == {
        "/tmp": False,  # noqa: S108 - an emptyDir
        "/cache": False,
        "/claims/adapters": True,
    }
    with_gpu = made(Need(verb="ask", model=True, gpu=True))["spec"]["containers"][0]["resources"]
    assert with_gpu["limits"]["nvidia.com/gpu"] == "1"


def test_whatever_a_variable_of_an_asking_pod_names_is_mounted() -> None:
    """As the operator renders it: caches of all kinds can be written, the cluster's certificates be read."""
    site = dataclasses.replace(CONFIG, ca_bundle_config_map="ca")
    spec = made(ASK, rendered({}, site)["spec"]["template"])["spec"]
    container = spec["containers"][0]
    mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
    folders = {v["name"]: v["value"] for v in container["env"] if v.get("value", "").startswith("/")}
    assert {"HOME", "HF_HOME", "TRITON_CACHE_DIR", "SSL_CERT_FILE"} <= folders.keys()
    for name, folder in folders.items():
        (read_only,) = (read for path, read in mounts.items() if f"{folder}/".startswith(f"{path}/"))
        assert read_only is folder.startswith("/etc/"), name


def test_without_the_job_the_runs_own_fields_say_where_and_how() -> None:
    """Its selectors, its model's claim and its model's secret."""
    scheduling = {"nodeSelector": {"pool": "a"}, "tolerations": [{"operator": "Exists"}]}
    spec = made(ASK, {}, model={"uri": "pvc://models/llama"}, scheduling=scheduling)["spec"]
    assert (spec["nodeSelector"], spec["tolerations"]) == ({"pool": "a"}, [{"operator": "Exists"}])
    assert {v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"] if "persistentVolumeClaim" in v} == {
        "adapters",
        "models",
    }
    hub = made(ASK, {})["spec"]["containers"][0]["env"]
    assert [variable["name"] for variable in hub][-1] == "MODEL_HF_TOKEN"


SCHEDULING: Object = {
    "nodeSelector": {"pool": "gpu"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{}]}}},
    "runtimeClassName": "nvidia",
}
KEPT: Object = {
    **SCHEDULING,
    "gpuResourceName": "amd.com/gpu",
    "cpu": "4",
    "memory": "32Gi",
    "priorityClassName": "high",
    "environment": {"HTTPS_PROXY": "http://proxy:3128", "WANDB_BASE_URL": "http://curves"},
    "cacheClaim": "models",
}


def kept(**spec: Any) -> Object:
    """A finished run of which the operator's defaults decided."""
    status = finished()
    status["resolved"]["pod"] = KEPT
    return resource(status=status, **spec)


def test_without_the_job_the_status_says_what_the_defaults_decided() -> None:
    """Where it trained, with how much, through which proxy, from which cache; not with its priority."""
    run = kept(resources={"gpus": 2})
    spec = pod(run, {}, adapter_place(run), Need(verb="ask", model=True, gpu=True))["spec"]
    assert_restricted(spec)
    assert {key: spec.get(key) for key in (*SCHEDULING, "priorityClassName")} == {
        **SCHEDULING,
        "priorityClassName": None,
    }
    container = spec["containers"][0]
    assert container["resources"] == {
        "requests": {"cpu": "4", "memory": "32Gi"},
        "limits": {"memory": "32Gi", "amd.com/gpu": "1"},
    }
    assert {"HTTPS_PROXY", "https_proxy"} <= {variable["name"] for variable in container["env"]}
    assert "WANDB_BASE_URL" not in {variable["name"] for variable in container["env"]}
    assert {"name": "cache", "persistentVolumeClaim": {"claimName": "models"}} in spec["volumes"]
    assert {"name": "cache", "mountPath": "/cache"} in container["volumeMounts"]
    on_a_cpu = pod(run, {}, adapter_place(run), ASK)["spec"]["containers"][0]["resources"]
    assert on_a_cpu == {"requests": {"cpu": "4", "memory": "32Gi"}, "limits": {"memory": "32Gi"}}


@pytest.mark.parametrize(
    ("need", "parameters", "memory"),
    [
        (ASK, 134_515_008, "32Gi"),
        (ASK, 8_030_261_248, "32Gi"),
        (ASK, 13_015_864_320, "51Gi"),
        (ASK, None, "32Gi"),
        (Need(verb="ask", model=True, memory="4Gi"), 13_015_864_320, "4Gi"),
        (Need(verb="ask", model=True, gpu=True), 13_015_864_320, "32Gi"),
    ],
)
def test_on_a_cpu_a_model_is_given_room_for_its_weights_in_fp32(
    need: Need, parameters: int | None, memory: str
) -> None:
    """More than the training took, which may have held them in 4 bits on a GPU; unless a person says how much."""
    run = kept(resources={"gpus": 1})
    run["status"]["resolved"]["totalParameters"] = parameters
    resources = pod(run, {}, adapter_place(run), need)["spec"]["containers"][0]["resources"]
    assert {resources[kind]["memory"] for kind in ("requests", "limits")} == {memory}


@pytest.mark.parametrize("spec", [{"scheduling": SCHEDULING}, {}], ids=["affinity", "no affinity"])
def test_without_the_job_a_helper_goes_to_the_gpus_that_the_run_named(spec: Object) -> None:
    """By the affinity that the operator's own rule renders, as the Job had it; a run without GPUs has none of it."""
    wanted = {"gpus": 1, "gpuMinMemoryGiB": 24, "gpuProducts": ["NVIDIA-L4"]}
    run = resource(status=finished(), resources=wanted, **spec)
    request = read_request(run, RunOptions(uid="u"))
    helper = pod(run, {}, adapter_place(run), Need(verb="pull"))["spec"]
    assert helper["affinity"] == training_placement(request.pod)["affinity"]
    assert {"nvidia.com/gpu.memory", "nvidia.com/gpu.product"} <= set(json.dumps(helper["affinity"]).split('"'))
    plain = resource(status=finished(), resources={**wanted, "gpus": 0})
    assert "affinity" not in pod(plain, {}, adapter_place(plain), Need(verb="pull"))["spec"]


def test_without_job_and_defaults_the_whole_scheduling_of_the_spec_counts() -> None:
    """Of a release that kept none."""
    spec = made(PULL, {}, scheduling={**SCHEDULING, "priorityClassName": "high"})["spec"]
    assert {key: spec.get(key) for key in SCHEDULING} == SCHEDULING
    assert "priorityClassName" not in spec


@pytest.mark.parametrize(
    ("resources", "limits", "want"),
    [
        ({"gpus": 8}, {"nvidia.com/gpu": "8"}, {"nvidia.com/gpu": "1"}),
        ({"gpus": 8}, {"a/net": "2", "x.example/gpu": "8"}, {"x.example/gpu": "1"}),
        ({"gpus": 8, "gpuResourceName": "x.example/gpu"}, {"a/b": "1", "x.example/gpu": "8"}, {"x.example/gpu": "1"}),
    ],
)
def test_an_asking_pod_takes_the_one_gpu_that_it_computes_on(resources: Object, limits: Object, want: Object) -> None:
    """Not what else the training had, such as its network between nodes."""
    template = copy.deepcopy(TEMPLATE)
    template["spec"]["containers"][0]["resources"]["limits"] = {"memory": "8Gi", **limits}
    spec = {**resources, "extendedResources": {"a/net": 2}}
    made_of = made(Need(verb="ask", model=True, gpu=True), template, resources=spec)
    assert made_of["spec"]["containers"][0]["resources"]["limits"] == {"memory": "8Gi", **want}


@pytest.mark.parametrize(
    ("resources", "template", "want"),
    [
        ({}, {}, "its status and its Job name no GPU"),
        ({"gpus": 0}, TEMPLATE, "it trained without one"),
    ],
)
def test_gpus_that_nothing_names_are_refused(resources: Object, template: Object, want: str) -> None:
    """Rather than asked for on a CPU."""
    with pytest.raises(ClientError, match=want):
        made(Need(verb="ask", model=True, gpu=True), template, resources=resources)


def test_an_adapter_is_served_where_it_was_trained() -> None:
    """By both servers."""
    (deployment, _), (service,) = manifests(kept(), "vllm"), manifests(kept(), "kserve")
    for spec in (deployment["spec"]["template"]["spec"], service["spec"]["predictor"]):
        assert {key: spec.get(key) for key in SCHEDULING} == SCHEDULING
        assert spec["containers"][0]["resources"]["limits"]["amd.com/gpu"] == "1"


def test_a_helper_goes_with_its_run_and_ends_by_itself() -> None:
    """A client that is killed leaves nothing that lasts."""
    manifest = made(PULL)
    (owner,) = manifest["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner.get("controller")) == ("LoRAFineTune", "tone", None)
    assert manifest["spec"]["activeDeadlineSeconds"] == 3600
    assert "lora-operator.io/uid" not in manifest["metadata"]["labels"]


@pytest.mark.parametrize(
    ("size", "need", "seconds"),
    [
        (4 * 2**20, Need(verb="pull", whole=True), 3602),
        (65 * 10**9, Need(verb="pull", whole=True), 3600 + 32_500),
        (141 * 10**9, Need(verb="pull", whole=True), 3600 + 70_500),
        (10**12, Need(verb="pull", whole=True), 86_400),
        (None, Need(verb="pull", whole=True), 3600),
        (141 * 10**9, PULL, 3600),
        (141 * 10**9, ASK, 3600),
    ],
)
def test_a_large_result_has_the_time_to_be_copied(size: int | None, need: Need, seconds: int) -> None:
    """At 2 MB/s, for at most a day; a log of it, or an answer, has an hour."""
    status = finished()
    status["artifact"]["sizeBytes"] = size
    run = resource(status=status)
    spec = pod(run, TEMPLATE, adapter_place(run), need)["spec"]
    assert spec["activeDeadlineSeconds"] == seconds
    assert f"time.sleep({seconds})" in spec["containers"][0]["command"][-1]


COMMIT = "0123456789abcdef0123456789abcdef01234567"
DIGEST = f"sha256:{'b' * 64}"


@pytest.mark.parametrize(
    ("uri", "want"),
    [
        ("", "tone has no adapter yet: lora status tone"),
        ("s3://bucket/tone", "aws s3 cp --recursive s3://bucket/tone"),
        (f"hf://acme/tone@{COMMIT}", f"hf download acme/tone --revision {COMMIT} --local-dir adapter copies"),
        (f"oci://registry.example/tone:v1@{DIGEST}", f"oras pull registry.example/tone:v1@{DIGEST} -o adapter"),
        ("s3://bucket/$(id)", r"aws s3 cp --recursive 's3://bucket/\$\(id\)' \./"),
        ("hf://a/b;id@`id`", "hf download 'a/b;id' --revision '`id`' --local"),
        ("oci://a/b&id", "oras pull 'a/b&id' -o"),
        ("pvc://adapters/..", "cannot be read"),
    ],
)
def test_what_is_not_on_a_claim_is_fetched_otherwise(uri: str, want: str) -> None:
    """The sentence names the command, for the address that the trainer's sink of that place reports."""
    status = finished()
    status["artifact"]["uri"] = uri
    with pytest.raises(ClientError, match=want):
        adapter_place(resource(status=status))


def test_of_a_run_that_failed_no_adapter_is_promised() -> None:
    """It has none, and why is what to look at."""
    conditions = [condition("Complete", "False", "DatasetInvalid"), condition("Failed", "True", "DatasetInvalid")]
    with pytest.raises(ClientError) as error:
        adapter_place(resource(status={"conditions": conditions}))
    assert str(error.value) == "tone failed (DatasetInvalid) and has no adapter: lora status tone says why"


GPU = Need(verb="ask", model=True, gpu=True)
DIVIDED: Object = {"sharded": True, "shardedOver": 8, "totalParameters": 70_553_706_496}


@pytest.mark.parametrize(
    ("resolved", "artifact", "need", "want"),
    [
        (
            DIVIDED,
            {},
            GPU,
            r"divided over 8 GPUs, and ask holds it on one\): lora serve tone .* takes 264.8 GiB of main",
        ),
        (DIVIDED, {"servable": False}, GPU, r"ask holds it on one\): lora pull tone copies it, and without --gpu"),
        ({"sharded": True}, {}, GPU, r"divided over several GPUs, and ask holds it on one\): lora serve tone"),
        (DIVIDED, {}, ASK, "^$"),
        ({}, {}, GPU, "^$"),
        ({}, {"format": "merged"}, ASK, r"is a merged model \(output.merge: Merged\), from which .*: lora serve tone"),
        ({}, {"format": "peft+merged"}, ASK, "^$"),
    ],
)
def test_what_ask_cannot_answer_with_is_refused_before_a_pod_is_made(
    resolved: Object, artifact: Object, need: Need, want: str
) -> None:
    """Which would take a GPU, load what does not fit, and end with a sentence on settings of a training."""
    status = finished()
    status["resolved"] |= resolved
    status["artifact"] |= artifact
    with (
        pytest.raises(NothingMadeError if want == "^$" else ClientError, match=want),
        conversation(Cluster.__new__(NoPods), resource(status=status), need, 64),
    ):
        pass


class NothingMadeError(Exception):
    """A request that none should make."""


class NoPods(Cluster):
    """A cluster that is asked for nothing."""

    def get(self, *_: object, **__: object) -> Object:
        raise NothingMadeError

    def items(self, *_: object, **__: object) -> list[Object]:
        raise NothingMadeError


def user(phase: str = "Running", node: str = "node-1", claim: str = "adapters") -> Object:
    """A pod that uses a claim."""
    volume = {"name": "x", "persistentVolumeClaim": {"claimName": claim}}
    return {"metadata": {"name": "train"}, "spec": {"nodeName": node, "volumes": [volume]}, "status": {"phase": phase}}


@pytest.mark.parametrize(
    ("modes", "pods", "want"),
    [
        (["ReadWriteOnce"], [user()], ("train", "node-1", False)),
        (["ReadWriteOncePod"], [user()], ("train", "node-1", True)),
        (["ReadWriteMany"], [user()], ("", "", False)),
        (["ReadWriteOnce"], [user("Succeeded"), user(node=""), user(claim="other")], ("", "", False)),
    ],
)
def test_a_claim_that_one_node_can_have_leads_the_helper_there(
    modes: list[str], pods: list[Object], want: tuple[str, str, bool]
) -> None:
    """Only by pods that run now."""
    claim = {"metadata": {"name": "adapters"}, "spec": {"accessModes": modes}}
    assert holder(claim, pods) == want


def test_a_helper_is_bound_to_the_node_that_has_the_claim() -> None:
    """Elsewhere it would wait without end."""
    run = resource(status=finished())
    affinity = pod(run, TEMPLATE, adapter_place(run), PULL, "node-1")["spec"]["affinity"]
    assert "node-1" in json.dumps(affinity)


def test_why_a_helper_waits_is_said_in_the_clusters_words() -> None:
    """Of the scheduler, or of the kubelet."""
    scheduled = {"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}
    assert trouble({"status": {"conditions": [scheduled]}}) == "0/1 nodes are available"
    waiting = {"state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}}}
    assert trouble({"status": {"containerStatuses": [waiting]}}) == "ErrImagePull not found"
    assert trouble({"status": {"containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]}}) == ""


def test_vllm_serves_an_adapter_from_its_claim() -> None:
    """With the flags that the run found, base model and revision."""
    deployment, service = manifests(resource(status=finished()), "vllm")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert container["args"] == [
        "acme/model",
        f"--revision={'a' * 40}",
        "--enable-lora",
        "--max-lora-rank",
        "16",
        "--lora-modules",
        "tone=/adapters/tone/tone-abcde",
        "--max-model-len=auto",
    ]
    # The model's name comes first for `vllm serve` alone, which older images do not begin with.
    assert container["command"] == ["vllm", "serve"]
    assert container["env"][0]["valueFrom"]["secretKeyRef"]["name"] == "hf-token"
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]


def test_kserve_gets_the_same_server() -> None:
    """A base model on another claim is mounted, too."""
    (service,) = manifests(resource(status=finished(), model={"uri": "pvc://models/llama"}), "kserve")
    predictor = service["spec"]["predictor"]
    assert predictor["containers"][0]["name"] == "kserve-container"
    assert predictor["containers"][0]["args"][0] == "/base/llama"
    # Knative takes no name but h2c and http1.
    assert predictor["containers"][0]["ports"] == [{"containerPort": 8000}]
    assert len(predictor["volumes"]) == 2


def test_what_cannot_be_served_says_why() -> None:
    """As the run found it; a merged model always can."""
    status = finished()
    status["artifact"] |= {"servable": False, "serving": "vLLM serves no DoRA adapters"}
    with pytest.raises(ClientError, match="vLLM serves no DoRA adapters"):
        manifests(resource(status=status), "vllm")
    merged = finished()
    merged["artifact"] |= {"format": "peft+merged"}
    container = manifests(resource(status=merged), "vllm")[0]["spec"]["template"]["spec"]["containers"][0]
    folder = "/adapters/tone/tone-abcde/merged"
    assert container["args"] == [folder, "--served-model-name=tone", "--max-model-len=auto"]


@pytest.mark.parametrize("kind", ["vllm", "kserve"])
@pytest.mark.parametrize(("sharded", "want"), [(False, "1"), (True, "8")])
def test_a_base_that_one_gpu_held_is_served_by_one(kind: str, sharded: bool, want: str) -> None:
    """Of several processes, each needs memory to share, and a part of the attention heads."""
    status = finished()
    status["resolved"] |= {"sharded": sharded, **({"shardedOver": 8} if sharded else {})}
    run = resource(status=status, resources={"gpus": 8})
    spec = manifests(run, kind)[0]["spec"]
    pod_spec = spec["predictor"] if kind == "kserve" else spec["template"]["spec"]
    container = pod_spec["containers"][0]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": want}
    assert ("--tensor-parallel-size=8" in container["args"]) is sharded
    mounts = [mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == "/dev/shm"]  # noqa: S108
    memory = [volume["name"] for volume in pod_spec["volumes"] if volume.get("emptyDir") == {"medium": "Memory"}]
    assert mounts == memory == (["shared-memory"] if sharded else [])
    assert bool([line for line in serving.notes(run) if "attention heads" in line]) is sharded


LENGTH, IMAGE, USER = "--max-model-len=auto", "name a later release", "runs as user 10001"


@pytest.mark.parametrize(
    ("resolved", "want"),
    [
        ({}, [LENGTH, IMAGE, USER]),
        ({"quantization": "NF4"}, ["held the base in NF4", LENGTH, IMAGE, USER]),
        ({"quantization": ""}, [LENGTH, IMAGE, USER]),
        ({"sharded": True, "shardedOver": 8}, ["attention heads", LENGTH, IMAGE, USER]),
        (
            {"sharded": True, "shardedOver": 16},
            ["attention heads", "over 16 GPUs of several nodes", LENGTH, IMAGE, USER],
        ),
    ],
)
def test_what_a_server_needs_that_the_run_cannot_tell_is_noted(resolved: Object, want: list[str]) -> None:
    """Each in a sentence of its own."""
    status = finished()
    status["resolved"] |= resolved
    said = serving.notes(resource(status=status, resources={"gpus": 8}), TEMPLATE)
    assert len(said) == len(want)
    assert all(part in line for part, line in zip(want, said, strict=True))
