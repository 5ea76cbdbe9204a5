"""A test of the fault matrix asserts all that its marks name; `pytest --record-faults` keeps how it ended."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from tests.faults.matrix import PROMISES, promises_of
from tests.faults.promises import Shown

if TYPE_CHECKING:
    import pytest

RESULTS = Path(__file__).with_name("results.yaml")
_HEAD = "# Written by `pytest --record-faults`; docs/faults.md is made from it.\n"
_GENERATED = (":(exclude)tests/faults/results.yaml", ":(exclude)docs/faults.md")


def unasserted(item: pytest.Function) -> list[str]:
    """What the marks of a test name that it has not asserted, though it came to its end.

    Promises that tests of another kind prove are theirs as a whole.
    """
    marked = [name for mark in item.iter_markers("fault") for text in mark.args for name in promises_of(text)]
    asserted: set[str] = getattr(item.funcargs.get("faults"), "asserted", set())
    return sorted({name for name in marked if name not in asserted and not is_elsewhere(name)})


def is_elsewhere(name: str) -> bool:
    """Whether tests of another kind than those against an API server alone prove a promise."""
    promise = PROMISES[name]
    return isinstance(promise, Shown) and bool(promise.by)


class FaultRecorder:
    """Collects outcomes by test, all parameters of a test together, and adds them to the file at the end."""

    def __init__(self, file: Path, commit: str) -> None:
        self._file = file
        self._commit = commit
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
            name: {"result": "passed" if passed else "failed", "on": on, "commit": self._commit}
            for name, passed in self._outcomes.items()
        }
        text = yaml.safe_dump({**(known or {}), **seen}, sort_keys=True, default_flow_style=False, width=200)
        self._file.write_text(_HEAD + text)


def commit() -> str:
    """The commit that is tested; with a plus where the files differ from it."""
    sha = _git("rev-parse", "--short=10", "HEAD")
    return sha + ("+" if _git("status", "--porcelain", "--", ".", *_GENERATED) else "")


def _git(*arguments: str) -> str:
    folder = Path(__file__).resolve().parents[2]
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()
