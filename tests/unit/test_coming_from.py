"""docs/coming-from.md names fields that exist, and no option of another tool twice."""

import re
from pathlib import Path

import pytest

from docgen.schema import load

REPOSITORY = Path(__file__).resolve().parents[2]
DEFINITION = load(REPOSITORY / "crds/lorafinetunes.yaml")
SECTIONS = re.split(r"^## ", (REPOSITORY / "docs/coming-from.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.partition("\n")[0])
def test_each_row_leads_to_fields_of_the_definition(section: str) -> None:
    """Or to none, by a dash; each option stands in one row."""
    rows = [
        line.strip("| ").split(" | ") for line in section.partition("|---|---|---|\n")[2].splitlines() if "|" in line
    ]
    assert len(rows) >= 10
    options = [option for options, *_ in rows for option in re.findall(r"`([^`]+)`", options)]
    assert len(options) == len(set(options))
    for _, fields, *_ in rows:
        named = re.findall(r"`([^`]+)`", fields)
        assert named or fields == "-"
        for field in named:
            assert DEFINITION.field(f"spec.{field}")


def test_every_tool_has_its_table() -> None:
    """As the title says."""
    assert [section.partition("\n")[0] for section in SECTIONS] == ["PEFT", "TRL", "Axolotl", "LLaMA-Factory"]
