"""Strict JSON for frozen dataclasses: an unknown key, a missing key or a wrong type is an error that names its path."""

import contextlib
import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_WORDS: Mapping[type, str] = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    date: "a date such as 2026-07-26",
    Path: "a path",
}


class CodecError(ValueError):
    """A document does not fit its dataclass; the text names the path, the value and the rule."""


def encode(value: object) -> Any:
    """Turn a dataclass into JSON-ready dicts, lists, strings and numbers; a None that is the default is left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((f, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {f.name: encode(item) for f, item in pairs if item is not None or f.default is not None}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, date | Path):
        return value.isoformat() if isinstance(value, date) else str(value)
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    return value


def decode(kind: type[T], document: object, path: str = "$") -> T:
    """Build `kind`, a dataclass, from a JSON document. Raises `CodecError`."""
    return typing.cast("T", _value(kind, document, path))


@functools.cache
def type_hints(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields by name, found once: to find them takes longer than to read a document."""
    return typing.get_type_hints(kind)


def _dataclass(kind: type, document: object, path: str) -> object:
    if not isinstance(document, Mapping):
        raise CodecError(f"{path} is {_shown(document)}: must be an object")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in document:
        if key not in fields:
            raise CodecError(f"{path}.{key} is unknown: the known keys are {', '.join(sorted(fields))}")
    values = {}
    for name, field in fields.items():
        if name in document:
            values[name] = _value(type_hints(kind)[name], document[name], f"{path}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise CodecError(f"{path}.{name} is missing: it is required")
    return kind(**values)


def _value(kind: Any, document: object, path: str) -> object:
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        return _optional(kind, document, path)
    if origin is tuple:
        return tuple(
            _value(typing.get_args(kind)[0], item, f"{path}[{i}]") for i, item in enumerate(_list(document, path))
        )
    if origin is not None and issubclass(origin, Mapping):
        return _mapping(typing.get_args(kind)[1], document, path)
    if dataclasses.is_dataclass(kind):
        return _dataclass(typing.cast("type", kind), document, path)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _member(kind, document, path)
    return _scalar(kind, document, path)


def _optional(kind: Any, document: object, path: str) -> object:
    if document is None:
        return None
    (inner,) = (arg for arg in typing.get_args(kind) if arg is not types.NoneType)
    return _value(inner, document, path)


def _list(document: object, path: str) -> list[object]:
    if not isinstance(document, list):
        raise CodecError(f"{path} is {_shown(document)}: must be a list")
    return document


def _mapping(kind: Any, document: object, path: str) -> dict[str, object]:
    if not isinstance(document, Mapping):
        raise CodecError(f"{path} is {_shown(document)}: must be an object")
    return {str(key): _value(kind, item, f"{path}.{key}") for key, item in document.items()}


def _member(kind: type[enum.Enum], document: object, path: str) -> enum.Enum:
    for member in kind:
        if member.value == document:
            return member
    choices = ", ".join(str(member.value) for member in kind)
    raise CodecError(f"{path} is {_shown(document)}: must be one of {choices}")


def _scalar(kind: Any, document: object, path: str) -> object:
    if kind is Any:
        return document
    if kind is date and isinstance(document, str):
        with contextlib.suppress(ValueError):
            return date.fromisoformat(document)
    if kind is Path and isinstance(document, str):
        return Path(document)
    if kind is float and isinstance(document, int) and not isinstance(document, bool):
        return float(document)
    if not isinstance(document, kind) or (kind is not bool and isinstance(document, bool)):
        raise CodecError(f"{path} is {_shown(document)}: must be {_WORDS[kind]}")
    return document


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
