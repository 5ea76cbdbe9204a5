"""The command line of hack/docs."""

import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from docgen import (
    api_reference,
    chart_readme,
    client_page,
    crd,
    metrics_reference,
    rules_page,
    schema,
    spec_types,
    states_page,
)
from docgen.command import read, write_or_check

CHART = Path("helm/lora-finetune-operator")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write what is generated, or with --check name what is stale and fail."""
    return write_or_check(outputs(), "hack/docs", str(__doc__), arguments)


def outputs() -> dict[Path, str]:
    """Every generated file with the text that it should have."""
    example = read(Path("examples/minimal.yaml"))
    client = Path("docs/cli.md")
    chart = yaml.safe_load(read(CHART / "Chart.yaml"))
    values = yaml.safe_load(read(CHART / "values.yaml"))
    values_schema = json.loads(read(CHART / "values.schema.json"))
    definition = schema.Definition(document=crd.definition())
    return {
        Path("docs/states.md"): states_page.render(),
        Path("docs/what-happens.md"): rules_page.render(),
        client: client_page.insert(read(client)),
        Path("docs/metrics.md"): metrics_reference.render(),
        Path("docs/api-reference.md"): api_reference.render(definition, example),
        Path("operator/lora_client/spec.py"): spec_types.render(definition.field("spec")),
        CHART / "files/lorafinetunes.yaml": crd.render(),
        CHART / "README.md": chart_readme.render(chart, values, values_schema, str(CHART)),
    }
