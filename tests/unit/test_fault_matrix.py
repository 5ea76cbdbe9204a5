"""The fault matrix, the tests' marks, the recorded results and docs/faults.md agree with each other."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import yaml
from tests.faults.matrix import ROWS, SECTIONS
from tests.faults.recording import RESULTS, FaultRecorder

from docgen import fault_matrix
from lora_trainer.contract.reasons import Reason

if TYPE_CHECKING:
    import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TESTS = fault_matrix.marked_tests(REPOSITORY)


def test_rows_are_numbered_without_a_gap() -> None:
    """A1 to A20, B1 to B22, C1 to C17."""
    expected = [
        f"{letter}{number}" for letter, count in (("A", 20), ("B", 22), ("C", 17)) for number in range(1, count + 1)
    ]
    assert [row.id for row in ROWS] == expected
    assert {row.id[0] for row in ROWS} == set(SECTIONS)


def test_every_mark_names_a_row() -> None:
    """A misspelt row would be proven by nobody."""
    rows = {row.id for row in ROWS}
    assert {test.name: unknown for test in TESTS if (unknown := set(test.rows) - rows)} == {}


def test_every_row_is_proven_or_says_why_it_is_not() -> None:
    """A fault that nobody has tried is a promise that nobody can keep."""
    proven = {row for test in TESTS for row in test.rows}
    assert [row.id for row in ROWS if row.id not in proven and not row.untested] == []


def test_the_words_of_the_matrix_are_those_of_the_conditions() -> None:
    """What is said of a status can be found in one."""
    known = {reason.value for reason in Reason}
    said = {word for row in ROWS for word in re.findall(r"`\w+=(?:True|False) (\w+)`|`Failed (\w+)`", row.seen)}
    assert {first or second for first, second in said} - known == set()


def test_results_are_those_of_tests_that_exist() -> None:
    """A result outlives its test by no commit."""
    recorded = yaml.safe_load(RESULTS.read_text()) if RESULTS.exists() else {}
    assert set(recorded or {}) - {test.name for test in TESTS} == set()


def test_marks_are_found_on_functions_and_on_modules(tmp_path: Path) -> None:
    """Decorators with and without parameters beside them, and a pytestmark with several marks."""
    folder = tmp_path / "tests" / "some"
    folder.mkdir(parents=True)
    (folder / "test_one.py").write_text(
        "import pytest\n\n@pytest.mark.parametrize('a', [1])\n@pytest.mark.fault('A1', 'B2')\ndef test_a(a): ...\n\n"
        "def test_b(): ...\n"
    )
    (folder / "test_two.py").write_text(
        "import pytest\n\npytestmark = [pytest.mark.soak, pytest.mark.fault('C3')]\n\nasync def test_c(): ...\n"
    )
    assert fault_matrix.marked_tests(tmp_path) == [
        fault_matrix.MarkedTest(name="tests/some/test_one.py::test_a", rows=("A1", "B2"), soak=False),
        fault_matrix.MarkedTest(name="tests/some/test_two.py::test_c", rows=("C3",), soak=True),
    ]


def test_a_recorded_test_has_passed_if_all_its_parameters_have(tmp_path: Path) -> None:
    """One failed phase of one parameter is a failure; other tests of the file keep their results."""
    file = tmp_path / "results.yaml"
    file.write_text("tests/a.py::test_other: {result: passed, on: '2026-01-01', release: 0.0.9}\n")
    recorder = FaultRecorder(file)
    for node, when, passed, keywords in (
        ("tests/a.py::test_two[x]", "call", True, {"fault": 1}),
        ("tests/a.py::test_two[y]", "teardown", False, {"fault": 1}),
        ("tests/a.py::test_one", "setup", True, {"fault": 1}),
        ("tests/a.py::test_one", "call", True, {"fault": 1}),
        ("tests/a.py::test_unmarked", "call", True, {}),
    ):
        report = SimpleNamespace(nodeid=node, when=when, passed=passed, keywords=keywords)
        recorder.pytest_runtest_logreport(cast("pytest.TestReport", report))
    recorder.pytest_sessionfinish()
    results: dict[str, Any] = yaml.safe_load(file.read_text())
    assert {name: result["result"] for name, result in results.items()} == {
        "tests/a.py::test_one": "passed",
        "tests/a.py::test_other": "passed",
        "tests/a.py::test_two": "failed",
    }
    assert results["tests/a.py::test_other"]["release"] == "0.0.9"
