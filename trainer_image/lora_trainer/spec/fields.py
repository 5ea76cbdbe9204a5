"""Reading typed fields out of a manifest, collecting every problem: field, value, rule and remedy in a sentence."""

import difflib
import enum
import json
import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar, cast

E = TypeVar("E", bound=enum.StrEnum)
DECIMAL = "[0-9]{1,7}([.][0-9]{1,12})?([eE][-+]?[0-9]{1,2})?"
"""How a number is written that stands in quotes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong with a manifest. `path` is the field's, as in `spec.lora.rank`; `quoted` is whether the
    rule reads on from the value."""

    path: str
    value: object
    rule: str
    quoted: bool = False

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.path} is missing: {'must be set' if self.quoted else self.rule}"
        shown = _shown(self.value)
        return f"{self.path} is {shown}{', which' if self.quoted else ':'} {self.rule}"


@dataclass(slots=True, kw_only=True)
class Reader:
    """A view of one object of a manifest. Reads never fail: what is wrong is added to `problems`.

    `strict` refuses fields that nobody knows, as kubectl does.
    """

    path: str
    document: Mapping[str, Any]
    problems: list[Problem]
    strict: bool = False
    seen: set[str] = field(default_factory=set)

    def complain(self, key: str, value: object, rule: str, *, quoted: bool = False) -> None:
        """Note a problem of the field `key`; see `Problem`."""
        self.problems.append(Problem(path=self.path_of(key), value=value, rule=rule, quoted=quoted))

    def path_of(self, key: str) -> str:
        """The path of the field `key`; that of the whole document is empty."""
        return f"{self.path}.{key}" if self.path else key

    def get(self, key: str) -> object:
        """The raw value, or None."""
        self.seen.add(key)
        return self.document.get(key)

    def child(self, key: str, *, required: bool = False, leading: str = "") -> "Reader":
        """A reader of the object under `key`; an absent one reads as empty. `leading` is its field that text in its
        place is probably meant for."""
        value = self.get(key)
        if value is None and required:
            self.complain(key, None, "must be set")
        if value is not None and not isinstance(value, Mapping):
            example = f", as in {key}: {{{leading}: {_shown(value)}}}" if leading and isinstance(value, str) else ""
            self.complain(key, value, f"must be an object{example}")
            value = None
        return self.below(key, value or {})

    def is_set(self, key: str) -> bool:
        """Whether there is a value, be it a wrong one."""
        return self.document.get(key) is not None

    def quiet(self, key: str) -> "Reader":
        """A reader of what is under `key`, of which it was said already what is wrong with it as a whole."""
        return self.below(key, self.document.get(key))

    def below(self, key: str, document: object) -> "Reader":
        """A reader of what is under `key`; what is no object reads as an empty one."""
        inner = document if isinstance(document, Mapping) else {}
        return Reader(path=self.path_of(key), document=inner, problems=self.problems, strict=self.strict)

    def text(self, key: str, *, shortest: int = 1, longest: int = 512) -> str | None:
        """A string of `shortest` to `longest` characters."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, str) or not shortest <= len(value) <= longest:
            self.complain(key, value, f"must be a string {_length(shortest, longest)}")
            return None
        return value

    def integer(self, key: str, low: int, high: int) -> int | None:
        """A whole number from `low` to `high`."""
        value = self.get(key)
        if value is None:
            return None
        if not _whole(value, low, high):
            self.complain(key, value, f"must be a whole number from {low} to {high}")
            return None
        return cast("int", value)

    def choice(self, key: str, kind: type[E]) -> E | None:
        """A member of an enumeration, by its value."""
        value = self.get(key)
        if value is None:
            return None
        try:
            return kind(cast("str", value))
        except ValueError:
            self.complain(key, value, f"must be one of {', '.join(member.value for member in kind)}")
            return None

    def boolean(self, key: str) -> bool | None:
        """true or false."""
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            self.complain(key, value, "must be true or false")
            return None
        return value

    def objects(self, key: str, *, most: int, plural: str) -> list[Mapping[str, Any]] | None:
        """A list of at most `most` objects, which are called so."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) > most or not all(isinstance(item, Mapping) for item in value):
            self.complain(key, value, f"must be a list of at most {most} {plural}")
            return None
        return value

    def texts(self, key: str, *, most: int, longest: int) -> tuple[str, ...]:
        """A list of at most `most` strings."""
        value = self.get(key)
        if value is None:
            return ()
        if (
            not isinstance(value, list)
            or len(value) > most
            or not all(isinstance(v, str) and 1 <= len(v) <= longest for v in value)
        ):
            self.complain(key, value, f"must be a list of at most {most} strings of 1 to {longest} characters")
            return ()
        return tuple(value)

    def integers(self, key: str, low: int, high: int, *, most: int) -> tuple[int, ...]:
        """A list of at most `most` whole numbers from `low` to `high`."""
        value = self.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or len(value) > most or not all(_whole(item, low, high) for item in value):
            self.complain(key, value, f"must be a list of at most {most} whole numbers from {low} to {high}")
            return ()
        return tuple(value)

    def numbers(self, key: str, low: int, high: int, *, most: int) -> dict[str, int]:
        """A map from names to whole numbers from `low` to `high`."""
        value = self.get(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping) or len(value) > most:
            self.complain(key, value, f"must be a map of at most {most} whole numbers")
            return {}
        for name, item in value.items():
            if not isinstance(name, str) or not 1 <= len(name) <= 253 or not _whole(item, low, high):
                self.complain(key, {name: item}, f"must map names to whole numbers from {low} to {high}")
                return {}
        return dict(value)

    def strings(self, key: str, *, fewest: int, most: int, shortest: int, longest: int) -> dict[str, str]:
        """A map of `fewest` to `most` strings of `shortest` to `longest` characters."""
        value = self.get(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping) or not fewest <= len(value) <= most:
            self.complain(key, value, f"must be a map of {fewest} to {most} strings")
            return {}
        for name, item in value.items():
            if not isinstance(name, str):
                self.complain(key, name, "must map strings to strings")
                return {}
            if not isinstance(item, str) or not shortest <= len(item) <= longest:
                written = json.dumps(item) if isinstance(item, bool | int | float) else "false"
                rule = f'must be quoted, {_length(shortest, longest)}, as in {name}: "{written}"'
                self.complain(f"{key}.{name}", item, rule)
                return {}
        return dict(value)

    def finish(self) -> None:
        """Where it is strict, complain about every field that nobody read: a misspelt one must not be ignored in
        silence."""
        if self.strict:
            for key in self.document:
                if key not in self.seen:
                    self._complain_unknown(str(key), self.document[key])

    def _complain_unknown(self, key: str, value: object) -> None:
        value = "null" if value is None else value  # a field that is known is missing without one
        near = nearest(key, self.seen)
        begun = sorted(name for name in self.seen if name.startswith(key))
        if len(begun) > 1:
            self.complain(key, value, f"there is no such field; did you mean {' or '.join(begun)}?")
            return
        if near is None:
            self.complain(key, value, f"there is no such field; known are {', '.join(sorted(self.seen))}")
            return
        # That the right one is missing is the same mistake.
        right = self.path_of(near)
        self.problems[:] = [p for p in self.problems if not (p.value is None and f"{p.path}.".startswith(f"{right}."))]
        self.complain(key, value, f"there is no such field; did you mean {near}?")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant, whatever its letters' case; None where none is near."""
    by_lower = {other.lower(): other for other in sorted(known)}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.7)
    return by_lower[found[0]] if found else None


def _length(shortest: int, longest: int) -> str:
    return f"of {shortest} to {longest} characters" if shortest else f"of at most {longest} characters"


def _whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def as_decimal(value: object) -> str | None:
    """A number without exponent, as it stands in quotes; None for what is none, or would be long."""
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        return None
    written = f"{number:f}" if number.is_finite() and abs(number.adjusted()) < 12 else ""
    return written if re.fullmatch(DECIMAL, written) else None


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = f'"{value}"' if isinstance(value, str) else reprlib.repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
