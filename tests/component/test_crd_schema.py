"""Conventions that every field of the LoRAFineTune definition keeps, read from the file alone."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from docgen.schema import Field, load, walk
from lora_operator.model import request
from lora_trainer.contract import config
from lora_trainer.contract.preflight import ModelFacts, OutputCheck, Preflight, RowFacts
from lora_trainer.contract.progress import Progress
from lora_trainer.contract.run_plan import Alternative, RunPlan
from lora_trainer.contract.summary import Artifact, DatasetStats, ResolvedRun, Results, SavedState, Verification

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


def test_choices_are_those_of_the_contract() -> None:
    """What the API server lets through, the trainer knows, and the other way round."""
    kinds = {
        "spec.dataset.format": config.DatasetFormat,
        "spec.lora.layers": config.Layers,
        "spec.lora.scaling": config.Scaling,
        "spec.lora.variant": config.Variant,
        "spec.lora.init": config.Init,
        "spec.quantization": config.Quantization,
        "spec.training.packing": config.Packing,
        "spec.training.optimizer": config.Optimizer,
        "spec.training.activationCheckpointing": config.ActivationCheckpointing,
        "spec.training.kernels": config.Kernels,
        "spec.output.merge": config.Merge,
        "spec.output.mergePrecision": config.MergePrecision,
        "spec.tracking.kind": config.Tracker,
        "spec.training.schedule": config.Schedule,
        "spec.training.lossOn": config.LossOn,
        "spec.training.precision": config.Precision,
        "spec.preflight": request.Preflight,
        "status.preflight.output": OutputCheck,
    }
    assert {path: CRD.field(path).schema["enum"] for path in kinds} == {
        path: [member.value for member in kind] for path, kind in kinds.items()
    }


def camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


@pytest.mark.parametrize(
    ("kind", "path", "elsewhere"),
    [
        (ResolvedRun, "status.resolved", set()),
        (DatasetStats, "status.dataset", set()),
        (Results, "status.results", set()),
        (Verification, "status.results.verification", set()),
        (Artifact, "status.artifact", set()),
        (SavedState, "status.checkpoint", set()),
        (Preflight, "status.preflight", set()),
        (ModelFacts, "status.preflight.model", set()),
        (RowFacts, "status.preflight.dataset", set()),
        (RunPlan, "status.plan", set()),
        (Alternative, "status.plan.alternatives", set()),
        (Progress, "status.progress", {"resolved", "updatedAt"}),
    ],
)
def test_the_status_has_room_for_all_that_the_trainer_says(kind: type, path: str, elsewhere: set[str]) -> None:
    """What the operator copies from the contract is not pruned by the API server."""
    room = {field.name for field in CRD.field(path).children}
    assert {camel(field.name) for field in dataclasses.fields(kind)} - room == elsewhere
