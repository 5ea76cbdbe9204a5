"""The definition of the resource and the contract agree on fields, bounds and defaults."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.builders import UID, make_manifest
from tests.unit.test_render import FULL

from lora_trainer.contract.config import Precision
from lora_trainer.contract.manifest import COLUMN_ROLES, ManifestError, RunOptions, train_config
from lora_trainer.contract.template_fields import BUILT_IN, RESERVED

OPTIONS = RunOptions(uid=UID, strict=True)
CRD = yaml.safe_load((Path(__file__).parents[2] / "crds" / "lorafinetunes.yaml").read_text())
SPEC: dict[str, Any] = CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]


def leaves(schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every field of the spec with its path."""
    for key, field in schema.get("properties", {}).items():
        yield (*path, key), field
        if field.get("type") == "object":
            yield from leaves(field, (*path, key))


def with_value(path: tuple[str, ...], value: object) -> dict[str, Any]:
    """A valid manifest with one field set."""
    manifest = copy.deepcopy(make_manifest(spec={"training": {"effectiveBatchSize": 65536}}))
    holder = manifest["spec"]
    for key in path[:-1]:
        holder = holder.setdefault(key, {})
    holder[path[-1]] = value
    return manifest


OF_THE_OPERATOR = {
    "scheduling",
    "maxRetries",
    "activeDeadlineSeconds",
    "pendingTimeoutSeconds",
    "ttlSecondsAfterFinished",
}
EDGES = [
    pytest.param(path, value, id=f"{'.'.join(path)}={value}")
    for path, field in leaves(SPEC)
    for value in (field.get("minimum"), field.get("maximum"), *field.get("enum", ()))
    if value is not None and path[0] not in OF_THE_OPERATOR
]


@pytest.mark.parametrize(("path", "value"), EDGES)
def test_every_bound_of_the_definition_is_within_the_contract(path: tuple[str, ...], value: object) -> None:
    """What the API server accepts must run."""
    manifest = with_value(path, value)
    if path[-1] == "effectiveBatchSize":
        manifest["spec"]["training"] = {path[-1]: value}
    if path[-1] == "earlyStoppingPatience":
        manifest["spec"]["training"]["evalSteps"] = 10
    if path[-1] == "mergePrecision":
        manifest["spec"]["output"]["merge"] = "Merged"
    assert train_config(manifest, OPTIONS)


def test_there_are_bounds_to_compare() -> None:
    """The walk over the definition finds them."""
    assert len(EDGES) > 25


def defaulted(schema: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    """A value with the defaults of the definition, as the API server fills them in."""
    result = dict(value)
    for key, field in schema.get("properties", {}).items():
        if key not in result and "default" in field:
            result[key] = copy.deepcopy(field["default"])
        if isinstance(result.get(key), dict):
            result[key] = defaulted(field, result[key])
    return result


def test_defaults_of_the_definition_are_those_of_the_contract() -> None:
    """The same file runs alike with a cluster and without."""
    manifest = make_manifest()
    filled = {**manifest, "spec": defaulted(SPEC, manifest["spec"])}
    assert filled["spec"]["lora"]["rank"] == 16
    assert train_config(filled, OPTIONS) == train_config(manifest, OPTIONS)


def test_the_definition_knows_the_templates_and_names_of_the_contract() -> None:
    """Its rules list them."""
    dataset = SPEC["properties"]["dataset"]["properties"]
    rules = [rule["rule"] for rule in dataset["chatTemplate"]["x-kubernetes-validations"]]
    assert str(list(BUILT_IN)) in " ".join(rules)
    rules = [rule["rule"] for rule in dataset["templateArguments"]["x-kubernetes-validations"]]
    assert str(list(RESERVED)) in " ".join(rules)
    rules = [rule["rule"] for rule in dataset["columns"]["x-kubernetes-validations"]]
    assert str(list(COLUMN_ROLES)) in " ".join(rules)


def test_every_field_of_the_definition_is_read_by_the_contract() -> None:
    """Strict reading knows them all."""
    precision = [member.value for member in Precision]
    assert SPEC["properties"]["training"]["properties"]["precision"]["enum"] == precision
    assert train_config(make_manifest(spec=FULL), OPTIONS)
    known = {path for path, field in leaves(SPEC) if field.get("type") != "object"}
    assert ("training", "seed") in known
    for path in known:
        assert path[-1] not in unread(path), path


def unread(path: tuple[str, ...]) -> set[str]:
    """Names of the fields that strict reading does not know, in a manifest with this one set to nonsense."""
    try:
        train_config(with_value(path, {"nonsense": True}), OPTIONS)
    except ManifestError as error:
        return {problem.path.rpartition(".")[2] for problem in error.problems if "no such field" in problem.rule}
    return set()
