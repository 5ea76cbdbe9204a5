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

from lora_trainer.contract import codec

LONGEST_FACT, MOST_FACTS = 1024, 256
"""Of a text, in characters, and of a list in the status."""
_KEY = "api"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A rule of the API server's: `cel` must hold, or `message` is said.

    `shown` is the better message with values in it, each a CEL expression in braces, as in `"{self}" names no claim`.
    `at` is the field below this one that it is about. `forbidden` says that the field is what must go, not its value.
    `pattern` is the same rule for whoever reads a manifest without the server, and `sentence` what is said then; of a
    rule between fields it is `broken`, which the object breaks that was read, and `message` is said. Rules without
    either are those whose sentence names more than a message can (`manifest`).
    """

    cel: str
    message: str
    shown: str = ""
    at: str = ""
    forbidden: bool = False
    pattern: str = ""
    sentence: str = ""
    broken: Callable[[Any], bool] | None = None

    def allows(self, text: str) -> bool:
        """Whether a text is of the pattern, where there is one."""
        return not self.pattern or re.fullmatch(self.pattern, text) is not None


def matching(pattern: str, says: str, message: str, *, sentence: str = "", empty: bool = False) -> Rule:
    """That a text as a whole is of a pattern, or, where it may be, `empty`. `says` stands behind the text in quotes."""
    pattern = f"({pattern})?" if empty else pattern
    cel, shown = f"self.matches('^{pattern}$')", f'"{{self}}" {says}'
    return Rule(cel=cel, message=message, shown=shown, pattern=pattern, sentence=sentence or says)


def keys_matching(pattern: str, longest: int, message: str) -> Rule:
    """That each key of a map is of a pattern."""
    cel = f"self.all(k, k.size() <= {longest} && k.matches('^{pattern}$'))"
    return Rule(cel=cel, message=message, pattern=pattern, sentence=message)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """What the API says of a field. `about` is its description.

    `name` is the field's there, where it is not Python's in camel case. `low` and `high` bound a number, which has 64
    bits where it is `wide`, `shortest` and `longest` a text's characters, `fewest` and `most` a list's items or a map's
    entries, and `item` is what is said of each of these. `rules` are the field's own, `between` those of the object
    that holds it, with other fields. `filled` is whether the server fills in the default. `fixed` is the rule by which
    the field keeps its first value, None where it may change, and `appears` that by which it is then neither added nor
    removed. `document` is the class that describes a value which is passed on as it was written, a Kubernetes type of
    its own. `quantity` marks an amount of Kubernetes, `key` that an item of a list is known by this field, `read` what
    reads the field where its type does not tell how. `plural` is what a list of objects is called.
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
    read: Callable[[Any, str], Any] | None = None


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
    def patterned(self) -> bool:
        """Whether a text of it has to be of a pattern."""
        return any(rule.pattern for said in (self.api, self.api.item) if said for rule in said.rules)


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
def breakable(kind: Any) -> tuple[tuple[str, Rule, Callable[[Any], bool]], ...]:
    """The rules between the fields of a class that an object which was read can break, each with its field's name."""
    return tuple(
        (field.key, rule, rule.broken) for field in described(kind) for rule in field.api.between if rule.broken
    )


@functools.cache
def camel(name: str) -> str:
    """Python's name of a field as the API has it."""
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)
