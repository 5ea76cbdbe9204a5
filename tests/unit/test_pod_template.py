"""What a trainer's pod is given: environment, keys of Secrets, volumes, and what is else in a preflight."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.builders import CONFIG, job_name
from tests.unit.test_render import FULL, SITE, container, everything, rendered, understood

from lora_operator.decide.decide import PREFLIGHT_SHAPE
from lora_operator.model.config import OperatorConfig
from lora_operator.render.jobs import render_job, render_service

SHARED = dataclasses.replace(CONFIG, cache_claim="models")
S3 = {"AWS_ACCESS_KEY_ID": False, "AWS_SECRET_ACCESS_KEY": False, "AWS_SESSION_TOKEN": True}


def pod_of(job: dict[str, Any]) -> dict[str, Any]:
    """The pod of a rendered Job."""
    spec: dict[str, Any] = job["spec"]["template"]["spec"]
    return spec


def trainer(spec: dict[str, Any], config: OperatorConfig = CONFIG) -> dict[str, Any]:
    """The container that trains."""
    return container(rendered(spec, config))


def looking(spec: dict[str, Any], config: OperatorConfig = SHARED) -> dict[str, Any]:
    """The Job of the preflight."""
    finetune, request, train = understood(spec, config)
    return render_job(finetune, request, train, config, stage="preflight", shape=PREFLIGHT_SHAPE)


def plain(found: dict[str, Any]) -> dict[str, str]:
    """Variables with a value of their own."""
    return {e["name"]: e["value"] for e in found["env"] if "value" in e}


def references(found: dict[str, Any]) -> dict[str, tuple[str, str, bool]]:
    """Variables from Secrets: name of the Secret, key, and whether it may be missing."""
    refs = {e["name"]: e["valueFrom"]["secretKeyRef"] for e in found["env"] if "valueFrom" in e}
    return {name: (ref["name"], ref["key"], ref.get("optional", False)) for name, ref in refs.items()}


def s3(purpose: str, secret: str) -> dict[str, tuple[str, str, bool]]:
    """The variables of one purpose with credentials of an object store."""
    return {f"{purpose}_{key}": (secret, key, optional) for key, optional in S3.items()}


ALWAYS = {
    "HOME": "/tmp",  # noqa: S108 - an emptyDir
    "HF_HOME": "/cache",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "LORA_GRACE_SECONDS": "120",
}
COMPILED = {
    "TRITON_CACHE_DIR": "/compiled/triton",
    "CUDA_CACHE_PATH": "/compiled/cuda",
    "CUDA_CACHE_MAXSIZE": "1073741824",
}
SECRET = {"secretRef": {"name": "s"}}
KEYS = [
    ({}, {}),
    ({"model": {"uri": "hf://a/b", **SECRET}}, {"MODEL_HF_TOKEN": ("s", "HF_TOKEN", False)}),
    ({"model": {"uri": "s3://models/b", **SECRET}}, s3("MODEL", "s")),
    ({"dataset": {"uri": "hf://a/b", **SECRET}}, {"DATASET_HF_TOKEN": ("s", "HF_TOKEN", False)}),
    (
        {"model": {"uri": "hf://a/b", **SECRET}, "dataset": {"uri": "hf://a/c"}},
        {"MODEL_HF_TOKEN": ("s", "HF_TOKEN", False), "DATASET_HF_TOKEN": ("s", "HF_TOKEN", False)},
    ),
    (
        {"model": {"uri": "s3://models/b", **SECRET}, "dataset": {"uri": "hf://a/c", "validationUri": "s3://data/b"}},
        s3("MODEL", "s") | s3("DATASET", "s"),
    ),
    (
        {"model": {"uri": "hf://a/b", **SECRET}, "dataset": {"uri": "hf://a/c", "secretRef": {"name": "own"}}},
        {"MODEL_HF_TOKEN": ("s", "HF_TOKEN", False), "DATASET_HF_TOKEN": ("own", "HF_TOKEN", False)},
    ),
    (
        {"model": {"uri": "hf://a/b", **SECRET}, "dataset": {"uri": "s3://data/b"}},
        {"MODEL_HF_TOKEN": ("s", "HF_TOKEN", False)},
    ),
    (
        {"dataset": {"uri": "hf://a/b", "validationUri": "s3://data/b", **SECRET}},
        {"DATASET_HF_TOKEN": ("s", "HF_TOKEN", False), **s3("DATASET", "s")},
    ),
    ({"dataset": {"uri": "pvc://a/b", "validationUri": "s3://data/b", **SECRET}}, s3("DATASET", "s")),
    ({"output": {"uri": "s3://out/b", **SECRET}}, s3("OUTPUT", "s")),
    ({"output": {"uri": "hf://a/b", **SECRET}}, {"OUTPUT_HF_TOKEN": ("s", "HF_TOKEN", False)}),
    (
        {"output": {"uri": "oci://ghcr.io/a/b", **SECRET}},
        {"OUTPUT_DOCKER_CONFIG_JSON": ("s", ".dockerconfigjson", False)},
    ),
    ({"tracking": {"kind": "WandB", **SECRET}}, {"WANDB_API_KEY": ("s", "WANDB_API_KEY", False)}),
    (
        {"tracking": {"kind": "MLflow", **SECRET}},
        {
            key: ("s", key, True)
            for key in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
        },
    ),
]


@pytest.mark.parametrize(("spec", "expected"), KEYS)
def test_each_address_gets_the_keys_that_its_scheme_needs_and_no_other(
    spec: dict[str, Any], expected: dict[str, tuple[str, str, bool]]
) -> None:
    """By reference: the operator never reads a Secret. The preflight tries the output, and has no part in tracking."""
    assert references(trainer(spec)) == expected
    assert references(container(looking(spec))) == ({} if "tracking" in spec else expected)


def test_user_and_groups_are_those_of_the_configuration_or_the_platforms() -> None:
    """0 names none, so that the platform may assign it; root is refused whoever assigns it."""
    given = {"runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001}
    assert pod_of(rendered({}, CONFIG))["securityContext"].items() >= given.items()
    assigned = dataclasses.replace(CONFIG, run_as_user=0, run_as_group=0, fs_group=2000)
    context = pod_of(rendered({}, assigned))["securityContext"]
    assert {key: context.get(key) for key in given} == {"runAsUser": None, "runAsGroup": None, "fsGroup": 2000}
    assert context["runAsNonRoot"] is True


def test_without_settings_the_environment_names_no_service() -> None:
    """The clients' own defaults hold."""
    assert plain(trainer({})) == ALWAYS | COMPILED
    assert plain(container(looking({}))) == ALWAYS


def test_services_of_the_site_are_named_in_the_words_of_their_clients() -> None:
    """Proxies in both spellings, the bundle of certificates for every client that has a variable of its own."""
    bundle = "/etc/lora-ca/ca.crt"
    expected = {
        **ALWAYS,
        "LORA_GRACE_SECONDS": "300",
        "HF_ENDPOINT": "http://hub.example",
        "HF_HUB_DISABLE_XET": "1",
        "AWS_ENDPOINT_URL_S3": "https://s3.example",
        "AWS_REGION": "eu-north-1",
        "HTTPS_PROXY": "http://proxy.example:3128",
        "https_proxy": "http://proxy.example:3128",
        "NO_PROXY": ".svc,.cluster.local",
        "no_proxy": ".svc,.cluster.local",
        "SSL_CERT_FILE": bundle,
        "REQUESTS_CA_BUNDLE": bundle,
        "CURL_CA_BUNDLE": bundle,
        "AWS_CA_BUNDLE": bundle,
        "LORA_OCI_PLAIN_HTTP": "registry.team-a.svc:5000,localhost:5000",
    }
    assert plain(trainer({}, SITE)) == expected | COMPILED
    assert plain(container(looking({}, SITE))) == expected
    offline = dataclasses.replace(CONFIG, offline=True, default_environment={"HTTP_PROXY": "http://p:1"})
    assert plain(trainer({}, offline)).items() >= {"HF_HUB_OFFLINE": "1", "HTTP_PROXY": "http://p:1"}.items()
    (volume,) = [v for v in pod_of(rendered({}, SITE))["volumes"] if v["name"] == "ca-bundle"]
    assert volume["configMap"] == {"name": "company-ca", "items": [{"key": "ca.crt", "path": "ca.crt"}]}
    injected = dataclasses.replace(SITE, ca_bundle_key="ca-bundle.crt")
    (volume,) = [v for v in pod_of(rendered({}, injected))["volumes"] if v["name"] == "ca-bundle"]
    assert volume["configMap"]["items"] == [{"key": "ca-bundle.crt", "path": "ca.crt"}]


@pytest.mark.parametrize(
    ("kind", "variable"), [("MLflow", "MLFLOW_TRACKING_URI"), ("WandB", "WANDB_BASE_URL"), ("TensorBoard", "")]
)
def test_a_trackers_server_is_named_where_it_is_used(kind: str, variable: str) -> None:
    """And only there."""
    named = {"MLFLOW_TRACKING_URI", "WANDB_BASE_URL"} & set(plain(trainer({"tracking": {"kind": kind}}, SITE)))
    assert named == ({variable} if variable else set())


def test_checkpoints_go_to_their_own_claim_or_to_the_outputs() -> None:
    """Writable, at the place that the trainer looks for claims."""
    for spec, claim in (
        ({"checkpoint": {"volumeClaimName": "saves"}}, "saves"),
        ({"output": {"uri": "s3://out/b"}, "checkpoint": {"volumeClaimName": "saves"}}, "saves"),
        ({}, "adapters"),
    ):
        mounts = {m["mountPath"]: m for m in trainer(spec)["volumeMounts"]}
        assert "readOnly" not in mounts[f"/claims/{claim}"]


def test_a_claim_that_is_only_read_is_attached_read_only() -> None:
    """A ReadOnlyMany claim can be attached in no other way; where the run writes too, the claim is attached once."""
    spec = {
        "model": {"uri": "pvc://shared/base"},
        "dataset": {"uri": "pvc://data/a.jsonl", "validationUri": "pvc://more/b.jsonl"},
        "output": {"uri": "pvc://shared/out"},
    }
    claims = [v["persistentVolumeClaim"] for v in pod_of(rendered(spec, CONFIG))["volumes"] if "claim" in v["name"]]
    assert claims == [
        {"claimName": "shared"},
        {"claimName": "data", "readOnly": True},
        {"claimName": "more", "readOnly": True},
    ]


def test_the_cache_is_the_namespaces_claim_where_one_is_configured() -> None:
    """Else a folder that dies with the pod."""
    volumes = {v["name"]: v for v in pod_of(rendered({}, SHARED))["volumes"]}
    assert volumes["cache"] == {"name": "cache", "persistentVolumeClaim": {"claimName": "models"}}
    assert {v["name"]: v for v in pod_of(rendered({}, CONFIG))["volumes"]}["cache"]["emptyDir"] == {}


def test_a_cache_claim_that_the_run_reads_from_too_is_one_volume_with_two_places() -> None:
    """Kubernetes may wait for ever for the second volume of one claim."""
    spec = {"model": {"uri": "pvc://models/base"}}
    job = rendered(spec, SHARED)
    claims = [v for v in pod_of(job)["volumes"] if v.get("persistentVolumeClaim", {}).get("claimName") == "models"]
    assert claims == [{"name": "claim-0", "persistentVolumeClaim": {"claimName": "models"}}]
    mounts = [m for m in container(job)["volumeMounts"] if m["name"] == "claim-0"]
    assert mounts == [
        {"name": "claim-0", "mountPath": "/cache"},
        {"name": "claim-0", "mountPath": "/claims/models", "readOnly": True},
    ]


def test_held_out_rows_in_a_config_map_are_mounted_too() -> None:
    """In one volume with the others where it is the same ConfigMap."""
    for validation, volumes in (("configmap://chats/b.jsonl", 1), ("configmap://more/b.jsonl", 2)):
        spec = {"dataset": {"uri": "configmap://chats/a.jsonl", "validationUri": validation}}
        job = rendered(spec, CONFIG)
        mounts = [m["mountPath"] for m in container(job)["volumeMounts"] if m["mountPath"].startswith("/configmaps")]
        keys = [i["key"] for v in pod_of(job)["volumes"] for i in v.get("configMap", {}).get("items", [])]
        assert (len(mounts), keys) == (volumes, ["a.jsonl", "b.jsonl"])


def test_a_chat_template_in_a_config_map_is_mounted_and_a_built_in_one_is_not() -> None:
    """Beside both sets of rows, in a volume of its own where the ConfigMap is another one."""
    data = {"uri": "configmap://chats/a.jsonl", "validationUri": "configmap://held/b.jsonl"}
    for template, names in (
        ("ChatML", ["chats", "held"]),
        ("configmap://held/chat.jinja", ["chats", "held"]),
        ("configmap://templates/chat.jinja", ["chats", "held", "templates"]),
    ):
        job = rendered({"dataset": {**data, "chatTemplate": template}}, CONFIG)
        volumes = [volume for volume in pod_of(job)["volumes"] if "configMap" in volume]
        assert [volume["configMap"]["name"] for volume in volumes] == names
        assert len({volume["name"] for volume in volumes}) == len(names)
        keys = [item["key"] for volume in volumes for item in volume["configMap"]["items"]]
        assert ("chat.jinja" in keys) is template.startswith("configmap://")


def test_shared_memory_has_the_size_that_was_asked_for() -> None:
    """A quantity, in memory."""
    for spec, size in (({}, "1Gi"), ({"resources": {"sharedMemory": "8Gi"}}, "8Gi")):
        volumes = {v["name"]: v for v in pod_of(rendered(spec, CONFIG))["volumes"]}
        assert volumes["shared-memory"]["emptyDir"] == {"medium": "Memory", "sizeLimit": size}


def test_what_is_compiled_on_a_node_has_a_bounded_place_to_itself() -> None:
    """In pods that train alone; other temporary files have no limit, since a result may grow among them."""
    pods = [pod_of(rendered({}, CONFIG)), pod_of(looking({}))]
    training, other = ({v["name"]: v.get("emptyDir") for v in pod["volumes"]} for pod in pods)
    assert (training["compiled"], training["tmp"]) == ({"sizeLimit": "4Gi"}, {})
    assert "compiled" not in other
    assert {"name": "compiled", "mountPath": "/compiled"} in trainer({})["volumeMounts"]
    assert int(COMPILED["CUDA_CACHE_MAXSIZE"]) < 4 * 2**30


def test_the_acceptance_of_a_gpu_compiles_where_a_training_does() -> None:
    """With the same variables, volume and place: else it would prove another pod."""
    example = Path(__file__).parents[2] / "examples/gpu-acceptance.yaml"
    found = []
    for job in (yaml.safe_load(example.read_text(encoding="utf-8")), rendered({}, CONFIG)):
        volumes = [volume for volume in pod_of(job)["volumes"] if volume["name"] == "compiled"]
        mounts = [mount for mount in container(job)["volumeMounts"] if mount["name"] == "compiled"]
        found.append((plain(container(job)).items() & COMPILED.items(), volumes, mounts))
    assert found[0] == found[1]
    assert all(found[0])


def test_several_nodes_are_one_indexed_job_whose_pods_find_each_other_by_name() -> None:
    """Completions, parallelism, subdomain, Service and meeting point belong together."""
    finetune, _, train = understood(FULL, SITE)
    service = render_service(finetune, train)
    job = rendered(FULL, SITE)
    name = job["metadata"]["name"]
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (2, 2)
    assert job["spec"]["completionMode"] == "Indexed"
    assert job["spec"]["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}
    assert pod_of(job)["subdomain"] == service["metadata"]["name"] == name
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert plain(container(job))["LORA_RENDEZVOUS"] == f"{name}-0.{name}:29400"
    assert container(job)["resources"]["limits"]["nvidia.com/gpu"] == "4"


def test_one_node_has_neither_service_nor_meeting_point() -> None:
    """It needs none."""
    kinds = [obj["kind"] for obj in everything({}, CONFIG)]
    assert kinds == ["Job", "Job"], "of preflight and training"
    assert "LORA_RENDEZVOUS" not in plain(trainer({}))
    assert "subdomain" not in pod_of(rendered({}, CONFIG))
    assert not {"successPolicy", "backoffLimitPerIndex"} & set(rendered({}, CONFIG)["spec"])


@pytest.mark.parametrize(("retries", "nodes", "limit"), [(3, 1, 3), (3, 4, 12), (0, 4, 0)])
def test_a_failure_of_several_nodes_together_counts_as_one(retries: int, nodes: int, limit: int) -> None:
    """Each of the pods fails, and each counts for the Job."""
    spec = {"maxRetries": retries, "resources": {"nodes": nodes}}
    assert rendered(spec, CONFIG)["spec"]["backoffLimit"] == limit


def test_each_node_waits_by_its_own_failures_for_its_next_pod() -> None:
    """By those of all, the first round of eight nodes would cost ten minutes. No number of them ends the run."""
    assert rendered({"resources": {"nodes": 8}}, CONFIG)["spec"]["backoffLimitPerIndex"] == 2**31 - 1


def test_the_pod_of_the_preflight_asks_for_no_gpu_and_for_little_else() -> None:
    """Small, in an image of its own, on one node, without a probe."""
    job = looking(FULL, SITE)
    found = container(job)
    assert found["args"] == ["preflight", "--config", "/etc/lora/config.json", "--fill-cache"]
    assert container(looking({}, CONFIG))["args"] == ["preflight", "--config", "/etc/lora/config.json"]
    assert "--fill-cache" not in trainer(FULL, SITE)["args"]
    assert found["resources"] == {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "1Gi"}}
    assert not {"livenessProbe", "ports"} & set(found)
    assert found["image"] == "registry.example/lora-preflight:1.0"
    assert container(looking({}))["image"] == CONFIG.trainer_image, "where it has none of its own"
    assert (job["spec"]["completions"], job["spec"]["parallelism"], job["spec"]["backoffLimit"]) == (1, 1, 1)
    assert job["metadata"]["name"] == f"{job_name()}-preflight"
    assert job["metadata"]["labels"]["lora-operator.io/role"] == "preflight"
    assert job["spec"]["template"]["metadata"]["labels"]["lora-operator.io/role"] == "preflight"


def test_the_pod_of_the_preflight_gets_no_claim_to_write_to_but_the_cache() -> None:
    """It may run on another node, and a claim that waits for its first pod would be bound there."""
    spec = {"dataset": {"uri": "pvc://data/a.jsonl"}, "checkpoint": {"volumeClaimName": "saves"}}
    claims = [v["persistentVolumeClaim"] for v in pod_of(looking(spec))["volumes"] if "persistentVolumeClaim" in v]
    assert claims == [{"claimName": "models"}, {"claimName": "data", "readOnly": True}]


def test_a_queued_preflight_waits_for_the_queue_like_the_one_that_trains() -> None:
    """A queue that manages every Job would suspend one without its label for ever."""
    finetune, request, train = understood({}, SHARED, labels={"kueue.x-k8s.io/queue-name": "gpus"})
    job = render_job(finetune, request, train, SHARED, stage="preflight", shape=PREFLIGHT_SHAPE)
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert job["spec"]["suspend"] is True


def test_the_kubelet_asks_the_trainer_whether_it_lives() -> None:
    """At the port where it also answers with its progress."""
    found = trainer({})
    assert found["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "metrics"}
    assert found["ports"] == [{"name": "metrics", "containerPort": 9090}]


NODES: list[tuple[dict[str, Any], list[dict[str, Any]] | None]] = [
    ({}, None),
    ({"gpus": 1}, None),
    ({"gpuMinMemoryGiB": 24}, [{"key": "nvidia.com/gpu.memory", "operator": "Gt", "values": ["22609"]}]),
    (
        {"gpuProducts": ["NVIDIA-L4", "NVIDIA-A10"]},
        [{"key": "nvidia.com/gpu.product", "operator": "In", "values": ["NVIDIA-L4", "NVIDIA-A10"]}],
    ),
    (
        {"gpuMinMemoryGiB": 40, "gpuProducts": ["NVIDIA-L40S"]},
        [
            {"key": "nvidia.com/gpu.memory", "operator": "Gt", "values": ["37683"]},
            {"key": "nvidia.com/gpu.product", "operator": "In", "values": ["NVIDIA-L40S"]},
        ],
    ),
]


@pytest.mark.parametrize(("resources", "wanted"), NODES, ids=[str(list(resources)) for resources, _ in NODES])
def test_a_training_goes_only_to_nodes_whose_gpus_are_large_enough(resources: Any, wanted: Any) -> None:
    """By the labels of GPU feature discovery, all of them on one node; what looks without a claim goes anywhere."""
    spec = {"resources": resources}
    affinity = pod_of(rendered(spec, CONFIG)).get("affinity")
    terms = {"nodeSelectorTerms": [{"matchExpressions": wanted}]}
    asked = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
    assert affinity == (None if wanted is None else asked)
    assert "affinity" not in pod_of(looking({**MAPPED, **spec}, CONFIG))
    if wanted is not None:
        assert pod_of(looking(spec, SHARED))["affinity"] == asked


TEAM = {"key": "team", "operator": "Equal", "value": "a", "effect": "NoSchedule"}
GPUS = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
LINUX = {"kubernetes.io/os": "linux"}
LABELS = {"pool": "a100", "kubernetes.io/arch": "amd64", **LINUX}
SCHEDULED = {"scheduling": {"nodeSelector": {"pool": "a100", "kubernetes.io/arch": "amd64"}, "tolerations": [TEAM]}}
ON_CLAIM = {"dataset": {"uri": "pvc://data/a.jsonl"}}
MAPPED = {"dataset": {"uri": "configmap://data/a.jsonl"}}
NEAR = {"matchExpressions": [{"key": "nvidia.com/gpu.memory", "operator": "Exists"}]}
PREFERRED = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": NEAR}]}}
PLACES: dict[str, tuple[dict[str, Any], OperatorConfig, dict[str, Any]]] = {
    "anywhere": (MAPPED, CONFIG, {"nodeSelector": LINUX}),
    "on another system if the run says so": (
        {**MAPPED, "scheduling": {"nodeSelector": {"kubernetes.io/os": "other"}}},
        CONFIG,
        {"nodeSelector": {"kubernetes.io/os": "other"}},
    ),
    "without a claim where its image runs": (
        {**MAPPED, **SCHEDULED},
        CONFIG,
        {"nodeSelector": {"kubernetes.io/arch": "amd64", **LINUX}, "tolerations": [TEAM]},
    ),
    "with the data's claim where the training may go": (
        {**ON_CLAIM, **SCHEDULED},
        CONFIG,
        {"nodeSelector": LABELS, "affinity": PREFERRED, "tolerations": [TEAM, GPUS]},
    ),
    "with the cache's claim near GPUs": (
        MAPPED,
        SHARED,
        {"nodeSelector": LINUX, "affinity": PREFERRED, "tolerations": [GPUS]},
    ),
    "with a claim and GPUs of another maker": (
        {**ON_CLAIM, "resources": {"gpuResourceName": "amd.com/gpu"}},
        CONFIG,
        {"nodeSelector": LINUX, "affinity": PREFERRED, "tolerations": [{**GPUS, "key": "amd.com/gpu"}]},
    ),
    "with a claim and no GPU": (
        {**ON_CLAIM, **SCHEDULED, "resources": {"gpus": 0}},
        SHARED,
        {"nodeSelector": LABELS, "tolerations": [TEAM]},
    ),
    "a toleration of its own once": (
        {**ON_CLAIM, "scheduling": {"tolerations": [GPUS]}},
        CONFIG,
        {"nodeSelector": LINUX, "affinity": PREFERRED, "tolerations": [GPUS]},
    ),
    "where the operator's configuration says": (
        {**ON_CLAIM, **SCHEDULED},
        dataclasses.replace(SHARED, preflight_node_selector={"pool": "small"}, preflight_tolerations=(GPUS,)),
        {"nodeSelector": {"pool": "small", **LINUX}, "tolerations": [TEAM, GPUS]},
    ),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_preflight_that_mounts_a_claim_goes_where_the_training_can_follow(name: str) -> None:
    """A claim that waits for its first pod is bound there, and must not be out of reach of the GPUs."""
    spec, config, expected = PLACES[name]
    pod = pod_of(looking(spec, config))
    fields = ("nodeSelector", "affinity", "tolerations")
    assert {key: pod[key] for key in fields if key in pod} == expected
