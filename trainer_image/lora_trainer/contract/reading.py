"""Reading a manifest by what the API says of its fields (`api`): their types, bounds, choices and patterns."""

import dataclasses
import enum
import typing
from collections.abc import Mapping
from decimal import Decimal as Number
from typing import Any, TypeVar

from lora_trainer.contract.api import Api, Described, described
from lora_trainer.contract.fields import Reader

T = TypeVar("T")


def read(kind: type[T], section: Reader) -> T:
    """The object of a class; what is wrong is added to the section's problems, and reads as the field's default."""
    values = {field.name: _value(field, section) for field in described(kind)}
    section.finish()
    return kind(**values)


def _value(field: Described, section: Reader) -> Any:
    before = len(section.problems)
    value = _read(field, section)
    if field.required and section.document.get(field.key) is None and not dataclasses.is_dataclass(field.kind):
        section.complain(field.key, None, "must be set")
    if value is not None and len(section.problems) == before:
        _check_patterns(field, section, value)
    return value if value is not None else (_nothing(field.kind) if field.required else field.default)


def _nothing(kind: Any) -> Any:
    """In the place of what must be set and is not."""
    return (
        next(iter(kind))
        if isinstance(kind, type) and issubclass(kind, enum.Enum)
        else (typing.get_origin(kind) or kind)()
    )


def _read(field: Described, section: Reader) -> Any:
    """None where there is nothing, or nothing that can be read."""
    key, said, kind = field.key, field.api, field.kind
    if said.read is not None:
        return said.read(section, key)
    if dataclasses.is_dataclass(kind):
        return _object(field, section)
    origin = typing.get_origin(kind)
    if origin is tuple:
        return _list(field, section)
    if origin is not None:
        return _map(field, section)
    if issubclass(kind, enum.Enum):
        return section.choice(key, kind)
    if kind is bool:
        return section.boolean(key)
    if kind is int:
        return section.integer(key, *_bounds(said))
    if kind is float:
        return _decimal(field, section)
    return section.text(key, shortest=1 if said.shortest is None else said.shortest, longest=said.longest or 0)


def _object(field: Described, section: Reader) -> Any:
    first = described(field.kind)[0]
    leading = first.key if first.required and first.kind is str else ""
    inner = section.child(field.key, required=field.required, leading=leading)
    absent = not isinstance(section.document.get(field.key), Mapping)
    return None if absent and field.optional else read(field.kind, inner)


def _list(field: Described, section: Reader) -> Any:
    key, said = field.key, field.api
    (inner, _), most = typing.get_args(field.kind), said.most or 0
    if inner is str:
        assert said.item is not None
        return section.texts(key, most=most, longest=said.item.longest or 0)
    if inner is int:
        assert said.item is not None
        return section.integers(key, *_bounds(said.item), most=most)
    items = section.objects(key, most=most, plural=said.plural)
    kind = said.document or inner
    objects = [read(kind, section.below(f"{key}[{number}]", item)) for number, item in enumerate(items or ())]
    if said.document is None or items is None:
        return None if items is None else tuple(objects)
    names = [inner.key for inner in described(said.document)]
    return tuple({name: item[name] for name in names if name in item} for item in items)


def _map(field: Described, section: Reader) -> Any:
    key, said = field.key, field.api
    if said.document is not None:
        inner = section.child(key)
        read(said.document, inner)
        return inner.document or None
    assert said.item is not None
    if typing.get_args(field.kind)[1] is int:
        return section.numbers(key, *_bounds(said.item), most=said.most or 0)
    return section.strings(key, most=said.most or 0)


def _decimal(field: Described, section: Reader) -> float | None:
    said, decimal = field.api, field.api.decimal
    assert decimal is not None
    low, high = _bounds(said)
    return section.decimal(
        field.key,
        example=written(field.default),
        low=low,
        high=high,
        open_low=decimal.above_low,
        open_high=decimal.below_high,
        or_whole=decimal.or_whole,
    )


def _check_patterns(field: Described, section: Reader, value: Any) -> None:
    """Of a text, of the keys of a map and of the items of a list or a map."""
    pairs: list[tuple[Api | None, list[Any]]] = [(field.api, [value] if isinstance(value, str) else [])]
    if isinstance(value, tuple):
        pairs = [(field.api.item, list(value))]
    if isinstance(value, Mapping) and field.api.document is None:
        pairs = [(field.api, list(value)), (field.api.item, list(value.values()))]
    for said, texts in pairs:
        for rule in said.rules if said else ():
            wrong = [text for text in texts if isinstance(text, str) and not rule.allows(text)]
            if wrong:
                section.complain(field.key, wrong[0], rule.sentence)


def _bounds(said: Api) -> tuple[int, int]:
    assert said.low is not None
    assert said.high is not None
    return said.low, said.high


def written(number: float) -> str:
    """A number as a manifest has it: without exponent, and without a point that says nothing."""
    return f"{Number(str(number)).normalize():f}"
