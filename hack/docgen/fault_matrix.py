"""docs/faults.md: what must survive what, the tests that prove it, and how they last ended."""

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tests.faults.matrix import ROWS, SECTIONS, Row
from tests.faults.recording import RESULTS

from docgen.text import table

_REPOSITORY = Path(__file__).resolve().parents[2]
_HEAD = """\
<!-- Generated from tests/faults/matrix.py, results.yaml there and the tests' marks: change them, and `make docs`. -->
# What must survive what

Everything that runs in a cluster dies at some time. This page lists the faults that the operator and the trainer are
made for, what you see of each, what is never lost by it, and the tests that prove it. The words in code are those of
the conditions of a LoRAFineTune: [the operator's page](operator.md) explains each, and
[operations](operations.md) says what to do.

The tests of the operator run on a real API server with its controllers. Where a fault lies between the two, a
[proxy](../tests/faults/proxy.py) in the way injects it: error codes, cut and frozen streams, lost events, stale
answers. A result is that of the last recorded run (`pytest --record-faults`), with its day and release. Tests in
italics take long and run in `make soak` alone.

"""


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkedTest:
    """A test of the fault matrix. `name` is its node name without parameters."""

    name: str
    rows: tuple[str, ...]
    soak: bool


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
                marks = [*common, *(mark for decorator in node.decorator_list for mark in _marks(decorator))]
                rows = tuple(row for name, rows in marks if name == "fault" for row in rows)
                soak = any(name == "soak" for name, _ in marks)
                test = f"{file.relative_to(repository).as_posix()}::{node.name}"
                found += [MarkedTest(name=test, rows=rows, soak=soak)] if rows else []
    return found


def _module_marks(node: ast.stmt) -> Iterator[tuple[str, list[str]]]:
    """Marks of a whole module: `pytestmark = pytest.mark.fault("A1")`, or a list of such."""
    if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "pytestmark" for t in node.targets):
        values = node.value.elts if isinstance(node.value, ast.List | ast.Tuple) else [node.value]
        for value in values:
            yield from _marks(value)


def _marks(node: ast.expr) -> Iterator[tuple[str, list[str]]]:
    """The name and the texts of `pytest.mark.NAME` and `pytest.mark.NAME(TEXT, ...)`."""
    function = node.func if isinstance(node, ast.Call) else node
    if isinstance(function, ast.Attribute) and ast.unparse(function.value) == "pytest.mark":
        arguments = node.args if isinstance(node, ast.Call) else []
        yield function.attr, [str(a.value) for a in arguments if isinstance(a, ast.Constant)]


def _table(rows: Iterable[Row], tests: list[MarkedTest], results: Mapping[str, Any]) -> str:
    header = ("Row", "Fault", "What you see", "Never lost", "Tests", "Result")
    return table(header, (_line(row, [t for t in tests if row.id in t.rows], results) for row in rows))


def _line(row: Row, tests: list[MarkedTest], results: Mapping[str, Any]) -> list[str]:
    links = "<br>".join(_link(test) for test in tests)
    verdict = _verdict([results.get(test.name) for test in tests]) if tests else row.untested
    return [row.id, row.fault, row.seen, row.kept, links, verdict]


def _link(test: MarkedTest) -> str:
    file, _, name = test.name.partition("::")
    text = f"[{name.removeprefix('test_').replace('_', ' ')}](../{file})"
    return f"*{text}*" if test.soak else text


def _verdict(results: list[Mapping[str, str] | None]) -> str:
    """How the tests of a row ended: the worst of them, and the day of the oldest."""
    known = [result for result in results if result is not None]
    failed = [result for result in known if result["result"] != "passed"]
    if failed:
        return f"failed {failed[0]['on']} ({failed[0]['release']})"
    if len(known) < len(results):
        return "not recorded yet"
    oldest = min(known, key=lambda result: result["on"])
    return f"passed {oldest['on']} ({oldest['release']})"
