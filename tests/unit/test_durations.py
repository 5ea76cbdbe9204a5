"""What CI prints of the time that tests took."""

import io
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from tests.durations import Durations

if TYPE_CHECKING:
    import pytest


class Terminal:
    """Keeps what would be printed."""

    def __init__(self) -> None:
        self.text = io.StringIO()

    def section(self, title: str) -> None:
        """A title."""
        self.line(f"= {title}")

    def line(self, text: str) -> None:
        """A line."""
        self.text.write(f"{text}\n")


def printed(*phases: tuple[str, float]) -> str:
    """What is printed after these phases of tests."""
    durations, terminal = Durations(), Terminal()
    for nodeid, seconds in phases:
        durations.pytest_runtest_logreport(cast("Any", SimpleNamespace(nodeid=nodeid, duration=seconds)))
    durations.pytest_terminal_summary(cast("pytest.TerminalReporter", terminal))
    return terminal.text.getvalue()


def test_set_up_and_call_count_and_long_tests_are_named() -> None:
    """29 s of set-up and 2 s of the test are 31 s; what takes 30 s is not named."""
    text = printed(("tests/a/test_x.py::t[a/b]", 29), ("tests/a/test_x.py::t[a/b]", 2), ("tests/b/test_y.py::u", 30))
    assert text == (
        "= seconds of each folder, over all workers\n     31  tests/a\n     30  tests/b\n"
        "= tests that took more than 30 s\n     31  tests/a/test_x.py::t[a/b]\n"
    )


def test_nothing_is_printed_of_short_tests_of_one_folder() -> None:
    """pytest's own line says it."""
    assert printed(("tests/a/test_x.py::t", 1), ("tests/a/test_z.py::t", 1)) == ""
