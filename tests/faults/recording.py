"""`pytest --record-faults`: the outcome of each test of the fault matrix, kept for docs/faults.md."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from lora_trainer.contract.release import RELEASE

if TYPE_CHECKING:
    import pytest

RESULTS = Path(__file__).with_name("results.yaml")
_HEAD = "# Written by `pytest --record-faults`; docs/faults.md is made from it.\n"


class FaultRecorder:
    """Collects outcomes by test, all parameters of a test together, and adds them to the file at the end."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._outcomes: dict[str, bool] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note one phase of one test."""
        if "fault" not in report.keywords or (report.passed and report.when != "call"):
            return
        name = report.nodeid.partition("[")[0]
        self._outcomes[name] = self._outcomes.get(name, True) and report.passed

    def pytest_sessionfinish(self) -> None:
        """Add what was seen to what is known of the other tests."""
        known = yaml.safe_load(self._file.read_text()) if self._file.exists() else None
        on = datetime.now(UTC).date().isoformat()
        seen = {
            name: {"result": "passed" if passed else "failed", "on": on, "release": RELEASE}
            for name, passed in self._outcomes.items()
        }
        text = yaml.safe_dump({**(known or {}), **seen}, sort_keys=True, default_flow_style=False, width=200)
        self._file.write_text(_HEAD + text)
