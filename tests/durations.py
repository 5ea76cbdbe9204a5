"""How long each folder of tests took, and which tests take long: before pytest's closing line."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

LONG_S = 30.0


class Durations:
    """Adds up set-up, call and end of each test."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count one phase of one test."""
        self._seconds[report.nodeid] += report.duration

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print both where there is more to tell than pytest's own line does."""
        folders: defaultdict[str, float] = defaultdict(float)
        for test, seconds in self._seconds.items():
            folders[test.partition("::")[0].rpartition("/")[0]] += seconds
        if len(folders) > 1:
            terminalreporter.section("seconds of each folder, over all workers")
            for folder, seconds in sorted(folders.items()):
                terminalreporter.line(f"{seconds:7.0f}  {folder}")
        long = sorted(((s, test) for test, s in self._seconds.items() if s > LONG_S), reverse=True)
        if long:
            terminalreporter.section(f"tests that took more than {LONG_S:.0f} s")
            for seconds, test in long:
                terminalreporter.line(f"{seconds:7.0f}  {test}")
