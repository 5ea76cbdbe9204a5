"""benchmarks/results/results.yaml: a number in each row, with the command, commit, machine and date of it."""

import subprocess
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from benchmarks.scale.rows import Row

FILE = Path(__file__).resolve().parents[1] / "results" / "results.yaml"
_HEAD = "# Measured numbers. `operator_scale.py --record` replaces the rows of its commands; the others are by hand.\n"


def record(command: str, rows: Sequence[Row], *, commit: str, machine: str, day: date, file: Path = FILE) -> None:
    """Put what a command found in the place of what it had found before."""
    before: list[dict[str, Any]] = yaml.safe_load(file.read_text()) or []
    kept = [row for row in before if row["command"] != command]
    source = {"command": command, "commit": commit, "machine": machine, "date": day}
    found = [
        {"what": f"{row.what}: {measure.name}", "value": round(measure.value, 3), "unit": measure.unit, **source}
        for row in rows
        for measure in row.found
    ]
    # A row is a line.
    text = yaml.safe_dump([*kept, *found], sort_keys=False, default_flow_style=None, width=1000, allow_unicode=True)
    file.write_text(_HEAD + text)


def commit_of(checkout: Path) -> str:
    """What is checked out there."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short=8", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
