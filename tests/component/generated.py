"""LoRAFineTunes made from the definition itself: valid, at the edge, and wrong; a new field is covered at once."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import yaml

Object = dict[str, Any]
REPOSITORY = Path(__file__).resolve().parents[2]
DEFINITION = REPOSITORY / "crds" / "lorafinetunes.yaml"
UNICODE = (
    "ü",
    "中文",
    "\U0001f600",
    "\u202e",
    "\x00",
    "\x1b[31m",
    "a\nb",
    "\ud7ff",
    "İ",
    "ﷺ",
    "'\"`$(x){{.}}",
    "\ufeff",
)
NUMBERS = (0, -1, 1, 2**31, 2**63 - 1, -(2**63), 2**70, 0.5, 1e308)
WORDS = ("", " ", "true", "0", "-0", "NaN", "1e999", "Infinity", "9" * 400, "x" * 70_000, *UNICODE)
BLOCKS: tuple[Any, ...] = ([], [None], [[]], {}, {"": ""}, {"x": {"y": [1, {"z": None}]}})
JUNK: tuple[Any, ...] = (None, True, False, *NUMBERS, *WORDS, *BLOCKS)
NAMES = ("", "A", "-a", "a.b", "a_b", "x" * 253, "x" * 254, "ü", "tone/mood", "..", "0a", "a" * 52, "a" * 53)


def present() -> Object:
    """The definition of this release."""
    document: Object = yaml.safe_load(DEFINITION.read_text())
    return document


def schema_of(crd: Object) -> Object:
    """Its schema."""
    schema: Object = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the spec, with all between it and the spec."""

    path: tuple[str, ...]
    schema: Mapping[str, Any]


def fields(schema: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[Field]:
    """Every field, those that hold others included."""
    for name, part in schema.get("properties", {}).items():
        yield Field((*path, name), part)
        yield from fields(part, (*path, name))


class Generator:
    """Draws resources. `bases` are good ones to start from."""

    def __init__(self, random: Random, bases: list[Object]) -> None:
        self._random = random
        self._bases = bases
        self.fields = list(fields(schema_of(present())["properties"]["spec"]))

    def resource(self, name: str) -> Object:
        """A good resource in which up to four fields were given values of any kind; sometimes its metadata, too."""
        document = copy.deepcopy(self._random.choice(self._bases))
        document["metadata"] = {"name": name}
        kinds: list[Callable[[Mapping[str, Any]], Any]] = [self.good, self.good, self.edge, self.junk]
        for _ in range(self._random.choice((0, 1, 1, 1, 2, 4))):
            field = self._random.choice(self.fields)
            set_field(document["spec"], field.path, self._random.choice(kinds)(field.schema))
        if self._random.random() < 0.1:
            self._odd_metadata(document)
        if self._random.random() < 0.05:
            document[self._random.choice(("spec", "status", "data"))] = self.junk({})
        return document

    def good(self, schema: Mapping[str, Any]) -> Any:
        """A value that the schema allows, as far as it tells without its rules."""
        random, low = self._random, int(schema.get("minimum", 0))
        makers: dict[str, Callable[[], Any]] = {
            "object": lambda: self._object(schema),
            "array": lambda: [self.good(schema["items"]) for _ in range(random.randint(1, min(schema["maxItems"], 3)))],
            "integer": lambda: random.randint(low, int(schema.get("maximum", low + 1000))),
            "boolean": lambda: random.random() < 0.5,
        }
        if schema.get("type", "") in makers and "enum" not in schema:
            return makers[schema["type"]]()
        words = ("1", "500m", "16Gi") if schema.get("x-kubernetes-int-or-string") else ("a", "0.5", "model.layers.0")
        return random.choice(schema.get("enum", (*words, str(schema.get("default", "tone")))))

    def _object(self, schema: Mapping[str, Any]) -> Object:
        if "additionalProperties" in schema:
            part = schema["additionalProperties"]
            count = self._random.randint(1, 3)
            return {f"key{number}": self.good(part) for number in range(count)} if isinstance(part, dict) else {}
        required = schema.get("required", ())
        chosen = {
            name: part
            for name, part in schema.get("properties", {}).items()
            if name in required or self._random.random() < 0.3
        }
        return {name: self.good(part) for name, part in chosen.items()}

    def edge(self, schema: Mapping[str, Any]) -> Any:
        """A value at, or just beyond, what the schema allows."""
        kind, beyond = schema.get("type"), self._random.randint(0, 1)
        if kind == "integer":
            bounds = (schema.get("minimum", 0) - beyond, schema.get("maximum", 2**31 - 1) + beyond)
            return self._random.choice(bounds)
        if kind == "array":
            return [self.good(schema["items"])] * min(schema.get("maxItems", 50) + beyond, 200)
        if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
            count = min(schema.get("maxProperties", 50) + beyond, 200)
            return {f"key{number}": self.good(schema["additionalProperties"]) for number in range(count)}
        if kind == "object":
            return {**self._object(schema), "unknown": 1}
        return self._random.choice(("a", *UNICODE)) * (schema.get("maxLength", 300) + beyond)

    def junk(self, _schema: Mapping[str, Any]) -> Any:
        """Anything."""
        return copy.deepcopy(self._random.choice(JUNK))

    def _odd_metadata(self, document: Object) -> None:
        odd: dict[str, Any] = {
            "name": self._random.choice(NAMES),
            "labels": {"team": self._random.choice(("red", "ü", "x" * 64, ""))},
            "annotations": {"note": self._random.choice(("x" * 250_000, *UNICODE))},
            "finalizers": ["team.example/keep"],
            "generateName": "tone-",
        }
        key = self._random.choice(tuple(odd))
        document["metadata"][key] = odd[key]


def set_field(target: Object, path: tuple[str, ...], value: Any) -> None:
    """Set a field and all between; what is in the way is replaced."""
    for name in path[:-1]:
        if not isinstance(target.get(name), dict):
            target[name] = {}
        target = target[name]
    target[path[-1]] = value


def loose(crd: Object) -> Object:
    """The definition of a careless release: any spec, any status, and nothing forgotten."""
    anything = {"x-kubernetes-preserve-unknown-fields": True}
    result = copy.deepcopy(crd)
    version = result["spec"]["versions"][0]
    version["schema"]["openAPIV3Schema"] = {
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": True,
        "properties": {"spec": anything, "status": anything},
    }
    version["additionalPrinterColumns"] = []
    return result
