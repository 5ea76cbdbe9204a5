"""What programs and the chart print, and comments of YAML and the definition, avoid the terms that the pages avoid."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.test_terms import REPOSITORY, found

CHART = REPOSITORY / "helm/lora-finetune-operator"
PACKAGES = ["operator/lora_client", "operator/lora_operator", "trainer_image/lora_trainer"]
COMMENTED = [
    *sorted(REPOSITORY.glob("examples/*.yaml")),
    *(CHART / f"{name}" for name in ("Chart.yaml", "values.yaml", "values.schema.json")),
    *sorted(CHART.glob("dashboards/*.json")),
]
TEMPLATES = sorted(path for path in CHART.glob("templates/**/*") if path.is_file())
_ACTION = re.compile(r"\{\{.*?\}\}", re.DOTALL)
COMMENT = re.compile(r"^(?:.*?\s)?#\s?(.*)$")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_message_avoids_the_listed_terms(package: str) -> None:
    """Whatever has a space may be printed: errors, states, advice, log, help."""
    hits = [
        f"{file.relative_to(REPOSITORY)}:{line}: {hit}"
        for file in sorted((REPOSITORY / package).rglob("*.py"))
        for line, text in messages(file.read_text(encoding="utf-8"))
        for hit in found(text)
    ]
    assert hits == []


@pytest.mark.parametrize("file", COMMENTED, ids=lambda file: file.name)
def test_a_comment_of_a_manifest_avoids_the_listed_terms(file: Path) -> None:
    """Or the description of a value, where the chart's schema has it."""
    text = file.read_text(encoding="utf-8")
    said = comments(text) if file.suffix == ".yaml" else "\n".join(descriptions(json.loads(text)))
    assert said
    assert list(found(said)) == []


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.name)
def test_a_template_of_the_chart_avoids_the_listed_terms(file: Path) -> None:
    """Notes, texts of alerts, comments that are rendered; what a template inserts is not known."""
    text = _ACTION.sub(lambda action: re.sub(r"[^\n]", " ", action.group()), file.read_text(encoding="utf-8"))
    assert list(found(text)) == []


def test_a_description_of_the_definition_avoids_the_listed_terms() -> None:
    """Of each field, and of each rule that a value breaks."""
    said = list(descriptions(yaml.safe_load((REPOSITORY / "crds/lorafinetunes.yaml").read_text(encoding="utf-8"))))
    assert len(said) > 200
    assert [hit for text in said for hit in found(text)] == []


def test_a_listed_term_is_found_in_what_is_printed_alone() -> None:
    """Over what an f-string inserts, and in the docstring that a command prints as its help."""
    code = (
        '"""Nobody."""\n'
        "@app.command('x')\ndef x():\n    '''For somebody.'''\n"
        "def y():\n    '''For whoever.'''\n    say(f'{a} goes {b} goes on, k{c}in'); say('whoever')\n"
        "note('its kin' 'ds', 'a kin')\n"
    )
    assert [(line, list(found(text))) for line, text in messages(code)] == [
        (4, ["line 1: 'somebody': write a user, another client, another controller"]),
        (7, ["line 1: 'goes on': write continues, resumes"]),
        (8, ["line 1: 'kin': write related objects"]),
        (8, []),
    ]
    assert comments("# One\na: b  # two\nc: d#e\n#three\n") == "One\ntwo\n\nthree"
    nested = {"description": "a", "properties": {"description": {"description": "b"}}, "x": [{"message": "c"}]}
    assert list(descriptions(nested)) == ["a", "b", "c"]


def messages(code: str) -> Iterator[tuple[int, str]]:
    """Each string of several words with its line; of docstrings those of commands alone, which are their help."""
    tree = ast.parse(code)
    documentation = {
        id(first.value): _is_command(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        for first in node.body
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    }
    joined = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    parts = {id(part) for node in joined for part in node.values}
    single = [
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if id(node) not in parts and documentation.get(id(node), True)
    ]
    texts = single + [(node.lineno, "".join(map(_text, node.values))) for node in joined]
    yield from sorted((line, text) for line, text in texts if " " in text)


def _text(part: ast.expr) -> str:
    """A part of an f-string; of what it inserts nothing is known."""
    return str(part.value) if isinstance(part, ast.Constant) else "x"


def _is_command(node: ast.AST) -> bool:
    decorators = getattr(node, "decorator_list", ())
    return any(ast.unparse(decorator).startswith("app.command") for decorator in decorators)


def comments(text: str) -> str:
    """The comments of YAML, each on its line."""
    return "\n".join(match[1] if (match := COMMENT.match(line)) else "" for line in text.splitlines())


def descriptions(schema: Any) -> Iterator[str]:
    """The texts of a JSON schema and of its rules; a property may have the name of a key."""
    if isinstance(schema, list):
        for item in schema:
            yield from descriptions(item)
    elif isinstance(schema, dict):
        for key, value in schema.items():
            if key in ("description", "message") and isinstance(value, str):
                yield value
            else:
                yield from descriptions(value)
