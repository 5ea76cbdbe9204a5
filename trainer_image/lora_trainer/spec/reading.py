"""Reading a manifest by what the API says of its fields (`api`): their types, bounds, choices and patterns."""

import decimal
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

from lora_trainer.spec.api import Api, Decimal, Described, Rule, Shape, described
from lora_trainer.spec.fields import Reader, as_decimal, nearest

T = TypeVar("T")


def read(kind: type[T], section: Reader) -> T:
    """The object of a class; what is wrong is added to the section's problems, and reads as the field's default. Where
    every field is right, the rules between them are asked."""
    before = len(section.problems)
    fields = described(cast("type", kind))
    found = kind(**{field.name: _value(field, section) for field in fields})
    section.finish()
    if len(section.problems) == before:
        check_between(found, section)
    return found


def check_between(found: Any, section: Reader) -> None:
    """Complain of what breaks the rules between the fields of an object that was read."""
    for field in described(cast("type", type(found))):
        for rule in field.api.between:
            if rule.broken and rule.broken(found, section.is_set):
                holder, key, value = section, field.key, getattr(found, field.name)
                for below in rule.at.split(".")[1:]:
                    holder, key = holder.quiet(key), below
                    value = next(
                        getattr(value, each.name) for each in described(cast("type", type(value))) if each.key == below
                    )
                # As it is written; what is not has its default.
                given = holder.document.get(key)
                holder.complain(key, value if given is None else given, rule.message)


def _value(field: Described, section: Reader) -> Any:
    key, is_object = field.key, field.shape is Shape.OBJECT
    if section.document.get(key) is None and not (field.required and is_object):
        section.seen.add(key)
        if not field.required:
            return field.default
        section.complain(key, None, "must be set")
        return _NOTHING[field.shape](field.kind)
    before = len(section.problems)
    value = _READERS[field.shape](field, section)
    if value is None:
        return _NOTHING[field.shape](field.kind) if field.required else field.default
    if len(section.problems) == before:
        _check(field, section, value)
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
    key, said, item = field.key, field.api, field.item
    if said.document is not None:
        inner = section.child(key)
        read(field.kind, inner)
        return inner.document or None
    if field.kind is int:
        return section.numbers(key, *_bounds(item), most=said.most or 0)
    return section.strings(
        key, fewest=said.fewest or 0, most=said.most or 0, shortest=item.shortest or 0, longest=item.longest or 0
    )


def _text(field: Described, section: Reader) -> str | None:
    said, key = field.api, field.key
    if said.quantity:
        return _amount(field, section)
    # Of an empty text its rules say more.
    shortest = (0 if field.rules else 1) if said.shortest is None else said.shortest
    return section.text(key, shortest=shortest, longest=said.longest or 0)


def _amount(field: Described, section: Reader) -> str | None:
    """Written as a text or as a whole number."""
    value = section.get(field.key)
    if isinstance(value, bool) or not isinstance(value, str | int):
        section.complain(field.key, value, field.rules[0].message, quoted=field.rules[0].quoted)
        return None
    return str(value)


def _decimal(field: Described, section: Reader) -> float | None:
    key, said = field.key, field.api.decimal or Decimal()
    value = section.get(key)
    if said.or_whole and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        kind = "a whole or a quoted decimal number" if said.or_whole else "a quoted decimal number"
        example = as_decimal(value) or written(field.default)
        section.complain(key, value, f'must be {kind}, as in {key}: "{example}"')
        return None
    for rule in field.rules:
        if not rule.allows(value):
            section.complain(key, value, rule.message, quoted=rule.quoted)
            return None
    return float(value)


def _check(field: Described, section: Reader, value: Any) -> None:
    """Of a text, of the keys of a map and of the items of a list or a map."""
    if isinstance(value, str):
        _keep(field.rules, section, field.key, [value])
    elif isinstance(value, tuple):
        _keep(field.item.rules, section, field.key, value)
    elif isinstance(value, Mapping) and field.api.document is None:
        _keep(field.rules, section, field.key, value)
        _keep(field.item.rules, section, field.key, value.values())


def _keep(rules: Iterable[Rule], section: Reader, key: str, texts: Iterable[Any]) -> None:
    """Complain of the first that breaks a rule."""
    for rule in rules:
        wrong = next((text for text in texts if isinstance(text, str) and not rule.allows(text)), None)
        if wrong is not None:
            near = nearest(wrong, rule.among)
            message = f"{rule.message}; did you mean {near}?" if near else rule.message
            section.complain(key, wrong, message, quoted=rule.quoted)
            return


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
