"""A misspelt field is refused wherever it stands in a manifest, with the name that was meant."""

from collections.abc import Iterator
from typing import Any

import pytest
from tests.unit.builders import UID, make_manifest
from tests.unit.spec_schema import SPEC

from lora_trainer.spec.column_roles import COLUMN_ROLES
from lora_trainer.spec.manifest import ManifestError, RunOptions, train_config

Way = tuple[str, ...]
"""From the spec to an object; `[]` stands for the items of a list."""


def objects(schema: dict[str, Any], way: Way = ()) -> Iterator[tuple[Way, dict[str, Any]]]:
    """Every object of a schema whose fields have names that are given, with its fields."""
    if "properties" in schema:
        yield way, schema["properties"]
    for name, field in schema.get("properties", {}).items():
        yield from objects(field, (*way, name))
    if "items" in schema:
        yield from objects(schema["items"], (*way, "[]"))


MISSPELT = [(way, name) for way, fields in objects(SPEC) for name in fields]


def placed(spec: dict[str, Any], way: Way, field: dict[str, Any]) -> dict[str, Any]:
    """A spec with one more field in the object at the end of the way."""
    if not way:
        return {**spec, **field}
    step, *rest = way
    if rest[:1] == ["[]"]:
        return {**spec, step: [placed({}, tuple(rest[1:]), field)]}
    return {**spec, step: placed(spec.get(step, {}), tuple(rest), field)}


def complaints(spec: dict[str, Any], *, strict: bool = True) -> list[str]:
    """What is wrong with a manifest of this spec."""
    try:
        train_config({**make_manifest(), "spec": spec}, RunOptions(uid=UID, strict=strict))
    except ManifestError as error:
        return [str(problem) for problem in error.problems]
    return []


@pytest.mark.parametrize(("way", "name"), MISSPELT, ids=lambda part: part if isinstance(part, str) else ".".join(part))
def test_a_misspelt_field_of_any_object_gets_one_sentence(way: Way, name: str) -> None:
    """Its last letter stands twice. The API server refuses the same, by the schema that this test walks. What else an
    object lacks in the place is said as well."""
    wrong = name + name[-1]
    found = complaints(placed(make_manifest()["spec"], way, {wrong: "x"}))
    path = ".".join(("spec", *way, wrong)).replace(".[]", "[0]")
    assert [text for text in found if not text.endswith("must be set")] == [
        f'{path} is "x": there is no such field; did you mean {name}?'
    ]


def test_the_walk_finds_the_objects_within_objects() -> None:
    """Those of lists, too."""
    ways = {way for way, _ in MISSPELT}
    assert {(), ("dataset", "secretRef"), ("scheduling",), ("scheduling", "tolerations", "[]")} <= ways
    assert len(ways) >= 14


@pytest.mark.parametrize("role", COLUMN_ROLES)
def test_a_misspelt_role_of_a_column_is_answered_with_the_right_one(role: str) -> None:
    """A role is a key of a map: the API server refuses it by a rule."""
    dataset = {**make_manifest()["spec"]["dataset"], "columns": {role + role[-1]: "x"}}
    (found,) = complaints({**make_manifest()["spec"], "dataset": dataset})
    assert found.endswith(f"; did you mean {role}?")


def test_keys_that_a_cluster_chooses_are_taken_as_they_are() -> None:
    """Labels of nodes cannot be misspelt."""
    assert complaints({**make_manifest()["spec"], "scheduling": {"nodeSelector": {"any/label": "x"}}}) == []


def test_a_resource_that_is_stored_is_not_refused_for_a_name() -> None:
    """The API server has pruned it, or an older definition knew it."""
    assert complaints(placed(make_manifest()["spec"], ("scheduling",), {"x": 1}), strict=False) == []
