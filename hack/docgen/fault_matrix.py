"""docs/faults.md: what must survive what, the tests that prove it, and how they last ended."""

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tests.faults.matrix import ROWS, SECTIONS, promises_of
from tests.faults.promises import BUSY, WITHIN_S, Row, describe
from tests.faults.recording import RESULTS

from docgen.text import table

_REPOSITORY = Path(__file__).resolve().parents[2]
_HEAD = f"""\
<!-- Generated from the rows in tests/faults, results.yaml there and the tests' marks: change them, and `make docs`. -->
# Faults and what survives them

This page lists the faults that the operator and the trainer are made for, what you see of each, what is never lost by
it, and the tests that prove it. The words in code are those of a LoRAFineTune's conditions: [states](states.md)
explains each, and says what to do.

Each promise has a number, and each test the numbers of those that it asserts. The page and the assertions come from the
same data, and a test that ends without having asserted each of its promises fails. What you see is there within
{WITHIN_S} s, unless another time is given; tests share their machine with others, and fail after {BUSY} times as long.
Where a promise ends in parentheses, tests of that kind assert it in their own way: the trainer's, or those on a node
that runs pods. State is that of `kubectl get`: the reason of condition `Complete`. Runs are on one node and
have a claim for checkpoints where nothing else is said.

The tests of the operator run on a real API server with its controllers. Where a fault lies between the two, a
[proxy](../tests/faults/proxy.py) in the way injects it: error codes, cut and frozen streams, lost events, stale
answers. A result is that of the last recorded run (`pytest --record-faults`), with its day and its commit; a plus
stands for changes since that commit. Tests in italics, and A2 and A8 for 30 s and more, run in `make soak`.

"""


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkedTest:
    """A test of the fault matrix. `name` is its node name without parameters, `marks` what it proves."""

    name: str
    marks: tuple[str, ...]
    soak: bool

    def promises(self) -> tuple[str, ...]:
        """Every promise that it proves, in the order of the matrix."""
        return tuple(dict.fromkeys(promise for mark in self.marks for promise in promises_of(mark)))


def render() -> str:
    """The whole page."""
    tests = marked_tests(_REPOSITORY)
    results = yaml.safe_load(RESULTS.read_text()) if RESULTS.exists() else {}
    return _HEAD + "\n".join(
        f"## {letter}. {title}\n\n{_table([row for row in ROWS if row.id[0] == letter], tests, results or {})}"
        for letter, title in SECTIONS.items()
    )


def marked_tests(repository: Path) -> list[MarkedTest]:
    """Every test with `@pytest.mark.fault(...)`, or in a module with such a `pytestmark`, in the order of the files."""
    found: list[MarkedTest] = []
    for file in sorted(repository.glob("tests/**/test_*.py")):
        module = ast.parse(file.read_text(encoding="utf-8"))
        common = [mark for node in module.body for mark in _module_marks(node)]
        for node in module.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                marks = [*common, *(mark for decorator in node.decorator_list for mark in _all_marks(decorator))]
                named = tuple(dict.fromkeys(text for name, texts in marks if name == "fault" for text in texts))
                soak = any(name == "soak" for name, _ in (*common, *map(_mark, node.decorator_list)))
                test = f"{file.relative_to(repository).as_posix()}::{node.name}"
                found += [MarkedTest(name=test, marks=named, soak=soak)] if named else []
    return found


def _module_marks(node: ast.stmt) -> Iterator[tuple[str, list[str]]]:
    """Marks of a whole module: `pytestmark = pytest.mark.fault("A1")`, or a list of such."""
    if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "pytestmark" for t in node.targets):
        yield from _all_marks(node.value)


def _all_marks(node: ast.expr) -> Iterator[tuple[str, list[str]]]:
    """Every mark in an expression: a decorator itself, and those of the parameters within it."""
    for part in ast.walk(node):
        if isinstance(part, ast.expr) and (found := _mark(part))[0]:
            yield found


def _mark(node: ast.expr) -> tuple[str, list[str]]:
    """The name and the texts of `pytest.mark.NAME` and `pytest.mark.NAME(TEXT, ...)`; empty for what is none."""
    function = node.func if isinstance(node, ast.Call) else node
    if isinstance(function, ast.Attribute) and ast.unparse(function.value) == "pytest.mark":
        arguments = node.args if isinstance(node, ast.Call) else []
        return function.attr, [str(a.value) for a in arguments if isinstance(a, ast.Constant)]
    return "", []


def _table(rows: Iterable[Row], tests: list[MarkedTest], results: Mapping[str, Any]) -> str:
    header = ("Row", "Fault", "What you see", "Never lost", "Tests", "Result")
    return table(header, (_line(row, tests, results) for row in rows))


def _line(row: Row, tests: list[MarkedTest], results: Mapping[str, Any]) -> list[str]:
    numbers = {name: number for number, (name, _) in enumerate(row.promises(), start=1)}
    said = [f"{number}. {describe(promise)}" for number, (_, promise) in enumerate(row.promises(), start=1)]
    proving = {test.name: [numbers[name] for name in test.promises() if name in numbers] for test in tests}
    ours = [test for test in tests if proving[test.name]]
    links = "<br>".join(f"{_link(test)} {', '.join(map(str, sorted(proving[test.name])))}" for test in ours)
    verdict = _verdict([results.get(test.name) for test in ours])
    seen = len(row.sees)
    return [row.id, row.fault, "<br>".join(said[:seen]), "<br>".join(said[seen:]), links, verdict]


def _link(test: MarkedTest) -> str:
    file, _, name = test.name.partition("::")
    text = f"[{name.removeprefix('test_').replace('_', ' ')}](../{file})"
    return f"*{text}*" if test.soak else text


def _verdict(results: list[Mapping[str, str] | None]) -> str:
    """How the tests of a row ended: the worst of them, and the day of the oldest."""
    known = [result for result in results if result is not None]
    failed = [result for result in known if result["result"] != "passed"]
    if failed:
        return f"failed {failed[0]['on']} ({failed[0]['commit']})"
    if not known or len(known) < len(results):
        return "not recorded yet"
    oldest = min(known, key=lambda result: result["on"])
    return f"passed {oldest['on']} ({oldest['commit']})"
