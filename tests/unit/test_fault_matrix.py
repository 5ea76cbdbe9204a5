"""The fault matrix, the tests' marks, the recorded results and docs/faults.md agree with each other."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from tests.faults.matrix import PROMISES, ROWS, SECTIONS, promises_of
from tests.faults.moments import HELD
from tests.faults.promises import Kept, Sees, Shown, describe
from tests.faults.recording import RESULTS, FaultRecorder, is_elsewhere, unasserted

from docgen import fault_matrix
from lora_trainer.contract.reasons import Reason

REPOSITORY = Path(__file__).resolve().parents[2]
TESTS = fault_matrix.marked_tests(REPOSITORY)


def test_rows_are_numbered_without_a_gap() -> None:
    """A1 to A21, B1 to B23, C1 to C17."""
    expected = [
        f"{letter}{number}" for letter, count in (("A", 21), ("B", 23), ("C", 17)) for number in range(1, count + 1)
    ]
    assert [row.id for row in ROWS] == expected
    assert {row.id[0] for row in ROWS} == set(SECTIONS)


def test_every_mark_names_a_row_or_a_promise() -> None:
    """A misspelt one would be proven by nobody."""
    assert [test.name for test in TESTS if not test.promises()] == []
    with pytest.raises(AssertionError, match=r"no row and no promise is called A1\.unheard-of"):
        promises_of("A1.unheard-of")


def test_every_promise_is_proven() -> None:
    """A fault that nobody has tried is a promise that nobody can keep."""
    proven = {promise for test in TESTS for promise in test.promises()}
    assert [name for name in PROMISES if name not in proven] == []


def test_every_promise_has_a_name_of_its_own_and_an_assertion() -> None:
    """Two by one name would be asserted as one, and a promise without an assertion is prose."""
    names = [name for row in ROWS for name, _ in row.promises()]
    assert len(names) == len(set(names))
    assert {kept for kept in Kept if kept not in HELD} == {Kept.BEGINS, Kept.ENDS_WELL}
    empty = [name for name, promise in PROMISES.items() if isinstance(promise, Sees) and not describe(promise)]
    assert empty == []
    assert all(row.sees and row.keeps for row in ROWS)


def test_what_another_kind_of_test_proves_is_marked_there_alone() -> None:
    """The trainer's tests and those on nodes assert in their own way; on an API server each promise is asserted."""
    elsewhere = ("tests/trainer/", "tests/e2e/", "tests/cluster/", "tests/chart/")
    wrong = {
        (test.name, name)
        for test in TESTS
        for name in test.promises()
        if test.name.startswith(elsewhere) is not is_elsewhere(name)
    }
    assert wrong == set()


def test_a_promise_is_said_as_it_is_asserted() -> None:
    """The page's sentence comes from the data; what a test fills in stands in angle brackets."""
    promise = Sees(
        key="waits",
        when="sometimes",
        conditions={"PodsReady": ("False", Reason.IMAGE_PULL_BACK_OFF), "Accepted": ("True", None)},
        says=("{the_image}", "look"),
        event=("Warning", Reason.IMAGE_PULL_BACK_OFF),
        retries={"error": 1},
        metric='lora_operator_reconcile_total{{result="{result}"}}',
        within_s=20,
    )
    assert describe(promise) == (
        'Sometimes: `PodsReady=False ImagePullBackOff` with "<the image>" and "look"; `Accepted=True`; '
        "Warning `ImagePullBackOff`; `status.retries.error` is 1; "
        '`lora_operator_reconcile_total{result="<result>"}` counts, within 20 s'
    )
    assert describe(Shown(key="a", says="The lock", by="by the trainer")) == "The lock (by the trainer)"
    assert describe(Sees(key="a", nothing=True)).startswith("Nothing")


@pytest.mark.parametrize(
    ("marks", "asserted", "left"),
    [
        (["B13"], {"B13.quota"}, ["B13.begins"]),
        (["B13"], {"B13.quota", "B13.begins"}, []),
        (["B13.quota", "A10.one-job"], set(), ["A10.one-job", "B13.quota"]),
        (["B8.pod"], set(), []),
    ],
)
def test_a_test_that_has_not_asserted_all_that_it_is_marked_with_fails(
    marks: list[str], asserted: set[str], left: list[str]
) -> None:
    """However it came to its end; what tests of another kind prove is theirs as a whole."""
    item = SimpleNamespace(
        iter_markers=lambda _: [SimpleNamespace(args=marks)], funcargs={"faults": SimpleNamespace(asserted=asserted)}
    )
    assert unasserted(cast("pytest.Function", item)) == left


def test_results_are_those_of_tests_that_exist() -> None:
    """A result outlives its test by no commit."""
    recorded = yaml.safe_load(RESULTS.read_text()) if RESULTS.exists() else {}
    assert set(recorded or {}) - {test.name for test in TESTS} == set()


def test_marks_are_found_on_functions_and_on_modules(tmp_path: Path) -> None:
    """Decorators, those of single parameters too, and a pytestmark with several marks."""
    folder = tmp_path / "tests" / "some"
    folder.mkdir(parents=True)
    (folder / "test_one.py").write_text(
        "import pytest\n\n@pytest.mark.parametrize('a', "
        "[1, pytest.param(2, marks=[pytest.mark.soak, pytest.mark.fault('B3')])])\n"
        "@pytest.mark.fault('A1', 'B2')\ndef test_a(a): ...\n\n"
        "def test_b(): ...\n"
    )
    (folder / "test_two.py").write_text(
        "import pytest\n\npytestmark = [pytest.mark.soak, pytest.mark.fault('C3')]\n\nasync def test_c(): ...\n"
    )
    assert fault_matrix.marked_tests(tmp_path) == [
        fault_matrix.MarkedTest(name="tests/some/test_one.py::test_a", marks=("B3", "A1", "B2"), soak=False),
        fault_matrix.MarkedTest(name="tests/some/test_two.py::test_c", marks=("C3",), soak=True),
    ]


def test_a_recorded_test_has_passed_if_all_its_parameters_have(tmp_path: Path) -> None:
    """One failed phase of one parameter is a failure; other tests of the file keep their results."""
    file = tmp_path / "results.yaml"
    file.write_text("tests/a.py::test_other: {result: passed, on: '2026-01-01', commit: '0123456789'}\n")
    recorder = FaultRecorder(file, "abcdef")
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
    assert {name: result["commit"] for name, result in results.items()} == {
        "tests/a.py::test_one": "abcdef",
        "tests/a.py::test_other": "0123456789",
        "tests/a.py::test_two": "abcdef",
    }
