"""The fields of a CustomResourceDefinition, walked in the order in which they are written."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from docgen.text import sentence_list

Schema = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A CEL rule; `path` is the field that the API server names when it is broken."""

    path: str
    expression: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One property. `path` is its way from the root, as in `spec.lora.rank`; items of a list end in `[]`."""

    path: str
    schema: Schema
    required: bool

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]

    @property
    def parent(self) -> str:
        """The path without its last part."""
        return self.path.rpartition(".")[0]

    @property
    def description(self) -> str:
        """What `kubectl explain` says."""
        return str(self.schema.get("description", "")).strip()

    @property
    def children(self) -> tuple["Field", ...]:
        """Properties of an object, or of the objects in a list; none for a map."""
        inner, path = self.schema, self.path
        if "items" in inner:
            inner, path = inner["items"], f"{path}[]"
        required = inner.get("required", ())
        properties: Mapping[str, Schema] = inner.get("properties", {})
        return tuple(
            Field(path=f"{path}.{name}".lstrip("."), schema=schema, required=name in required)
            for name, schema in properties.items()
        )

    @property
    def rules(self) -> tuple[Rule, ...]:
        """CEL rules on the field itself, and on the items of a list or a map."""
        inner = {"": self.schema, "[]": self.schema.get("items", {}), ".*": self.schema.get("additionalProperties", {})}
        return tuple(
            Rule(path=self.path + suffix + rule.get("fieldPath", ""), expression=rule["rule"], message=rule["message"])
            for suffix, schema in inner.items()
            for rule in schema.get("x-kubernetes-validations", ())
        )

    @property
    def immutable(self) -> bool:
        """Whether a rule holds the field to its first value, but for a change that it names."""
        return any(rule.expression.partition(" || ")[0] == "self == oldSelf" for rule in self.rules)

    @property
    def type_name(self) -> str:
        """The type as people call it."""
        if self.schema.get("x-kubernetes-int-or-string"):
            return "quantity"
        kind = str(self.schema.get("type"))
        if kind == "array":
            return f"list of {self.schema['items']['type']}s"
        if "additionalProperties" in self.schema:
            return f"map of {self.schema['additionalProperties']['type']}s"
        return "time" if self.schema.get("format") == "date-time" else kind

    @property
    def bounds(self) -> str:
        """Limits and choices as a short text; empty where there are none that matter to a reader."""
        schema = self.schema
        if "enum" in schema:
            return sentence_list([f"`{value}`" for value in schema["enum"]], "or")
        if "minimum" in schema and "maximum" in schema:
            return f"{schema['minimum']} to {schema['maximum']}"
        if "maxItems" in schema:
            return f"at most {schema['maxItems']} items"
        return f"at most {schema['maxProperties']} entries" if "maxProperties" in schema else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """A CustomResourceDefinition with one version."""

    document: Mapping[str, Any]

    @property
    def version(self) -> Mapping[str, Any]:
        """Its only version."""
        (version,) = self.document["spec"]["versions"]
        return dict(version)

    @property
    def root(self) -> Field:
        """The resource itself; its path is empty."""
        return Field(path="", schema=self.version["schema"]["openAPIV3Schema"], required=True)

    def field(self, path: str) -> Field:
        """The field of this path. Raises KeyError."""
        for candidate in walk(self.root):
            if candidate.path == path:
                return candidate
        raise KeyError(path)


def load(path: Path) -> Definition:
    """Read a definition from its YAML file."""
    return Definition(document=yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader))


def walk(field: Field) -> Iterator[Field]:
    """Every field below this one, parents first."""
    for child in field.children:
        yield child
        yield from walk(child)
