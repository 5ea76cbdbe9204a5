"""Bad values: refused before anything is installed, with the value's path and the remedy."""

from typing import Any

import pytest
import yaml
from tests.chart.matrix import DASHBOARDS, MONITOR, NETWORK, POLICIES, RULES, merged
from tests.chart.target import CHART
from tests.chart.test_values_schema import VALUES_SCHEMA, objects_in

from lora_operator.model.config import CHECKS, ORDERED, OperatorConfig, yaml_name

CLUSTER = ("--api-versions=apps/v1/Deployment",)
"""What Helm knows of a real cluster: kinds, and none but the built-in ones that are named."""


def refusal(helm: Any, values: dict[str, Any], *flags: str) -> str:
    """What Helm says of values that it must refuse."""
    done = helm.template(values, *flags)
    assert done.returncode != 0
    assert done.stdout == ""
    return str(done.stderr)


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"networkPolicy": {"enable": True}}, "enable"),
        ({"networkPolicy": {"enabled": "yes"}}, "enabled"),
        ({"networkPolicy": {"apiServerCIDRs": ["10.0.0.1"]}}, "apiServerCIDRs"),
        ({"networkPolicy": {"apiServerPorts": [0]}}, "apiServerPorts"),
        ({"networkPolicy": {"blockedCIDRs": ["0.0.0.0/0"]}}, "blockedCIDRs"),
        ({"networkPolicy": {"prometheusNamespaces": "monitoring"}}, "prometheusNamespaces"),
        ({"policies": {"modelPrefixes": ["hf:acme"]}}, "modelPrefixes"),
        ({"policies": {"modelPrefixes": ["oci://registry/"]}}, "modelPrefixes"),
        ({"policies": {"outputPrefixes": ["pvc://a b/"]}}, "outputPrefixes"),
        ({"policies": {"mostGPUs": -1}}, "mostGPUs"),
        ({"policies": {"mostGPUs": "8"}}, "mostGPUs"),
        ({"policies": {"contact": "two\nlines"}}, "contact"),
        ({"policies": {"requireQueue": "team-queue"}}, "requireQueue"),
        ({"metrics": {"podMonitor": {"interval": "15"}}}, "interval"),
        ({"defaults": {"memoryPerGPU": "48"}}, "memoryPerGPU"),
        ({"defaults": {"memoryPerGPU": "500m"}}, "memoryPerGPU"),
        ({"config": {"preflightMemory": "0Gi"}}, "preflightMemory"),
        ({"image": {"repository": "registry:5000/operator:0.1.0"}}, "/image/repository"),
        ({"trainer": {"image": {"repository": "trainer:0.1.0"}}}, "/trainer/image/repository"),
        ({"preflight": {"image": {"repository": "r/preflight:0.1.0"}}}, "/preflight/image/repository"),
        ({"enabled": False}, "/enabled"),
        ({"podLabels": {"app.kubernetes.io/instance": "other"}}, "/podLabels/app.kubernetes.io~1instance"),
        ({"podAnnotations": {"checksum/config": "none"}}, "/podAnnotations/checksum~1config"),
        ({"nameOverride": "A b"}, "/nameOverride"),
        ({"fullnameOverride": "A_b"}, "/fullnameOverride"),
    ],
)
def test_an_impossible_value_is_named(helm: Any, values: dict[str, Any], path: str) -> None:
    """By the schema, with the value's path."""
    assert path in refusal(helm, values)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"networkPolicy": {"enabled": True}}, "networkPolicy.apiServerCIDRs is empty: with networkPolicy.enabled"),
        (
            {"networkPolicy": {**NETWORK, "prometheusNamespaces": []}, "metrics": {"podMonitor": MONITOR}},
            "networkPolicy.prometheusNamespaces is empty: with networkPolicy.enabled",
        ),
        ({"policies": {"enabled": True, "contact": "me"}}, "policies.enabled is true and there is no rule: set"),
        (
            {"defaults": {"environment": {"HTTPS_PROXY": "user:pass@proxy:3128"}}},
            "defaults.environment.HTTPS_PROXY has a user, token or password",
        ),
        (
            {"defaults": {"environment": {"HTTP_PROXY": "http://TOKEN@proxy:3128"}}},
            "defaults.environment.HTTP_PROXY has a user, token or password",
        ),
        (
            {"policies": {**POLICIES, "contact": ""}},
            "policies.contact is empty: a run that is refused says whom to ask",
        ),
        (
            {"metrics": {"service": {"enabled": False}, "serviceMonitor": MONITOR}},
            "metrics.serviceMonitor.enabled needs metrics.service.enabled",
        ),
        (
            {"metrics": {"prometheusRule": RULES, "podMonitor": {**MONITOR, "interval": "3m"}}},
            "metrics.podMonitor.interval is 3m: must be 2m at most with metrics.prometheusRule.enabled",
        ),
        (
            {"metrics": {"prometheusRule": RULES, "serviceMonitor": {**MONITOR, "interval": "121s"}}},
            "metrics.serviceMonitor.interval is 121s: must be 2m at most",
        ),
    ],
)
def test_values_that_contradict_each_other_are_named_with_the_remedy(
    helm: Any, values: dict[str, Any], sentence: str
) -> None:
    """What the schema cannot see."""
    assert sentence in refusal(helm, values)


def test_scrapes_are_rare_where_no_alert_waits_for_them(helm: Any) -> None:
    """And every two minutes where some do."""
    rare, often = {**MONITOR, "interval": "10m"}, {**MONITOR, "interval": "120s"}
    assert helm.template({"metrics": {"podMonitor": rare}}).returncode == 0
    assert helm.template({"metrics": {"prometheusRule": RULES, "podMonitor": often}}).returncode == 0


@pytest.mark.parametrize(("shorter", "longer"), ORDERED)
def test_times_that_the_operator_refuses_never_replace_it(helm: Any, shorter: str, longer: str) -> None:
    """A new operator would end at once, and the old one would be gone. An unset time is the operator's own."""
    time = int(getattr(OperatorConfig(trainer_image="x"), shorter))
    said = refusal(helm, {"config": {yaml_name(longer): time}})
    assert f"config.{yaml_name(shorter)} is {time}: must be below config.{yaml_name(longer)}, which is {time}" in said
    assert helm.template({"config": {yaml_name(longer): None}}).returncode == 0


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "gpus": (
        {"config": {"gpus": [{"name": "NVIDIA-L4", "memoryGiB": 24}, {"name": "nvidia-l4", "memoryGiB": 23}]}},
        "config.gpus names nvidia-l4 twice: leave one of them out",
    ),
    "pod_annotations": (
        {"trainer": {"podAnnotations": {f"note-{number}": "\U0001d11e" * 256 for number in range(20)}}},
        "bytes: must have 16384 at most",
    ),
    "preflight_tolerations": ({"preflight": {"tolerations": [{"keys": "gpu"}]}}, "/preflight/tolerations/0"),
    "default_tolerations": ({"defaults": {"tolerations": [{"keys": "gpu"}]}}, "/defaults/tolerations/0"),
    "default_node_selector": ({"defaults": {"nodeSelector": {"pool": "x" * 64}}}, "/defaults/nodeSelector/pool"),
    "default_affinity": ({"defaults": {"affinity": {"nodes": {}}}}, "/defaults/affinity"),
    "default_ttl_s": ({"defaults": {"ttlSecondsAfterFinished": 31536001}}, "/defaults/ttlSecondsAfterFinished"),
    "default_cpu_per_gpu": ({"defaults": {"cpuPerGPU": "1" * 33}}, "/defaults/cpuPerGPU"),
    "default_memory_per_gpu": ({"defaults": {"memoryPerGPU": f"{'1' * 32}Gi"}}, "/defaults/memoryPerGPU"),
    "default_runtime_class_name": ({"defaults": {"runtimeClassName": "x" * 254}}, "/defaults/runtimeClassName"),
    "default_priority_class_name": ({"defaults": {"priorityClassName": "x" * 254}}, "/defaults/priorityClassName"),
    "default_queue": ({"defaults": {"queue": "x" * 254}}, "/defaults/queue"),
    "default_checkpoint_claim": ({"defaults": {"checkpointClaim": "x" * 254}}, "/defaults/checkpointClaim"),
    "cache_claim": ({"defaults": {"cacheClaim": "x" * 254}}, "/defaults/cacheClaim"),
    "default_environment": ({"defaults": {"environment": {"HF_TOKEN": "hf_x"}}}, "/defaults/environment"),
}


@pytest.mark.parametrize("setting", CHECKS)
def test_settings_that_the_operator_refuses_never_replace_it(helm: Any, setting: str) -> None:
    """The same for what has a rule of its own."""
    values, words = WRONG[setting]
    assert words in refusal(helm, values)


EVERYTHING: dict[str, Any] = {
    "replicas": 2,
    "watch": {"namespaces": ["team-a"]},
    "networkPolicy": NETWORK,
    "policies": POLICIES,
    "metrics": {
        "serviceMonitor": MONITOR,
        "podMonitor": MONITOR,
        "prometheusRule": RULES,
        "grafanaDashboard": DASHBOARDS,
    },
}
SECTIONS = [path for path, _ in objects_in(VALUES_SCHEMA) if path and "[]" not in path]


@pytest.mark.parametrize("path", [*SECTIONS, "watch.namespaces"])
def test_a_section_whose_lines_are_all_commented_out_renders_or_is_named(helm: Any, path: str) -> None:
    """To Helm it takes the defaults away."""
    values: dict[str, Any] | None = None
    for name in reversed(path.split(".")):
        values = {name: values}
    done = helm.template(merged(EVERYTHING, values or {}))
    assert "nil pointer" not in done.stderr
    assert done.returncode == 0 or f"missing property '{path.rpartition('.')[2]}'" in done.stderr


@pytest.mark.helms(3, 4)
def test_a_value_that_is_commented_out_needs_no_section_of_its_own(helm: Any) -> None:
    """Each Helm takes a missing section for an error, and a missing value for what the operator has by itself."""
    assert "missing property 'policies'" in refusal(helm, {"policies": None})
    settings = yaml.safe_load((CHART / "values.yaml").read_text())["config"]
    assert helm.template({"config": dict.fromkeys(settings)}).returncode == 0


@pytest.mark.helms(3, 4)
@pytest.mark.parametrize(
    ("values", "api"),
    [
        ({"metrics": {"serviceMonitor": MONITOR}}, "monitoring.coreos.com/v1/ServiceMonitor"),
        ({"metrics": {"podMonitor": MONITOR}}, "monitoring.coreos.com/v1/PodMonitor"),
        ({"metrics": {"prometheusRule": RULES}}, "monitoring.coreos.com/v1/PrometheusRule"),
        ({"networkPolicy": NETWORK}, "networking.k8s.io/v1/NetworkPolicy"),
        ({"policies": POLICIES}, "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy"),
    ],
)
def test_a_cluster_without_an_api_is_told_from_rendering_without_a_cluster(
    helm: Any, values: dict[str, Any], api: str
) -> None:
    """The switch, the missing API and what to do about it; `helm template` alone knows no cluster, and renders."""
    said = refusal(helm, values, *CLUSTER)
    assert f"enabled is true, and the cluster does not know {api}: " in said
    assert "enabled to false" in said
    assert helm.template(values, *CLUSTER, f"--api-versions={api}").returncode == 0
    assert helm.template(values).returncode == 0
