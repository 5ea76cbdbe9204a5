"""docs/operations.md names what the code has."""

import re
from pathlib import Path

from lora_operator.running.logs import FIELDS
from lora_operator.running.self_check import LEASE_RIGHTS, RIGHTS
from lora_operator.views.config import OperatorConfig, yaml_name

PAGE = (Path(__file__).resolve().parents[2] / "docs/operations.md").read_text()


def section(title: str) -> str:
    """The text under a heading."""
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_every_setting_is_in_the_table_and_no_other() -> None:
    """By its name in YAML."""
    rows = [line.split("|")[1] for line in section("Settings").splitlines() if line.startswith("| `")]
    listed = re.findall(r"`(\w+)`", " ".join(rows))
    assert sorted(listed) == sorted(map(yaml_name, OperatorConfig.__dataclass_fields__))


def test_every_right_that_the_operator_checks_is_in_the_table_and_no_other() -> None:
    """But for the one that only some clusters want."""
    listed = set()
    for line in section("Rights").splitlines():
        match = re.match(r"\| `([\w./-]+)` \| ([a-z, ]+) \|", line)
        if match:
            listed |= {f"{verb} {match[1]}" for verb in match[2].split(", ")}
    assert listed == {str(right) for right in (*RIGHTS, *LEASE_RIGHTS)}


def test_every_field_of_the_log_is_explained_as_in_the_code() -> None:
    """By the same words, in the same order."""
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", section("Logs"), re.MULTILINE)
    assert rows == list(FIELDS.items())


def test_the_questions_ask_for_fields_that_there_are() -> None:
    """A query for a field by another name finds nothing, at night."""
    queries = re.findall(r"jq -\w+ '(.+?)'", section("Logs"))
    assert len(queries) >= 8
    for query in queries:
        asked = set(re.findall(r"(?<![\w\]])\.([a-zA-Z]+)", query))
        assert asked
        assert asked <= {*FIELDS, "time", "message", "level"}, query
