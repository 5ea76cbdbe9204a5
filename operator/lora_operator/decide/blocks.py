"""Dataclasses of the contract as blocks of the status, field by field, and read back from there.

Names become camelCase, whole numbers and lengths of time in seconds stay within the schema's bounds, fractions become
strings, and text becomes printable and is clipped. What is None, or no number at all, is left out.
"""

import dataclasses
import enum
import functools
import math
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from lora_operator.decide.progress import whole
from lora_operator.model.wording import decimal, masked
from lora_trainer.spec import codec
from lora_trainer.spec.summary import clip

T = TypeVar("T")
LONGEST_TEXT = 1024
_READ = 4 * LONGEST_TEXT
MOST_ITEMS = 256
_PROSE = frozenset({"change", "first_row", "kernels_left_out", "merge_failure", "reason"})
"""What may hold a secret, as a row of the data or a server's answer; addresses and flags would mean something else."""
Block = dict[str, Any]


def block_from(facts: object, names: Iterable[str] | None = None) -> Block:
    """The block of a dataclass, or of these of its fields."""
    pairs = ((_camel(name), _written(name, getattr(facts, name))) for name in names or _names(type(facts)))
    return {key: value for key, value in pairs if value is not None}


def read_block(kind: type[T], block: Mapping[str, Any]) -> T | None:
    """What `block_from` made the block of; None where it is anything else, whoever wrote it."""
    try:
        return codec.decode(kind, _document(kind, block))
    except codec.CodecError:
        return None


def _written(name: str, value: object) -> Any:
    if isinstance(value, tuple):
        return [_written(name, item) for item in value[:MOST_ITEMS]]
    return block_from(value) if dataclasses.is_dataclass(value) else _scalar(name, value)


def _scalar(name: str, value: object) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, int) and not isinstance(value, bool):
        return whole(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, float):
        return whole(round(value)) if name.endswith("_seconds") else decimal(value, ".6g")
    return _shown(value, prose=name in _PROSE) if isinstance(value, str) else value


def _shown(text: str, *, prose: bool) -> str:
    """Blanks stay, as indented code has them."""
    line = "".join(letter if letter.isprintable() else " " for letter in text[:_READ])
    return clip(masked(line) if prose else line, LONGEST_TEXT)


def _document(kind: Any, value: object) -> object:
    """The block as JSON of its dataclass: without ready strings for columns, which nothing reads, and with numbers."""
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        hints = codec.type_hints(typing.cast("type", kind))
        known = ((name, value.get(_camel(name))) for name in hints)
        return {name: _document(hints[name], item) for name, item in known if item is not None}
    inner = [argument for argument in typing.get_args(kind) if argument not in (type(None), ...)]
    if isinstance(value, list) and len(inner) == 1:
        return [_document(inner[0], item) for item in value]
    if float in (kind, *inner) and isinstance(value, str):
        return _fraction(value)
    return value


def _fraction(text: str) -> object:
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def _names(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


@functools.cache
def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)
