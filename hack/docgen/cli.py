"""The command line of hack/docs."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from docgen import advice_page, api_reference, chart_readme, fault_matrix, metrics_reference, schema, states_page

REPOSITORY = Path(__file__).resolve().parents[2]
CHART = Path("helm/lora-finetune-operator")
DEFINITION = Path("crds/lorafinetunes.yaml")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write what is generated, or with --check name what is stale and fail."""
    parser = argparse.ArgumentParser(prog="hack/docs", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file is stale")
    options = parser.parse_args(arguments)
    stale = {path: text for path, text in outputs().items() if _read(path) != text}
    for path, text in stale.items():
        if options.check:
            sys.stderr.write(f"{path} is not what its source gives: run `make docs` and commit the result\n")
        else:
            (REPOSITORY / path).write_text(text, encoding="utf-8")
            sys.stdout.write(f"wrote {path}\n")
    return 1 if stale and options.check else 0


def outputs() -> dict[Path, str]:
    """Every generated file with the text that it should have."""
    definition = REPOSITORY / DEFINITION
    example = _read(Path("examples/minimal.yaml"))
    operator = Path("docs/operator.md")
    chart = yaml.safe_load(_read(CHART / "Chart.yaml"))
    values = yaml.safe_load(_read(CHART / "values.yaml"))
    values_schema = json.loads(_read(CHART / "values.schema.json"))
    return {
        Path("docs/advice.md"): advice_page.render(),
        Path("docs/faults.md"): fault_matrix.render(),
        Path("docs/states.md"): states_page.render(),
        operator: states_page.insert(_read(operator)),
        Path("docs/metrics.md"): metrics_reference.render(),
        Path("docs/api-reference.md"): api_reference.render(schema.load(definition), example),
        CHART / "files/lorafinetunes.yaml": definition.read_text(encoding="utf-8"),
        CHART / "README.md": chart_readme.render(chart, values, values_schema, str(CHART)),
    }


def _read(path: Path) -> str:
    file = REPOSITORY / path
    return file.read_text(encoding="utf-8") if file.exists() else ""
