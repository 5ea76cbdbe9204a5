"""Bad values: refused before anything is installed, with the value's path and the remedy."""

from typing import Any

import pytest
from tests.chart.matrix import MONITOR, NETWORK, POLICIES, RULES

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
    ],
)
def test_values_that_contradict_each_other_are_named_with_the_remedy(
    helm: Any, values: dict[str, Any], sentence: str
) -> None:
    """What the schema cannot see."""
    assert sentence in refusal(helm, values)


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
