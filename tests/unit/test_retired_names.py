"""Names in the operator and the client that were given up for the terms of informers and controllers stay gone."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

OPERATOR = Path(__file__).parents[2] / "operator"
PARTS = {"bury", "buried", "dig", "dug", "vacate", "depart", "departed", "rival", "rivals", "theatre", "witness"}
PARTS |= {"word", "words", "told"}
"""Within a name, such as `dig_up`. What another tool calls a token, a term or an argument is called so here."""
WHOLE = {"confirm_absence", "absence_confirmed", "on_absence", "_end_surely", "_look_again"}


def names(text: str) -> Iterator[tuple[int, str]]:
    """Line and name of all that a module defines, takes, imports or uses."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.keyword(arg=str(name)) | ast.arg(arg=name):
                yield node.lineno, name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name
            case ast.alias(asname=str(name)) | ast.alias(name=name):
                yield node.lineno, name


def retired(text: str) -> list[tuple[int, str]]:
    """Those of them that were given up; `DigUp` is read as `dig_up`."""
    return [
        (line, name)
        for line, name in names(text)
        if name in WHOLE or PARTS & set(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().split("_"))
    ]


@pytest.mark.parametrize("file", sorted(OPERATOR.rglob("*.py")), ids=lambda file: file.stem)
def test_a_name_that_was_given_up_stays_gone(file: Path) -> None:
    """Each is named with its line."""
    assert retired(file.read_text(encoding="utf-8")) == []


def test_a_name_that_was_given_up_is_found_wherever_it_stands() -> None:
    """Not within another word, nor in a text."""
    code = "def dig_up(words): self._told = f(word=1)\nclass Buried: 'told'\nimport a as rivals\nkeywords = digest(x)\n"
    assert sorted(retired(code)) == [
        (1, "_told"),
        (1, "dig_up"),
        (1, "word"),
        (1, "words"),
        (2, "Buried"),
        (3, "rivals"),
    ]
    assert retired("turn.on_absence()") == [(1, "on_absence")]
