"""What the API says of a field beside its type and its default: metadata of a dataclass's field.

Of a class whose fields have it the definition's schema and the reference are made (hack/docs), and a manifest is read
by it (`reading`). Types tell most: a choice is a `StrEnum`, a float a quoted decimal, a tuple a list, a mapping a map.
"""

import dataclasses
import enum
import functools
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lora_trainer.spec import codec
from lora_trainer.spec.fields import DECIMAL

LONGEST_FACT, MOST_FACTS = 1024, 256
"""Of a text, in characters, and of a list in the status."""
_KEY = "api"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A rule, and the one sentence that is said where it does not hold, which reads on from the field and its value.

    The API server keeps it by `cel`, which must hold; whoever reads a manifest without the server by `broken`, which
    must not. It is asked of a field's text, or of each key of a map; of a rule between fields, of the object that was
    read and of `has`, which says whether a field of it is written. Both are of one mind, as tests on a server show.
    Without `broken` it is about a change, which only the server sees.

    `quoted` puts the value before the sentence on the server, which names the field alone; not a whole number, of whose
    text the server does not know the length. `at` is the field below
    this one that it is about. `forbidden` says that the field is what must go, not its value. `among` are the keys that
    a map may have: of another one it is said which was meant.
    """

    cel: str
    message: str
    quoted: bool = False
    at: str = ""
    forbidden: bool = False
    broken: Callable[..., bool] | None = None
    among: tuple[str, ...] = ()

    def allows(self, text: str) -> bool:
        """Whether a text, or a key, keeps a rule of its own field."""
        return self.broken is None or not self.broken(text)


def found(pattern: str, text: str) -> bool:
    """Whether there is a pattern of CEL's in a text; its end is no line's."""
    return re.search(pattern.replace("$", r"\Z"), text) is not None


def matching(pattern: str, says: str, *, empty: bool = False) -> Rule:
    """That a text as a whole is of a pattern, or, where it may be, `empty`."""
    whole = f"^({pattern})?$" if empty else f"^{pattern}$"
    return Rule(cel=f"self.matches('{whole}')", message=says, quoted=True, broken=lambda text: not found(whole, text))


def keys_matching(pattern: str, longest: int, message: str, *, but: str = "") -> Rule:
    """That each key of a map is of a pattern, `but` none in which that other one is."""
    whole = f"^{pattern}$"
    other = f" && !k.matches('{but}')" if but else ""
    return Rule(
        cel=f"self.all(k, k.size() <= {longest} && k.matches('{whole}'){other})",
        message=message,
        broken=lambda key: len(key) > longest or not found(whole, key) or bool(but and found(but, key)),
    )


def keys_among(keys: tuple[str, ...], message: str) -> Rule:
    """That a map has no other keys."""
    cel = f"self.all(k, k in {list(keys)})"
    return Rule(cel=cel, message=message, broken=lambda key: key not in keys, among=keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decimal:
    """Of a quoted number: what it is, as in `a share`, how it is written, and which of its bounds it must not reach.

    With `or_whole` a whole number needs no quotes.
    """

    noun: str = "a number"
    examples: tuple[str, ...] = ()
    above_low: bool = False
    below_high: bool = False
    or_whole: bool = False

    def rule(self, low: int, high: int) -> Rule:
        """That a text is such a number, from `low` to `high`."""
        value = "string(self)" if self.or_whole else "self"
        conditions = [f"{value}.matches('^{DECIMAL}$')"]
        conditions += [f"double(self) > {low}.0"] if self.above_low else []
        conditions += [f"double(self) {'<' if self.below_high else '<='} {high}.0"]
        least, most = (str(low), str(high)) if self.or_whole else (f'"{low}"', f'"{high}"')
        bounds = f"{'above' if self.above_low else 'from'} {least} "
        bounds += f"{'up to' if self.above_low else 'to below' if self.below_high else 'to'} {most}"
        write = f"write a quoted number {bounds}, as in {' or '.join(map(_quoted, self.examples))}"
        if self.or_whole:
            whole, fraction = self.examples
            write = f'write a number {bounds}, as in {whole}, with a fraction in quotes, as in "{fraction}"'
        return Rule(
            cel=" && ".join(conditions),
            message=f"is not {self.noun}: {write}",
            quoted=True,
            broken=lambda text: not (found(f"^{DECIMAL}$", text) and self._within(float(text), low, high)),
        )

    def _within(self, number: float, low: int, high: int) -> bool:
        """A decimal has no sign: it is never below 0."""
        return (number > low if self.above_low else number >= low) and (
            number < high if self.below_high else number <= high
        )


def _quoted(text: str) -> str:
    return f'"{text}"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """What the API says of a field. `about` is its description.

    `name` is the field's there, where it is not Python's in camel case. `low` and `high` bound a number, which has 64
    bits where it is `wide`, `shortest` and `longest` a text's characters, `fewest` and `most` a list's items or a map's
    entries, and `item` is what is said of each of these. `rules` are the field's own, `between` those of the object
    that holds it, with other fields. `filled` is whether the server fills in the default. `fixed` is the rule by which
    the field keeps its first value, None where it may change, and `appears` that by which it is then neither added nor
    removed. `document` is the class that describes a value which is passed on as it was written, a Kubernetes type of
    its own. `quantity` marks an amount of Kubernetes, `key` that an item of a list is known by this field. `plural` is
    what a list of objects is called.
    """

    about: str
    name: str = ""
    low: int | None = None
    high: int | None = None
    wide: bool = False
    shortest: int | None = None
    longest: int | None = None
    fewest: int | None = None
    most: int | None = None
    item: "Api | None" = None
    decimal: Decimal | None = None
    quantity: bool = False
    rules: tuple[Rule, ...] = ()
    between: tuple[Rule, ...] = ()
    filled: bool = True
    fixed: str | None = "self == oldSelf"
    appears: str = ""
    document: type | None = None
    key: str = ""
    plural: str = ""


def api(about: str, **more: Any) -> Mapping[str, Any]:
    """Metadata of a field; `more` are fields of `Api`."""
    return {_KEY: Api(about=about, **more)}


def fact(about: str, **more: Any) -> Mapping[str, Any]:
    """Metadata of a field of the status: a number from 0, or a text that is clipped, unless `more` says otherwise."""
    return api(about, **{"low": 0, "wide": True, "longest": LONGEST_FACT, "filled": False, **more})


def names_of(about: str, one: str) -> Mapping[str, Any]:
    """Metadata of a list of the status, each item of which is `one` text."""
    return api(about, most=MOST_FACTS, item=Api(about=one, longest=LONGEST_FACT))


class Shape(enum.Enum):
    """What sort of a type a field has."""

    TEXT = str
    INTEGER = int
    DECIMAL = float
    BOOLEAN = bool
    TIME = datetime
    CHOICE = enum.Enum
    LIST = tuple
    MAP = Mapping
    OBJECT = object


@dataclass(frozen=True, kw_only=True)
class Described:
    """A field of a class: `name` is Python's, `key` the API's. `kind` is its type, without None where it is
    `optional`, or that of its items or entries. `default` is what it is where nothing is said, None where it is
    `required`."""

    name: str
    key: str
    shape: Shape
    kind: Any
    optional: bool
    required: bool
    default: Any
    api: Api

    @property
    def item(self) -> Api:
        """What is said of each item of a list or entry of a map."""
        return self.api.item or Api(about="")

    @functools.cached_property
    def rules(self) -> tuple[Rule, ...]:
        """Those of the value alone, that a quoted number is one included."""
        said = self.api
        number = (said.decimal.rule(said.low or 0, said.high or 0),) if said.decimal else ()
        return (*number, *said.rules)


@functools.cache
def described(kind: Any) -> tuple[Described, ...]:
    """The fields of a class that the API has."""
    return tuple(_described(kind, field) for field in dataclasses.fields(kind) if _KEY in field.metadata)


def _described(kind: type, field: "dataclasses.Field[Any]") -> Described:
    hint, said = codec.type_hints(kind)[field.name], field.metadata[_KEY]
    optional = typing.get_origin(hint) in (types.UnionType, typing.Union)
    if optional:
        (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
    origin, default = typing.get_origin(hint), field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    return Described(
        name=field.name,
        key=said.name or camel(field.name),
        shape=_shape(origin or hint),
        kind=said.document or (hint if origin is None else typing.get_args(hint)[-1 if origin is Mapping else 0]),
        optional=optional,
        required=default is dataclasses.MISSING,
        default=None if default is dataclasses.MISSING else default,
        api=said,
    )


def _shape(kind: Any) -> Shape:
    if issubclass(kind, enum.Enum):
        return Shape.CHOICE
    return Shape.OBJECT if dataclasses.is_dataclass(kind) else Shape(kind)


def paths(kind: type, above: str) -> Iterator[str]:
    """The path of each field of a class and of those within, whatever lists they are in; of what Kubernetes itself
    defines, such as an affinity, no more than its own."""
    for field in described(kind):
        path = f"{above}.{field.key}"
        yield path
        if dataclasses.is_dataclass(field.kind) and field.shape is not Shape.MAP:
            yield from paths(typing.cast("type", field.kind), path)


@functools.cache
def camel(name: str) -> str:
    """Python's name of a field as the API has it."""
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)
