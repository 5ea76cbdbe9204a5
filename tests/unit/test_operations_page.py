"""docs/operations.md names what the code has."""

import re
from pathlib import Path

from lora_operator.config import OperatorConfig, yaml_name
from lora_operator.self_check import LEASE_RIGHTS, RIGHTS

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
