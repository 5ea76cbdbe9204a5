"""Conventions that every field of the LoRAFineTune definition keeps, read from the file alone."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.component.definition import BAD, OF_STRUCTURE, changed

from docgen.schema import Field, load, walk
from lora_trainer.spec.api import Rule, described
from lora_trainer.spec.fields import Problem
from lora_trainer.spec.manifest import ANOTHER, NAME, RunOptions, understand
from lora_trainer.spec.resource import Spec

REPOSITORY = Path(__file__).resolve().parents[2]
CRD = load(REPOSITORY / "crds/lorafinetunes.yaml")
FIELDS = [field for field in walk(CRD.root) if field.path not in ("apiVersion", "kind", "metadata")]


def schemas(field: Field) -> Iterator[Mapping[str, Any]]:
    """The field's schema, and that of the items that it holds."""
    yield field.schema
    yield from (field.schema[key] for key in ("items", "additionalProperties") if key in field.schema)


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.path)
def test_every_field_is_described_for_people(field: Field) -> None:
    """A description is a sentence: it says more than the name, and ends."""
    assert len(field.description) > len(field.name) + 3
    assert field.description.endswith(".")


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.path)
def test_every_field_is_bounded(field: Field) -> None:
    """No string, list, map or number is without limits, and nothing may be null."""
    for schema in schemas(field):
        kind = schema.get("type", "string")
        limits = {
            "string": {"maxLength", "enum", "format"} & set(schema),
            "array": {"maxItems"} & set(schema),
            "integer": {"minimum"} & set(schema),
            "object": {"maxProperties", "properties"} & set(schema),
            "boolean": {"boolean"},
        }
        assert limits[kind], f"{field.path} is a {kind} without limits"
        assert "nullable" not in schema
        assert "pattern" not in schema, "a pattern answers with itself: use a CEL rule with a sentence"


def test_numbers_of_the_spec_have_an_upper_limit() -> None:
    """Counts in the status may grow, what a user asks for may not."""
    numbers = [field for field in FIELDS if field.path.startswith("spec") and field.type_name == "integer"]
    assert len(numbers) > 10
    assert not [field.path for field in numbers if "maximum" not in field.schema]


def test_there_are_no_floats() -> None:
    """Fractions are strings, which no tool reformats."""
    assert not [field.path for field in FIELDS if field.schema.get("type") == "number"]


def test_every_rule_explains_itself_in_one_line() -> None:
    """A broken rule answers with a sentence, never with its expression."""
    rules = [rule for field in FIELDS for rule in field.rules]
    assert len(rules) > 80
    for rule in rules:
        assert len(rule.message) > 20
        assert "\n" not in rule.message


def test_defaults_read_back_as_the_type_that_they_are() -> None:
    """No default is written so that a YAML dumper would unquote it into another type."""
    defaults = {field.path: field.schema["default"] for field in FIELDS if "default" in field.schema}
    assert len(defaults) > 15
    assert yaml.safe_load(yaml.safe_dump(defaults)) == defaults
    assert not [
        path for path, value in defaults.items() if isinstance(value, str) and re.fullmatch(r".*\de[-+]?\d+", value)
    ]


# A list's least length and that nothing is in it twice are structure, which only the server looks at.
OF_THE_SERVER = {
    "a column without name",
    "no target modules",
    "a module twice",
    "no layer",
    "a layer twice",
    "no product",
}


def bad_cases() -> list[Any]:
    """What the API server is asked in test_crd_on_api_server."""
    files = [path for path in sorted(BAD.glob("*.yaml")) if path.name != "base.yaml"]
    return [
        pytest.param(case["change"], case["field"], case["says"], id=case["name"])
        for path in files
        for case in yaml.safe_load(path.read_text())
        if case["name"] not in OF_THE_SERVER
    ]


def problems(change: dict[str, Any]) -> tuple[Problem, ...]:
    """What trainer, client and operator find."""
    base = yaml.safe_load((BAD / "base.yaml").read_text())
    return understand(changed(base, change), RunOptions(uid="0", strict=True)).problems


@pytest.mark.parametrize(("change", "field", "says"), bad_cases())
def test_what_the_api_server_refuses_is_refused_without_it(change: dict[str, Any], field: str, says: str) -> None:
    """At the same field; of a list's or a map's items the list or the map is named. But for structure it is said in the
    same words, before which the server puts the value in quotes."""
    found = problems(change)
    assert any(f"{field}.".startswith((f"{problem.path}.", f"{problem.path}[")) for problem in found)
    if not OF_STRUCTURE.search(says):
        (problem,) = found
        assert says in f'"{problem.value}" {problem.rule}'


def rules(kind: Any) -> Iterator[Rule]:
    """All of a class and of those within that can be broken without a server."""
    for field in described(kind):
        yield from (rule for rule in (*field.rules, *field.item.rules, *field.api.between) if rule.broken)
        if is_dataclass(field.kind):
            yield from rules(field.kind)


def test_every_rule_is_broken_by_a_case() -> None:
    """So each is held against the API server, and its sentence with it."""
    said = {problem.rule for case in bad_cases() for problem in problems(case.values[0])}
    assert {rule.message for rule in (*rules(Spec), ANOTHER, NAME)} <= said
