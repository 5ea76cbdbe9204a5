"""Reading a manifest by what the API says of its fields (`api`): their types, bounds, choices and patterns."""

import decimal
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

from lora_trainer.contract.api import Api, Decimal, Described, Shape, breakable, described
from lora_trainer.contract.fields import Reader

T = TypeVar("T")


def read(kind: type[T], section: Reader) -> T:
    """The object of a class; what is wrong is added to the section's problems, and reads as the field's default."""
    before = len(section.problems)
    fields = described(cast("type", kind))
    found = kind(**{field.name: _value(field, section) for field in fields})
    section.finish()
    if len(section.problems) == before:
        for key, rule, broken in breakable(cast("type", kind)):
            if broken(found):
                section.complain(key, section.document.get(key), rule.message)
    return found


def _value(field: Described, section: Reader) -> Any:
    key, is_object = field.key, field.shape is Shape.OBJECT
    if section.document.get(key) is None and not (field.required and is_object):
        section.seen.add(key)
        if not field.required:
            return field.default
        section.complain(key, None, "must be set")
        return _NOTHING[field.shape](field.kind)
    before = len(section.problems)
    value = field.api.read(section, key) if field.api.read else _READERS[field.shape](field, section)
    if value is None:
        return _NOTHING[field.shape](field.kind) if field.required else field.default
    if field.patterned and len(section.problems) == before:
        _check_patterns(field, section, value)
    return value


def _object(field: Described, section: Reader) -> Any:
    first = described(field.kind)[0]
    leading = first.key if first.required and first.shape is Shape.TEXT else ""
    inner = section.child(field.key, required=field.required, leading=leading)
    absent = not isinstance(section.document.get(field.key), Mapping)
    return None if absent and field.optional else read(field.kind, inner)


def _list(field: Described, section: Reader) -> Any:
    key, said, item = field.key, field.api, field.item
    if field.kind is str:
        return section.texts(key, most=said.most or 0, longest=item.longest or 0)
    if field.kind is int:
        return section.integers(key, *_bounds(item), most=said.most or 0)
    given = section.objects(key, most=said.most or 0, plural=said.plural)
    if given is None:
        return None
    objects = [read(field.kind, section.below(f"{key}[{number}]", each)) for number, each in enumerate(given)]
    if said.document is None:
        return tuple(objects)
    names = [inner.key for inner in described(field.kind)]
    return tuple({name: each[name] for name in names if name in each} for each in given)


def _map(field: Described, section: Reader) -> Any:
    key, said = field.key, field.api
    if said.document is not None:
        inner = section.child(key)
        read(field.kind, inner)
        return inner.document or None
    if field.kind is int:
        return section.numbers(key, *_bounds(field.item), most=said.most or 0)
    return section.strings(key, most=said.most or 0)


def _text(field: Described, section: Reader) -> str | None:
    shortest = 1 if field.api.shortest is None else field.api.shortest
    return section.text(field.key, shortest=shortest, longest=field.api.longest or 0)


def _decimal(field: Described, section: Reader) -> float | None:
    (low, high), decimal = _bounds(field.api), field.api.decimal or Decimal()
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
    said = field.api
    if isinstance(value, str):
        _check(said, section, field.key, [value])
    elif isinstance(value, tuple):
        _check(said.item, section, field.key, value)
    elif isinstance(value, Mapping) and said.document is None:
        _check(said, section, field.key, value)
        _check(said.item, section, field.key, value.values())


def _check(said: Api | None, section: Reader, key: str, texts: Iterable[Any]) -> None:
    for rule in said.rules if said else ():
        wrong = next((text for text in texts if isinstance(text, str) and not rule.allows(text)), None)
        if wrong is not None:
            section.complain(key, wrong, rule.sentence)


def _bounds(said: Api) -> tuple[int, int]:
    return said.low or 0, said.high or 0


def written(number: float) -> str:
    """A number as a manifest has it: without exponent, and without a point that says nothing."""
    return f"{decimal.Decimal(str(number)).normalize():f}"


_READERS: Mapping[Shape, Callable[[Described, Reader], Any]] = {
    Shape.OBJECT: _object,
    Shape.LIST: _list,
    Shape.MAP: _map,
    Shape.CHOICE: lambda field, section: section.choice(field.key, field.kind),
    Shape.BOOLEAN: lambda field, section: section.boolean(field.key),
    Shape.INTEGER: lambda field, section: section.integer(field.key, *_bounds(field.api)),
    Shape.DECIMAL: _decimal,
    Shape.TEXT: _text,
}
"""None where there is nothing that can be read."""

_NOTHING: Mapping[Shape, Callable[[Any], Any]] = {
    Shape.TEXT: lambda _: "",
    Shape.INTEGER: lambda _: 0,
    Shape.LIST: lambda _: (),
    Shape.CHOICE: lambda kind: next(iter(kind)),
}
"""In the place of what must be set and is not."""
