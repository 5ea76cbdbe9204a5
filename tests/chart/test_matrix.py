"""Every two choices together are linted and restricted; three rows are recorded, and the same by Helm 3 and 4.

After a change that is meant: `UPDATE_GOLDEN=1 pytest tests/chart/test_matrix.py`, and read the difference.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.chart import helms
from tests.chart.matrix import IMAGES, RECORDED, ROWS, SWITCHES, Row, Values, merged, values_of
from tests.chart.objects import Manifest, Render, parsed, pods_of
from tests.chart.target import CHART

from localcluster import tools

GOLDEN = Path(__file__).resolve().parents[1] / "golden/chart"
# Values that no row changes, by the beginning of their paths, and the test that holds them.
ELSEWHERE = {
    "config.": "test_chart_configuration.py: each setting arrives in the file, and is tried with the operator",
    "image.": "test_chart.py: repository, tag and digest make a reference; each installation of the tests sets them",
    "trainer.image.": "the same",
    "preflight.image.digest": "the same",
    "resources.requests.memory": "a quantity like that of the CPU",
    "metrics.prometheusRule.alerts.": "test_alerts.py: each threshold stands in its alert",
}
UPDATE = os.environ.get("UPDATE_GOLDEN") == "1"


def assert_lint_is_clean(helm: helms.Helm, values: Values) -> None:
    """`helm lint --strict` with these values."""
    linted = helm.run("lint", "--strict", str(CHART), "--values", "-", stdin=yaml.safe_dump(merged(IMAGES, values)))
    assert "0 chart(s) failed" in linted
    assert "[WARNING]" not in linted


def test_each_value_of_the_chart_is_in_the_matrix_or_left_out_for_a_reason() -> None:
    """So nothing can be switched on that was never installed."""
    tried = {path for choices in SWITCHES.values() for choice in choices for path in paths(choice)}
    parts = {path.rsplit(".", number)[0] for path in tried for number in range(path.count(".") + 1)}
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    left = {path for path in paths(values) if path not in parts}
    assert {path for path in left if not path.startswith(tuple(ELSEWHERE))} == set()
    assert {begin for begin in ELSEWHERE if not any(path.startswith(begin) for path in left)} == set()


def paths(values: Values, above: str = "") -> Iterator[str]:
    """The path of each value that is no map, or an empty one."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from paths(value, f"{above}{name}.")
        else:
            yield above + name


@pytest.mark.parametrize("name", RECORDED)
def test_a_row_renders_as_it_is_recorded(documents: Render, name: str) -> None:
    """Its objects, without the content of definition, dashboards and alerts; Helm 4 makes the same."""
    values = values_of(RECORDED[name])
    objects = sorted(documents(**values), key=_place)
    text = f"# {json.dumps(values)}\n" + yaml.dump_all(
        map(_short, objects), Dumper=_Readable, sort_keys=False, default_flow_style=None, width=110
    )
    file = GOLDEN / f"{name}.yaml"
    if UPDATE:
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text()
    helm = helms.built(tools.HELM4)
    assert sorted(parsed(helm.template(values).stdout), key=_place) == objects
    assert_lint_is_clean(helm, values)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_whatever_is_switched_on_no_pod_asks_for_more_than_the_restricted_standard_allows(
    documents: Render, helm: helms.Helm, row: Row
) -> None:
    """The rules of the standard, on the pods of the operator and of helm test; lint finds nothing."""
    values = values_of(row)
    pods = pods_of(documents(**values))
    assert pods
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert {next(iter(set(volume) - {"name"})) for volume in pod["volumes"]} <= {"configMap", "emptyDir"}
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert {"requests", "limits"} <= set(container["resources"])
    assert_lint_is_clean(helm, values)


class _Readable(yaml.SafeDumper):
    """Writes text of several lines as these lines, where YAML can: not within a map on one line."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else None)


_Readable.add_representer(str, _Readable.represent_str)


def _place(document: Manifest) -> tuple[str, str, str]:
    metadata = document["metadata"]
    return document["kind"], metadata.get("namespace", ""), metadata["name"]


def _short(document: Manifest) -> Manifest:
    if document["kind"] == "CustomResourceDefinition":
        return {**document, "spec": "..."}
    if document["kind"] == "PrometheusRule":
        rules = [rule for group in document["spec"]["groups"] for rule in group["rules"]]
        return {**document, "spec": [rule.get("alert") or rule["record"] for rule in rules]}
    if "grafana_dashboard" in document["metadata"].get("labels", {}):
        return {**document, "data": dict.fromkeys(document["data"], "...")}
    return document
