"""The schema of the chart's values: what is misspelt or out of range is refused by name."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from tests.chart.matrix import merged
from tests.chart.target import CHART

BAD: tuple[tuple[dict[str, Any], str], ...] = (
    ({"logLevel": "TRACE"}, "logLevel"),
    ({"config": {"hubEndpoint": "hub:8000"}}, "hubEndpoint"),
    ({"config": {"s3Endpoint": "s3:7070"}}, "s3Endpoint"),
    ({"defaults": {"memoryPerGPU": "lots"}}, "memoryPerGPU"),
    ({"defaults": {"tolerance": []}}, "tolerance"),
    ({"defaults": {"tolerations": [{"keys": "gpu"}]}}, "keys"),
    ({"defaults": {"affinity": {"nodes": {}}}}, "nodes"),
    ({"defaults": {"environment": {"HF_TOKEN": "hf_x"}}}, "HF_TOKEN"),
    ({"defaults": {"environment": {"UCX_TLS": "http://me:secret@host"}}}, "UCX_TLS"),
    ({"defaults": {"ttlSecondsAfterFinished": 0}}, "ttlSecondsAfterFinished"),
    ({"defaults": {"cacheClaim": "pvc://models"}}, "cacheClaim"),
    ({"config": {"ociPlainHTTPRegistries": ["http://registry:5000"]}}, "ociPlainHTTPRegistries"),
    ({"config": {"stallTimeoutSeconds": 0}}, "stallTimeoutSeconds"),
    ({"config": {"leaseDurationSeconds": 0}}, "leaseDurationSeconds"),
    ({"config": {"gpus": [{"name": "NVIDIA-L4", "memoryGiB": 0}]}}, "memoryGiB"),
    ({"config": {"gpus": [{"name": "NVIDIA-L4"}]}}, "memoryGiB"),
    ({"replicas": -1}, "replicas"),
    ({"replicas": 2.5}, "replicas"),
    ({"config": {"progressIntervalSeconds": 0}}, "progressIntervalSeconds"),
    ({"watch": {"namespaces": ["Team A"]}}, "namespaces"),
    ({"image": {"digest": "sha256:short"}}, "digest"),
    ({"metrics": {"podMonitor": {"interval": "0s"}}}, "interval"),
    ({"metrics": {"serviceMonitor": {"interval": "00m"}}}, "interval"),
)


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


@pytest.mark.helms(3, 4)
def test_a_misspelt_value_is_refused_by_name(helm: Any) -> None:
    """Helm checks the values against the schema."""
    done = helm.template({"config": {"hubEndpiont": "http://hub"}})
    assert done.returncode != 0
    assert "hubEndpiont" in done.stderr


@pytest.mark.parametrize(("values", "field"), BAD)
def test_a_bad_value_is_refused_by_name(helm: Any, values: dict[str, Any], field: str) -> None:
    """What the operator or the API server would refuse later, Helm refuses first."""
    done = helm.template(values)
    assert done.returncode != 0
    assert field in done.stderr


@pytest.mark.helms(3, 4)
def test_a_threshold_of_0_is_refused_with_the_lowest(helm: Any) -> None:
    """Of an exclusive minimum Helm says "got 0, want 0"."""
    alerts = {"LoRAFineTuneGPUIdle": {"ratio": 0}}
    said = helm.template({"metrics": {"prometheusRule": {"alerts": alerts}}}).stderr
    assert "/LoRAFineTuneGPUIdle/ratio': minimum: got 0, want 0.001" in said
    assert "exclusiveMinimum" not in (CHART / "values.schema.json").read_text()


@pytest.mark.helms(4)
def test_helm_4_refuses_bad_values_by_name(helm: Any) -> None:
    """Those of different fields all at once."""
    values: dict[str, Any] = {}
    for bad, _ in BAD:
        values = merged(values, bad)
    done = helm.template(values)
    assert done.returncode != 0
    assert [field for _, field in BAD if field not in done.stderr] == []
