"""A run of hours says what failed when it fails: whoever ends it early has the message, and the generated example."""

import pytest


class FailuresAtOnce:
    """Registered with pytest, prints each failure beside the line that names its test; the end repeats them all."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Of workers, too: their reports arrive here."""
        reporter: pytest.TerminalReporter | None = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and reporter is not None:
            reporter.ensure_newline()
            reporter.write_line(report.longreprtext)
