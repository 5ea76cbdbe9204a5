"""The chart as it renders, without a cluster."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.chart import helms
from tests.chart.objects import Render, only, pod_of, settings_of

from lora_operator.running.self_check import LEASE_RIGHTS
from lora_operator.views.config import OperatorConfig, load_config, yaml_name
from lora_trainer.contract.device_section import GpuSetting
from lora_trainer.contract.release import RELEASE

REPOSITORY = Path(__file__).resolve().parents[2]
CHART = REPOSITORY / "helm/lora-finetune-operator"
HELMS = helms.BOTH
SMALL_NODES: Any = {"nodeSelector": {"pool": "small"}, "tolerations": [{"key": "team", "operator": "Exists"}]}


def test_lint_is_clean_when_it_is_strict(helm: Any) -> None:
    """helm lint --strict finds nothing, with the default values."""
    out = helm.run("lint", "--strict", str(CHART))
    assert "1 chart(s) linted, 0 chart(s) failed" in out
    assert "[WARNING]" not in out


def test_default_values_render_the_operator_and_nothing_that_needs_other_operators(render: Render) -> None:
    """One Deployment with what it needs, in the namespace of the release."""
    objects = render()
    assert Counter(o["kind"] for o in objects) == {
        "CustomResourceDefinition": 1,
        "ServiceAccount": 1,
        "ClusterRole": 3,
        "ClusterRoleBinding": 1,
        "ConfigMap": 1,
        "Service": 1,
        "Deployment": 1,
    }
    cluster_wide = {"CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"}
    assert {o["metadata"].get("namespace") for o in objects if o["kind"] not in cluster_wide} == {"lora-system"}


def test_versions_are_those_of_the_package() -> None:
    """Chart and application are released together."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (RELEASE, RELEASE)


def test_the_pod_is_restricted(render: Render) -> None:
    """The pod keeps every rule of the restricted Pod Security Standard, and its root file system is read-only."""
    pod = pod_of(render())
    (container,) = pod["containers"]
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "runAsGroup": 10001,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {next(iter(set(volume) - {"name"})) for volume in pod["volumes"]} == {"configMap", "emptyDir"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)


def test_the_platform_may_choose_the_user(render: Render) -> None:
    """OpenShift assigns user ids and refuses fixed ones."""
    context = pod_of(render(securityContext={"runAsUser": None, "runAsGroup": None}))["securityContext"]
    assert set(context) == {"runAsNonRoot", "seccompProfile"}


def test_there_is_one_operator_that_is_replaced_and_probed(render: Render) -> None:
    """Two operators never overlap on purpose, and the kubelet asks both endpoints."""
    objects = render()
    spec = only(objects, "Deployment")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    (container,) = pod_of(objects)["containers"]
    probes = {name: container[name]["httpGet"] for name in ("livenessProbe", "readinessProbe", "startupProbe")}
    assert probes == {
        "livenessProbe": {"path": "/healthz", "port": "http"},
        "readinessProbe": {"path": "/readyz", "port": "http"},
        "startupProbe": {"path": "/healthz", "port": "http"},
    }
    assert container["ports"] == [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]
    paths = {env["name"]: env["valueFrom"]["fieldRef"]["fieldPath"] for env in container["env"]}
    assert paths == {"POD_NAME": "metadata.name", "POD_NAMESPACE": "metadata.namespace"}


def test_several_operators_elect_a_leader_and_are_spread_and_replaced_one_by_one(render: Render) -> None:
    """With replicas above 1: a Lease and the rights on it, a budget for drains, and an overlap in upgrades."""
    objects = render(replicas=2)
    deployment = only(objects, "Deployment")["spec"]
    assert deployment["replicas"] == 2
    assert deployment["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
    }
    settings = yaml.safe_load(settings_of(objects))
    lease = (settings["leaderElection"], settings["leaseNamespace"], settings["leaseName"])
    assert lease == (True, "lora-system", "lora")
    role = only(objects, "Role", "lora-leader-election")
    assert role["metadata"]["namespace"] == "lora-system"
    granted = {verb: rule.get("resourceNames") for rule in role["rules"] for verb in rule["verbs"]}
    assert granted == {"create": None, "get": ["lora"], "update": ["lora"]}
    assert set(granted) == {right.verb for right in LEASE_RIGHTS}
    assert only(objects, "RoleBinding", "lora-leader-election")["subjects"][0]["name"] == "lora"
    budget = only(objects, "PodDisruptionBudget")["spec"]
    (spread,) = pod_of(objects)["topologySpreadConstraints"]
    assert (budget["maxUnavailable"], spread["whenUnsatisfiable"]) == (1, "ScheduleAnyway")
    assert budget["selector"] == spread["labelSelector"] == deployment["selector"]


@pytest.mark.parametrize("replicas", [0, 1])
def test_one_operator_has_no_lease_and_needs_none(render: Render, replicas: int) -> None:
    """Nothing of the election is there, the right on Leases included."""
    objects = render(replicas=replicas)
    assert only(objects, "Deployment")["spec"]["replicas"] == replicas
    assert yaml.safe_load(settings_of(objects))["leaderElection"] is False
    assert not [o for o in objects if o["kind"] in ("Role", "RoleBinding", "PodDisruptionBudget")]
    assert "topologySpreadConstraints" not in pod_of(objects)


def test_durations_of_the_election_that_contradict_each_other_are_refused(helm: Any) -> None:
    """Which value, which rule, and the other value; a leader must stop before its Lease runs out."""
    done = helm.template({"config": {"renewDeadlineSeconds": 15}})
    assert done.returncode != 0
    assert "config.renewDeadlineSeconds is 15: must be below config.leaseDurationSeconds, which is 15" in done.stderr


def test_labels_select_the_pod(render: Render) -> None:
    """The Deployment and the Service find the pod, and own labels do not change the selector."""
    objects = render(podLabels={"team": "ml"})
    spec = only(objects, "Deployment")["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    assert only(objects, "Service")["spec"]["selector"] == spec["selector"]["matchLabels"]
    assert labels["team"] == "ml"
    assert "team" not in spec["selector"]["matchLabels"]


def test_the_definition_is_the_one_in_crds(helm: Any, render: Render) -> None:
    """Its spec stands in the chart byte for byte."""
    text = (REPOSITORY / "crds/lorafinetunes.yaml").read_text()
    spec = text[text.index("\nspec:") :]
    assert spec.rstrip() in helm.template({}).stdout
    assert only(render(), "CustomResourceDefinition")["spec"] == yaml.safe_load(text)["spec"]


def test_the_definition_is_kept_unless_told_otherwise(render: Render) -> None:
    """Deleting it would delete every LoRAFineTune, so helm uninstall leaves it."""
    keep = {"helm.sh/resource-policy": "keep"}
    assert only(render(), "CustomResourceDefinition")["metadata"]["annotations"] == keep
    assert "annotations" not in only(render(crds={"keep": False}), "CustomResourceDefinition")["metadata"]
    assert not [o for o in render(crds={"install": False}) if o["kind"] == "CustomResourceDefinition"]


def test_the_configuration_file_has_exactly_the_keys_of_the_operator(render: Render) -> None:
    """No setting is missing in the chart, and none is unknown to the operator."""
    names = {yaml_name(field.name) for field in fields(OperatorConfig)}
    assert set(yaml.safe_load(settings_of(render()))) == names


def test_the_operator_reads_what_the_chart_writes(render: Render, tmp_path: Path) -> None:
    """Values arrive in the operator's configuration, as the types that it wants."""
    objects = render(
        watch={"namespaces": ["team-a"]},
        imagePullSecrets=[{"name": "registry"}],
        trainer={"image": {"tag": "v1", "pullPolicy": "Always"}, "serviceAccountName": "trainer"},
        preflight={"image": {"repository": "registry.example.com/preflight"}, **SMALL_NODES},
        config={
            "hubEndpoint": "http://hub:8000",
            "allowCPU": True,
            "progressIntervalSeconds": 0.5,
            "offline": True,
            "s3Endpoint": "http://s3:7070",
            "s3Region": "eu-north-1",
            "httpsProxy": "http://proxy:3128",
            "httpProxy": "http://proxy:3129",
            "noProxy": ".svc,10.0.0.0/8",
            "caBundleConfigMap": "company-ca",
            "ociPlainHTTPRegistries": ["registry.registry.svc:5000"],
            "mlflowTrackingURI": "http://mlflow:5000",
            "wandbBaseURL": "https://wandb.example",
            "preflightCPU": "500m",
            "preflightMemory": "1Gi",
            "gpus": [{"name": "NVIDIA-A10G", "memoryGiB": 24, "pricePerHour": 1.2}],
            "requireRenderedImage": True,
            "stallTimeoutSeconds": 900,
            "mostUnfinishedRunsPerNamespace": 50,
            "runMetrics": False,
            "leaseDurationSeconds": 30,
            "renewDeadlineSeconds": 20,
            "retryPeriodSeconds": 5,
        },
        defaults={
            "gpuResourceName": "amd.com/gpu",
            "nodeSelector": {"pool": "gpus"},
            "tolerations": SMALL_NODES["tolerations"],
            "affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "rack"}]}},
            "runtimeClassName": "nvidia",
            "priorityClassName": "batch",
            "queue": "gpus",
            "ttlSecondsAfterFinished": 2592000,
            "cpuPerGPU": "4",
            "memoryPerGPU": "24Gi",
            "environment": {"NCCL_DEBUG": "WARN", "HTTPS_PROXY": "http://proxy:3128"},
            "checkpointClaim": "saves",
            "cacheClaim": "lora-cache",
        },
        replicas=2,
        logLevel="DEBUG",
        logFormat="text",
    )
    file = tmp_path / "config.yaml"
    file.write_text(settings_of(objects))
    assert load_config(file) == OperatorConfig(
        trainer_image="registry.example.com/trainer:v1",
        preflight_image="registry.example.com/preflight:v1",
        namespaces=("team-a",),
        image_pull_policy="Always",
        image_pull_secrets=("registry",),
        trainer_service_account_name="trainer",
        hub_endpoint="http://hub:8000",
        allow_cpu=True,
        default_cpu_per_gpu="4",
        default_memory_per_gpu="24Gi",
        default_gpu_resource_name="amd.com/gpu",
        default_node_selector={"pool": "gpus"},
        default_tolerations=tuple(SMALL_NODES["tolerations"]),
        default_affinity={"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "rack"}]}},
        default_runtime_class_name="nvidia",
        default_priority_class_name="batch",
        default_queue="gpus",
        default_ttl_s=2592000,
        default_environment={"NCCL_DEBUG": "WARN", "HTTPS_PROXY": "http://proxy:3128"},
        default_checkpoint_claim="saves",
        progress_interval_s=0.5,
        offline=True,
        s3_endpoint="http://s3:7070",
        s3_region="eu-north-1",
        https_proxy="http://proxy:3128",
        http_proxy="http://proxy:3129",
        no_proxy=".svc,10.0.0.0/8",
        ca_bundle_config_map="company-ca",
        oci_plain_http_registries=("registry.registry.svc:5000",),
        mlflow_tracking_uri="http://mlflow:5000",
        wandb_base_url="https://wandb.example",
        cache_claim="lora-cache",
        preflight_cpu="500m",
        preflight_memory="1Gi",
        preflight_node_selector=SMALL_NODES["nodeSelector"],
        preflight_tolerations=tuple(SMALL_NODES["tolerations"]),
        gpus=(GpuSetting(name="NVIDIA-A10G", memory_gib=24, price=1.2),),
        require_rendered_image=True,
        stall_timeout_s=900,
        most_unfinished_runs_per_namespace=50,
        run_metrics=False,
        leader_election=True,
        lease_name="lora",
        lease_namespace="lora-system",
        lease_duration_s=30,
        renew_deadline_s=20.0,
        retry_period_s=5.0,
        log_level="DEBUG",
        log_format="text",
    )


def test_the_earlier_names_of_defaults_are_read_once_more(render: Render, tmp_path: Path) -> None:
    """Whoever upgrades with the values of the last release keeps what they set; the new name counts where both are."""
    old = {"cacheClaim": "old", "defaultCPU": "3", "defaultMemory": "5Gi", "httpProxy": "http://proxy:3129"}
    file = tmp_path / "config.yaml"
    file.write_text(settings_of(render(config=old, defaults={"memoryPerGPU": "7Gi"})))
    found = load_config(file)
    assert (found.cache_claim, found.default_cpu, found.default_cpu_per_gpu) == ("old", "3", "")
    assert (found.default_memory, found.default_memory_per_gpu) == ("5Gi", "7Gi")
    assert found.http_proxy == "http://proxy:3129"
    file.write_text(settings_of(render(config=old, defaults={"cacheClaim": "new"})))
    assert load_config(file).cache_claim == "new"


def test_defaults_of_the_chart_are_those_of_the_operator(render: Render, tmp_path: Path) -> None:
    """Only the form of the log differs, which machines read in a cluster, and the Lease is named after the release."""
    file = tmp_path / "config.yaml"
    file.write_text(settings_of(render()))
    assert load_config(file) == OperatorConfig(
        trainer_image="registry.example.com/trainer:0.1.0",
        log_format="json",
        lease_name="lora",
        lease_namespace="lora-system",
    )


def test_the_pod_reads_the_configuration_file_from_where_it_is_mounted(render: Render) -> None:
    """The argument, the mount and the ConfigMap belong together."""
    objects = render()
    pod = pod_of(objects)
    (container,) = pod["containers"]
    assert container["args"] == ["--config", "/etc/lora-operator/config.yaml"]
    (mount,) = [m for m in container["volumeMounts"] if m["mountPath"] == "/etc/lora-operator"]
    (volume,) = [v for v in pod["volumes"] if v["name"] == mount["name"]]
    assert volume["configMap"]["name"] == only(objects, "ConfigMap")["metadata"]["name"]


def test_a_change_of_the_configuration_restarts_the_pod_and_nothing_else_does(render: Render) -> None:
    """The checksum follows the file, for instance the trainer's image, but not the operator's labels."""

    def checksum(**values: Any) -> str:
        template = only(render(**values), "Deployment")["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/config"])

    assert checksum() != checksum(config={"workers": 3})
    assert checksum() != checksum(trainer={"image": {"tag": "other"}})
    assert checksum() == checksum(podLabels={"team": "ml"})


@pytest.mark.parametrize(
    ("image", "reference"),
    [
        ({}, "registry.example.com/operator:0.1.0"),
        ({"tag": "v9"}, "registry.example.com/operator:v9"),
        ({"tag": "v9", "digest": f"sha256:{'a' * 64}"}, f"registry.example.com/operator@sha256:{'a' * 64}"),
    ],
)
def test_a_digest_wins_over_a_tag_and_a_tag_over_the_version(
    render: Render, image: dict[str, str], reference: str
) -> None:
    """The three ways to name an image."""
    assert pod_of(render(image=image))["containers"][0]["image"] == reference


@pytest.mark.parametrize("field", ["image", "trainer.image"])
def test_an_image_without_repository_is_asked_for_by_name(helm: Any, field: str) -> None:
    """Nothing is published, so the chart says which value to set instead of failing to pull."""
    values: dict[str, Any] = {"repository": ""}
    for part in reversed(field.split(".")):
        values = {part: values}
    done = helm.template(values)
    assert done.returncode != 0
    assert f"{field}.repository must be set" in done.stderr


def test_monitors_are_rendered_on_demand_with_the_labels_that_prometheus_selects(render: Render) -> None:
    """One for the operator, one for the training pods of the watched namespaces."""
    on = {"enabled": True, "additionalLabels": {"release": "prometheus"}}
    objects = render(metrics={"serviceMonitor": on, "podMonitor": on}, watch={"namespaces": ["team-a"]})
    service, pods = only(objects, "ServiceMonitor"), only(objects, "PodMonitor")
    assert service["metadata"]["labels"]["release"] == pods["metadata"]["labels"]["release"] == "prometheus"
    labels = only(objects, "Service")["metadata"]["labels"]
    assert service["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert service["spec"]["endpoints"][0]["port"] == only(objects, "Service")["spec"]["ports"][0]["name"]
    assert pods["spec"]["selector"]["matchLabels"] == {"app.kubernetes.io/name": "lora-trainer"}
    assert pods["spec"]["podMetricsEndpoints"][0]["port"] == "metrics"
    assert pods["spec"]["namespaceSelector"] == {"matchNames": ["team-a"]}


def test_a_service_monitor_without_service_is_refused(helm: Any) -> None:
    """It would find no target, in silence."""
    done = helm.template({"metrics": {"service": {"enabled": False}, "serviceMonitor": {"enabled": True}}})
    assert done.returncode != 0
    assert "metrics.serviceMonitor.enabled needs metrics.service.enabled" in done.stderr


def test_extra_objects_are_templates(render: Render) -> None:
    """They may use the release's name and the values."""
    extra = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "{{ .Release.Name }}-token"}}
    assert only(render(extraObjects=[extra]), "Secret")["metadata"]["name"] == "lora-token"


def test_pull_secrets_reach_the_operator_and_the_training_pods(render: Render) -> None:
    """One value for both."""
    objects = render(imagePullSecrets=[{"name": "registry"}])
    assert pod_of(objects)["imagePullSecrets"] == [{"name": "registry"}]
    assert yaml.safe_load(settings_of(objects))["imagePullSecrets"] == ["registry"]


def objects_in(schema: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every object of a JSON schema with its path."""
    if "properties" in schema:
        yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from objects_in(inner, f"{path}.{name}".lstrip("."))
    if "items" in schema:
        yield from objects_in(schema["items"], f"{path}[]")


VALUES_SCHEMA = json.loads((CHART / "values.schema.json").read_text())


def test_the_schema_knows_every_key_at_every_level() -> None:
    """A misspelt value is an error, wherever it stands."""
    levels = dict(objects_in(VALUES_SCHEMA))
    assert len(levels) > 15
    assert not [path for path, schema in levels.items() if schema["additionalProperties"] is not False]


def test_a_misspelt_value_is_refused_by_name(helm: Any) -> None:
    """Helm checks the values against the schema."""
    done = helm.template({"config": {"hubEndpiont": "http://hub"}})
    assert done.returncode != 0
    assert "hubEndpiont" in done.stderr


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"logLevel": "TRACE"}, "logLevel"),
        ({"config": {"hubEndpoint": "hub:8000"}}, "hubEndpoint"),
        ({"config": {"defaultMemory": "lots"}}, "defaultMemory"),
        ({"config": {"s3Endpoint": "s3:7070"}}, "s3Endpoint"),
        ({"defaults": {"memoryPerGPU": "lots"}}, "memoryPerGPU"),
        ({"defaults": {"tolerance": []}}, "tolerance"),
        ({"defaults": {"tolerations": [{"keys": "gpu"}]}}, "keys"),
        ({"defaults": {"affinity": {"nodes": {}}}}, "nodes"),
        ({"defaults": {"environment": {"HF_TOKEN": "hf_x"}}}, "HF_TOKEN"),
        ({"defaults": {"environment": {"UCX_TLS": "http://me:secret@host"}}}, "UCX_TLS"),
        ({"defaults": {"ttlSecondsAfterFinished": 0}}, "ttlSecondsAfterFinished"),
        ({"config": {"cacheClaim": "pvc://models"}}, "cacheClaim"),
        ({"config": {"ociPlainHTTPRegistries": ["http://registry:5000"]}}, "ociPlainHTTPRegistries"),
        ({"config": {"stallTimeoutSeconds": 0}}, "stallTimeoutSeconds"),
        ({"config": {"leaseDurationSeconds": 0}}, "leaseDurationSeconds"),
        ({"config": {"mostUnfinishedRunsPerNamespace": -1}}, "mostUnfinishedRunsPerNamespace"),
        ({"config": {"gpus": [{"name": "NVIDIA-L4", "memoryGiB": 0}]}}, "memoryGiB"),
        ({"config": {"gpus": [{"name": "NVIDIA-L4"}]}}, "memoryGiB"),
        ({"replicas": -1}, "replicas"),
        ({"replicas": 2.5}, "replicas"),
        ({"config": {"progressIntervalSeconds": 0}}, "progressIntervalSeconds"),
        ({"watch": {"namespaces": ["Team A"]}}, "namespaces"),
        ({"image": {"digest": "sha256:short"}}, "digest"),
    ],
)
def test_a_bad_value_is_refused_by_name(helm: Any, values: dict[str, Any], field: str) -> None:
    """What the operator or the API server would refuse later, Helm refuses first."""
    done = helm.template(values)
    assert done.returncode != 0
    assert field in done.stderr
