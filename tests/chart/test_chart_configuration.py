"""The operator's configuration file, as the chart writes and the operator reads it."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.chart.objects import Render, only, pod_of, settings_of
from tests.chart.target import CHART

from lora_operator.model.config import OperatorConfig, load_config, yaml_name
from lora_trainer.spec.device_section import GpuSetting

VERSION = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
DIGEST = f"sha256:{'a' * 64}"
SMALL_NODES: Any = {"nodeSelector": {"pool": "small"}, "tolerations": [{"key": "team", "operator": "Exists"}]}


def test_the_configuration_file_has_exactly_the_keys_of_the_operator(render: Render) -> None:
    """No setting is missing in the chart, and none is unknown to the operator."""
    names = {yaml_name(field.name) for field in fields(OperatorConfig)}
    assert set(yaml.safe_load(settings_of(render()))) == names


def test_the_operator_reads_what_the_chart_writes(render: Render, tmp_path: Path) -> None:
    """Values arrive in the operator's configuration, as the types that it wants."""
    objects = render(
        watch={"namespaces": ["team-a"]},
        imagePullSecrets=[{"name": "registry"}],
        trainer={
            "image": {"tag": "v1", "pullPolicy": "Always"},
            "serviceAccountName": "trainer",
            "securityContext": {"runAsUser": 2000, "runAsGroup": None},
            "podAnnotations": {"karpenter.sh/do-not-disrupt": None, "sidecar.istio.io/inject": "false"},
        },
        preflight={"image": {"repository": "registry.example.com/preflight"}, **SMALL_NODES},
        config={
            "hubEndpoint": "http://hub:8000",
            "allowCPU": True,
            "progressIntervalSeconds": 0.5,
            "offline": True,
            "s3Endpoint": "http://s3:7070",
            "s3Region": "eu-north-1",
            "caBundleConfigMap": "company-ca",
            "caBundleKey": "ca-bundle.crt",
            "ociPlainHTTPRegistries": ["registry.registry.svc:5000"],
            "mlflowTrackingURI": "http://mlflow:5000",
            "wandbBaseURL": "https://wandb.example",
            "preflightCPU": "500m",
            "preflightMemory": "1Gi",
            "gpus": [{"name": "NVIDIA-A10G", "memoryGiB": 24, "pricePerHour": 1.2}],
            "requireRenderedImage": True,
            "stallTimeoutSeconds": 900,
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
        ca_bundle_config_map="company-ca",
        ca_bundle_key="ca-bundle.crt",
        oci_plain_http_registries=("registry.registry.svc:5000",),
        mlflow_tracking_uri="http://mlflow:5000",
        wandb_base_url="https://wandb.example",
        cache_claim="lora-cache",
        preflight_cpu="500m",
        preflight_memory="1Gi",
        preflight_node_selector=SMALL_NODES["nodeSelector"],
        preflight_tolerations=tuple(SMALL_NODES["tolerations"]),
        run_as_user=2000,
        run_as_group=0,
        pod_annotations={
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
            "sidecar.istio.io/inject": "false",
        },
        gpus=(GpuSetting(name="NVIDIA-A10G", memory_gib=24, price=1.2),),
        require_rendered_image=True,
        stall_timeout_s=900,
        run_metrics=False,
        lease_name="lora",
        lease_namespace="lora-system",
        lease_duration_s=30,
        renew_deadline_s=20.0,
        retry_period_s=5.0,
        log_level="DEBUG",
        log_format="text",
    )


@pytest.mark.parametrize(
    ("trainer", "preflight", "image"),
    [
        (
            {"repository": "registry.example.com/ml/lora-trainer"},
            {},
            f"registry.example.com/ml/lora-preflight:{VERSION}",
        ),
        ({"repository": "lora-trainer", "tag": "v1-cuda12"}, {}, "lora-preflight:v1"),
        ({"repository": "r/lora-trainer", "digest": DIGEST}, {"tag": "v2"}, "r/lora-preflight:v2"),
        ({"repository": "r/lora-trainer"}, {"repository": "r/lora-trainer"}, f"r/lora-trainer:{VERSION}"),
        ({"repository": "r/lora-trainer"}, {"repository": "r/small", "digest": DIGEST}, f"r/small@{DIGEST}"),
        ({"repository": "r/our-lora-trainer"}, {}, ""),
        ({"repository": "r/lora-trainer/ours"}, {}, ""),
    ],
)
def test_a_preflight_takes_the_small_image_beside_the_trainers(
    trainer: dict[str, str], preflight: dict[str, str], image: str, render: Render
) -> None:
    """Where the trainer's has another name, nobody knows that of the small one: the operator takes the trainer's."""
    settings = yaml.safe_load(settings_of(render(trainer={"image": trainer}, preflight={"image": preflight})))
    assert settings["preflightImage"] == image


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


def test_a_null_is_as_if_the_value_were_not_there(render: Render, tmp_path: Path) -> None:
    """As Helm takes it: a key whose lines are commented out, or one that is to have the chart's default again."""
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())["defaults"]
    file = tmp_path / "config.yaml"
    file.write_text(settings_of(render()))
    plain = load_config(file)
    nulls: dict[str, Any] = {"logLevel": None, "logFormat": None, "defaults": dict.fromkeys(defaults)}
    nulls |= {"preflight": {"nodeSelector": None, "tolerations": None}}
    nulls |= {"trainer": {"image": {"pullPolicy": None}, "serviceAccountName": None, "podAnnotations": None}}
    file.write_text(settings_of(render(**nulls)))
    assert replace(load_config(file), log_format=plain.log_format) == plain


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
