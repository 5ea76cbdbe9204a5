"""The chart as it renders, without a cluster."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.chart.matrix import IMAGES
from tests.chart.objects import Render, only, parsed, pod_of, pods_of, settings_of

from lora_operator.controller.checks import LEASE_RIGHTS
from lora_trainer.spec.release import RELEASE

REPOSITORY = Path(__file__).resolve().parents[2]
CHART = REPOSITORY / "helm/lora-finetune-operator"


@pytest.mark.helms(3, 4)
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
        "Role": 1,
        "RoleBinding": 1,
        "ConfigMap": 1,
        "Service": 1,
        "Deployment": 1,
        "PodDisruptionBudget": 1,
    }
    cluster_wide = {"CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"}
    assert {o["metadata"].get("namespace") for o in objects if o["kind"] not in cluster_wide} == {"lora-system"}


@pytest.mark.parametrize("release", ["a" * 53, "lora" + "a" * 49])
def test_a_release_with_the_longest_name_has_names_that_kubernetes_takes(helm: Any, release: str) -> None:
    """With whatever the chart adds: 63 characters for what becomes a label or a host's name, 253 for the rest."""
    metrics = {name: {"enabled": True} for name in ("serviceMonitor", "podMonitor", "grafanaDashboard")}
    rules = {"enabled": True, "runbookURL": "https://git.example.com"}
    values = {**IMAGES, "metrics": {**metrics, "prometheusRule": rules}, "replicas": 2, "watch": {"namespaces": ["a"]}}
    command = ("template", release, str(CHART), "--kube-version=1.31.0", "--values=-")
    objects = parsed(helm.run(*command, stdin=yaml.safe_dump(values)))
    assert len(objects) > 15
    for o in objects:
        longest = 63 if o["kind"] in ("Service", "Job", "Deployment") else 253
        assert len(o["metadata"]["name"]) <= longest, o["metadata"]["name"]
        template = o["spec"].get("template", {}).get("metadata", {}) if o["kind"] in ("Job", "Deployment") else {}
        labels = {**o["metadata"].get("labels", {}), **template.get("labels", {})}
        assert [value for value in labels.values() if len(value) > 63] == []


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


def test_the_pods_of_the_chart_go_to_linux_nodes_unless_told_otherwise(render: Render, hooks: Render) -> None:
    """A Windows node, or one of another architecture, cannot start the image."""
    for given, wanted in (
        ({}, {"kubernetes.io/os": "linux"}),
        ({"kubernetes.io/arch": "arm64"}, {"kubernetes.io/os": "linux", "kubernetes.io/arch": "arm64"}),
        ({"kubernetes.io/os": "other"}, {"kubernetes.io/os": "other"}),
    ):
        pods = pods_of([*render(nodeSelector=given), *hooks(nodeSelector=given)])
        assert [pod["nodeSelector"] for pod in pods] == [wanted, wanted]


def test_the_platform_may_choose_the_user(render: Render) -> None:
    """OpenShift assigns user ids and refuses fixed ones."""
    context = pod_of(render(securityContext={"runAsUser": None, "runAsGroup": None}))["securityContext"]
    assert set(context) == {"runAsNonRoot", "seccompProfile"}


def test_there_is_one_operator_that_is_probed(render: Render) -> None:
    """The kubelet asks both endpoints."""
    objects = render()
    assert only(objects, "Deployment")["spec"]["replicas"] == 1
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


@pytest.mark.parametrize("replicas", [0, 1, 2])
def test_operators_have_a_lease_and_are_spread_and_replaced_one_by_one(render: Render, replicas: int) -> None:
    """One, too: a Lease and the rights on it, a budget for drains, and an overlap in upgrades."""
    objects = render(replicas=replicas)
    deployment = only(objects, "Deployment")["spec"]
    assert deployment["replicas"] == replicas
    assert deployment["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
    }
    settings = yaml.safe_load(settings_of(objects))
    assert (settings["leaseNamespace"], settings["leaseName"]) == ("lora-system", "lora")
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


@pytest.mark.helms(3, 4)
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
