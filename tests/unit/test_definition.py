"""One definition: the schema of the API server, and what reads a manifest without it, from the same words."""

import copy
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.unit.builders import UID, make_manifest
from tests.unit.spec_schema import SPEC

from docgen.crd import object_schema
from lora_trainer.spec.api import Api, Decimal, Rule, api, keys_matching, matching, paths
from lora_trainer.spec.fields import Problem, Reader
from lora_trainer.spec.manifest import RunOptions, train_config
from lora_trainer.spec.reading import read


class Icing(enum.StrEnum):
    """On top."""

    SUGAR = "Sugar"
    LEMON = "Lemon"


_LETTERS = matching("[a-z]+", "is no cook's name: write letters")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plate:
    """What it lies on."""

    colour: str = field(metadata=api("Its colour.", longest=9, rules=(_LETTERS,)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cake:
    """One field of each shape."""

    layers: int = field(default=2, metadata=api("How many.", low=1, high=9))
    height: int = field(default=3, metadata=api("In cm.", low=1, high=90, filled=False))
    icing: Icing = field(default=Icing.SUGAR, metadata=api("On top."))
    sweetness: float = field(
        default=0.5,
        metadata=api("Share.", low=0, high=1, decimal=Decimal(noun="a share", examples=("0.5",), below_high=True)),
    )
    fruits: tuple[str, ...] = field(
        default=(), metadata=api("In it.", fewest=1, most=2, item=Api(about="One.", longest=9, rules=(_LETTERS,)))
    )
    grams: Mapping[str, int] = field(
        default_factory=dict,
        metadata=api(
            "Of each.",
            most=2,
            item=Api(about="So many.", low=1, high=9),
            rules=(keys_matching("[a-z]+", 9, "there is a key that is no name"),),
        ),
    )
    plate: Plate | None = field(
        default=None,
        metadata=api(
            "Below it.",
            between=(
                Rule(
                    cel="!has(self.plate) || self.layers < 9",
                    at=".colour",
                    forbidden=True,
                    message="is too weak for nine layers",
                    quoted=True,
                    broken=lambda cake, has: has("plate") and cake.layers == 9,
                ),
            ),
        ),
    )


SHARE = 'is not a share: write a quoted number from "0" to below "1", as in "0.5"'
_IMMUTABLE = {
    "reason": "FieldValueForbidden",
    "message": "immutable: it defines the run; create a new LoRAFineTune instead",
}


def test_the_schema_says_what_the_class_says() -> None:
    """Types, bounds, defaults that are filled in, rules with their sentences, and that nothing changes."""
    schema = object_schema(Cake, Api(about="A cake."), fixed=True, complete=True)
    fixed = {"rule": "self == oldSelf", **_IMMUTABLE}
    letters = {
        "rule": "self.matches('^[a-z]+$')",
        "messageExpression": "'\"' + self + '\" is no cook\\'s name: write letters'",
        "message": "is no cook's name: write letters",
    }
    whole = {"type": "integer", "format": "int32", "minimum": 1}
    assert schema["x-kubernetes-validations"] == [
        *(
            {"rule": f"has(self.{name}) == has(oldSelf.{name})", "fieldPath": f".{name}", **_IMMUTABLE}
            for name in ("height", "fruits", "grams", "plate")
        ),
        {
            "rule": "!has(self.plate) || self.layers < 9",
            "fieldPath": ".plate.colour",
            "reason": "FieldValueForbidden",
            "messageExpression": "'\"' + self.plate.colour + '\" is too weak for nine layers'",
            "message": "is too weak for nine layers",
        },
    ]
    assert schema["properties"] == {
        "layers": {
            **whole,
            "description": "How many.",
            "maximum": 9,
            "default": 2,
            "x-kubernetes-validations": [fixed],
        },
        "height": {**whole, "description": "In cm.", "maximum": 90, "x-kubernetes-validations": [fixed]},
        "icing": {
            "type": "string",
            "description": "On top.",
            "enum": ["Sugar", "Lemon"],
            "default": "Sugar",
            "x-kubernetes-validations": [fixed],
        },
        "sweetness": {
            "type": "string",
            "description": "Share.",
            "maxLength": 20,
            "default": "0.5",
            "x-kubernetes-validations": [
                fixed,
                {
                    "rule": "self.matches('^[0-9]{1,7}([.][0-9]{1,12})?([eE][-+]?[0-9]{1,2})?$') && double(self) < 1.0",
                    "messageExpression": f"'\"' + self + '\" {SHARE}'",
                    "message": SHARE,
                },
            ],
        },
        "fruits": {
            "type": "array",
            "description": "In it.",
            "minItems": 1,
            "maxItems": 2,
            "x-kubernetes-list-type": "set",
            "items": {
                "type": "string",
                "description": "One.",
                "maxLength": 9,
                "x-kubernetes-validations": [letters],
            },
            "x-kubernetes-validations": [fixed],
        },
        "grams": {
            "type": "object",
            "description": "Of each.",
            "maxProperties": 2,
            "additionalProperties": {**whole, "description": "So many.", "maximum": 9},
            "x-kubernetes-validations": [
                fixed,
                {
                    "rule": "self.all(k, k.size() <= 9 && k.matches('^[a-z]+$'))",
                    "message": "there is a key that is no name",
                },
            ],
        },
        "plate": {
            "type": "object",
            "description": "Below it.",
            "required": ["colour"],
            "properties": {
                "colour": {
                    "type": "string",
                    "description": "Its colour.",
                    "maxLength": 9,
                    "x-kubernetes-validations": [fixed, letters],
                }
            },
        },
    }


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ({"layers": 10}, "cake.layers is 10: must be a whole number from 1 to 9"),
        ({"icing": "Salt"}, 'cake.icing is "Salt": must be one of Sugar, Lemon'),
        ({"sweetness": 1}, 'cake.sweetness is 1: must be a quoted decimal number, as in sweetness: "1"'),
        ({"sweetness": "1"}, f'cake.sweetness is "1", which {SHARE}'),
        ({"sweetness": "1\n"}, SHARE),
        ({"fruits": ["a", "b", "c"]}, "must be a list of at most 2 strings of 1 to 9 characters"),
        ({"fruits": ["a", "B"]}, 'cake.fruits is "B", which is no cook\'s name: write letters'),
        ({"grams": {"a": 10}}, "must map names to whole numbers from 1 to 9"),
        ({"grams": {"A": 1}}, 'cake.grams is "A": there is a key that is no name'),
        ({"plate": "white"}, 'cake.plate is "white": must be an object, as in plate: {colour: "white"}'),
        ({"plate": {}}, "cake.plate.colour is missing: must be set"),
        ({"plate": {"colour": "a\n"}}, "is no cook's name: write letters"),
        ({"plate": {"colour": ""}}, 'cake.plate.colour is "", which is no cook\'s name: write letters'),
        ({"plates": {}}, "there is no such field; did you mean plate?"),
    ],
)
def test_a_wrong_value_gets_one_sentence_and_reads_as_the_default(document: dict[str, Any], sentence: str) -> None:
    """By the same bounds, choices and patterns."""
    problems: list[Problem] = []
    cake = read(Cake, Reader(path="cake", document=document, problems=problems, strict=True))
    (problem,) = map(str, problems)
    assert problem.endswith(sentence)
    assert (cake.layers, cake.icing, cake.sweetness) == (2, Icing.SUGAR, 0.5)


@pytest.mark.parametrize(
    ("document", "sentences"),
    [
        ({"layers": 9, "plate": {"colour": "red"}}, ['cake.plate.colour is "red": is too weak for nine layers']),
        ({"layers": 8, "plate": {"colour": "red"}}, []),
        ({"layers": 9}, []),
        ({"layers": 9, "height": 0, "plate": {"colour": "red"}}, ["cake.height is 0: must be a whole number from 1"]),
    ],
)
def test_a_rule_between_fields_is_asked_where_each_of_them_is_right(
    document: dict[str, Any], sentences: list[str]
) -> None:
    """At the field that it is about, with what is written there."""
    problems: list[Problem] = []
    read(Cake, Reader(path="cake", document=document, problems=problems, strict=True))
    assert len(problems) == len(sentences)
    assert all(str(problem).startswith(said) for problem, said in zip(problems, sentences, strict=True))


def test_what_is_right_is_read() -> None:
    """With the defaults of what is absent."""
    problems: list[Problem] = []
    document = {"sweetness": "2e-1", "fruits": ["fig"], "grams": {"flour": 3}, "plate": {"colour": "white"}}
    cake = read(Cake, Reader(path="cake", document=document, problems=problems, strict=True))
    assert cake == Cake(sweetness=0.2, fruits=("fig",), grams={"flour": 3}, plate=Plate(colour="white"))
    assert not problems


def test_a_class_names_its_fields_by_their_paths() -> None:
    """Those within included."""
    assert list(paths(Cake, "cake"))[-2:] == ["cake.plate", "cake.plate.colour"]


def _filled(schema: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any]:
    """With the definition's defaults, as the API server fills them in."""
    result = dict(value)
    for key, part in schema.get("properties", {}).items():
        if key not in result and "default" in part:
            result[key] = copy.deepcopy(part["default"])
        if isinstance(result.get(key), dict):
            result[key] = _filled(part, result[key])
    return result


@pytest.mark.parametrize(
    "spec",
    [
        {"lora": {"rank": 4}, "training": {"maxSteps": 5, "seed": 7}},
        {"dataset": {"uri": "pvc://a/b", "validationUri": "pvc://a/c"}, "lora": {"targetModules": ["q_proj"]}},
    ],
)
def test_a_stored_manifest_asks_for_the_same_run_as_its_file(spec: dict[str, Any]) -> None:
    """What depends on another field is not filled in."""
    manifest, options = make_manifest(spec=spec), RunOptions(uid=UID, strict=True)
    stored = {**manifest, "spec": _filled(SPEC, manifest["spec"])}
    assert stored["spec"]["scheduling"] == {}
    assert train_config(stored, options) == train_config(manifest, options)
