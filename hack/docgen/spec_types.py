"""The spec of the definition as Python types, for the client's interface."""

from collections.abc import Iterator
from textwrap import shorten

from docgen.schema import Field

# Kubernetes' own, many levels deep: whoever writes one in Python has its types from a client of Kubernetes.
_FOREIGN = {"spec.scheduling.affinity"}
_SCALARS = {"string": "str", "integer": "int", "boolean": "bool", "number": "float"}
_HEAD = '''"""The spec of a LoRAFineTune as types: written by hack/docs from the definition."""

from typing import Any, Literal, NotRequired, TypedDict

'''
_TAIL = '''

class Manifest(TypedDict):
    """A whole resource, as a file has it."""

    apiVersion: NotRequired[str]
    kind: NotRequired[str]
    metadata: dict[str, Any]
    spec: Spec
'''


def render(spec: Field) -> str:
    """The module; an object's class comes before those that hold it."""
    return _HEAD + "\n\n".join(_classes(spec)).rstrip() + "\n" + _TAIL


def _classes(field: Field) -> Iterator[str]:
    for child in field.children:
        if child.children and child.path not in _FOREIGN:
            yield from _classes(child)
    lines = [f"\nclass {_name(field)}(TypedDict):", f'    """{_first_sentence(field)}"""', ""]
    for child in field.children:
        kind = _type(child)
        lines.append(f"    {child.name}: {kind if child.required else f'NotRequired[{kind}]'}")
    yield "\n".join(lines)


def _name(field: Field) -> str:
    parts = field.path.replace("[]", "").split(".")
    return "Spec" if len(parts) == 1 else "".join(part[0].upper() + part[1:] for part in parts[1:])


def _type(field: Field) -> str:
    schema = field.schema
    if "enum" in schema:
        values = ", ".join(f'"{value}"' for value in schema["enum"])
        return f"Literal[{values}]"
    if schema.get("x-kubernetes-int-or-string"):
        return "str | int"
    if schema.get("type") == "array":
        items = schema["items"]
        return f"list[{_name(field) if field.children else _SCALARS[items['type']]}]"
    if field.children:
        return "dict[str, Any]" if field.path in _FOREIGN else _name(field)
    if schema.get("type") == "object":
        return f"dict[str, {_SCALARS[schema['additionalProperties']['type']]}]"
    return _SCALARS[str(schema["type"])]


def _first_sentence(field: Field) -> str:
    text = " ".join(field.description.split()).partition(". ")[0].rstrip(".").replace("\\", "")
    return f"{shorten(text, 100, placeholder=' ...')}." if text else f"The field {field.name}."
