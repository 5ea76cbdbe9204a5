"""Names that YAML could take for something else, and labels of the user's own beside the chart's."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from tests.chart.matrix import DASHBOARDS, IMAGES, MONITOR, NETWORK, POLICIES, RULES, merged
from tests.chart.objects import Manifest, Render, only, parsed
from tests.chart.target import CHART

METRICS = {"serviceMonitor": MONITOR, "podMonitor": MONITOR, "prometheusRule": RULES, "grafanaDashboard": DASHBOARDS}
EVERYTHING = {"replicas": 2, "networkPolicy": NETWORK, "policies": POLICIES, "metrics": METRICS}
NAMED = {"name", "namespace", "serviceAccountName", "priorityClassName", "policyName"}
LABELLED = {"labels", "matchLabels", "annotations", "nodeSelector"}
LISTED = {"matchNames", "resourceNames"}
ODD = {"fullnameOverride": "true", "nameOverride": "123", "priorityClassName": "off"}
GIVEN = {"serviceAccount": {"create": False, "name": "0x1"}, "watch": {"namespaces": ["no", "null"]}}


def rendered(helm: Any, release: str, namespace: str, values: dict[str, Any]) -> list[Manifest]:
    """Everything there is, hooks included, as Kubernetes reads YAML."""
    command = ("template", release, str(CHART), f"--namespace={namespace}", "--kube-version=1.31.0", "--values=-")
    return parsed(helm.run(*command, stdin=yaml.safe_dump(merged(IMAGES, merged(EVERYTHING, values)))))


def not_text(node: Any, path: str = "") -> Iterator[str]:
    """Where a manifest has a name or a label that is no text."""
    if isinstance(node, list):
        for number, item in enumerate(node):
            yield from not_text(item, f"{path}.{number}")
    if isinstance(node, dict):
        for key, value in node.items():
            texts = [value] if key in NAMED else []
            texts += value.values() if key in LABELLED and isinstance(value, dict) else value if key in LISTED else []
            yield from (f"{path}.{key}: {text!r}" for text in texts if not isinstance(text, str))
            yield from not_text(value, f"{path}.{key}")


@pytest.mark.helms(3, 4)
@pytest.mark.parametrize("values", [{}, ODD, GIVEN])
def test_a_name_is_text_whatever_yaml_would_take_it_for(helm: Any, values: dict[str, Any]) -> None:
    """As 2024, null and no, which Kubernetes takes; an object without a namespace lands in the release's."""
    objects = rendered(helm, "2024", "123", values)
    assert [
        f"{o['kind']}{place}" for o in objects if o["kind"] != "CustomResourceDefinition" for place in not_text(o)
    ] == []
    namespaces = {o["metadata"]["namespace"] for o in objects if "namespace" in o["metadata"]}
    assert namespaces == {"123", *values.get("watch", {}).get("namespaces", [])}
    assert only(objects, "Deployment")["spec"]["selector"]["matchLabels"]["app.kubernetes.io/instance"] == "2024"


class Strict(yaml.SafeLoader):
    """As strict parsers read it: a key that stands twice in a map is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), keys
        return super().construct_mapping(node, deep=deep)


@pytest.mark.helms(3, 4)
def test_a_label_of_ones_own_takes_the_place_of_the_charts(helm: Any) -> None:
    """It does not stand beside it: strict parsers refuse a manifest with the same key twice."""
    own = {"app.kubernetes.io/part-of": "platform", "app.kubernetes.io/version": "7"}
    labelled = {name: {"additionalLabels": own} for name in METRICS}
    found = {"additionalLabels": {**own, "grafana_dashboard": "yes"}}
    metrics = merged(merged(METRICS, labelled), {"grafanaDashboard": found})
    done = helm.template(merged(EVERYTHING, {"metrics": metrics, "podLabels": own, "crds": {"install": False}}))
    objects = [o for o in yaml.load_all(done.stdout, Strict) if o]
    made = [o["metadata"] for o in objects if o["kind"] in ("ServiceMonitor", "PodMonitor", "PrometheusRule")]
    boards = [o["metadata"] for o in objects if "grafana_dashboard" in o["metadata"]["labels"]]
    pods = [only(objects, "Deployment")["spec"]["template"]["metadata"]]
    assert (len(made), len(boards)) == (3, 2)
    for metadata in (*made, *boards, *pods):
        assert own.items() <= metadata["labels"].items()
        assert metadata["labels"]["app.kubernetes.io/managed-by"] == "Helm"
    assert [board["labels"]["grafana_dashboard"] for board in boards] == ["yes", "yes"]


def test_dashboards_are_found_unless_they_are_to_be_found_by_another_label(render: Render) -> None:
    """The sidecar's own label."""
    boards = [
        o for o in render(metrics={"grafanaDashboard": DASHBOARDS}) if o["metadata"]["name"].endswith("-dashboard")
    ]
    assert {board["metadata"]["labels"]["grafana_dashboard"] for board in boards} == {"1"}
