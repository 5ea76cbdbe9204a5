"""Reading whole numbers, texts and flags out of a model's `config.json`, whatever somebody put there."""

import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MOST_CHARACTERS = 2**20


class ShapeError(ValueError):
    """A configuration that no model can have; the text is a sentence with field, value, rule and remedy."""


class UncountedError(ShapeError):
    """A configuration that may be right and cannot be counted here: of a family that is not known, and not like
    Llama's, or without a number, for which Transformers may know another name."""


@dataclass(frozen=True, slots=True)
class Values:
    """One object of a configuration; `path` is its place in the file, `defaults` what an absent key means. Reads raise
    `ShapeError`."""

    document: Mapping[str, Any]
    path: str
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def number(self, *keys: str, low: int = 1, high: int, default: int | None = None) -> int:
        """The whole number under the first of `keys` that is set: families name the same thing differently."""
        rule = f"must be a whole number from {low:,} to {high:,}"
        key, value = self._found(*keys)
        if value is None:
            if default is None:
                raise UncountedError(f"{self.path}.{key} is missing: {rule}; take the model's own config.json")
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self._error(key, value, rule)
        return value

    def fraction(self, key: str, *, default: float) -> float:
        """A number from 0 to 1."""
        _, value = self._found(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise self._error(key, value, "must be a number from 0 to 1")
        return float(value)

    def flag(self, key: str, *, default: bool) -> bool:
        """true or false."""
        _, value = self._found(key)
        if value is not None and not isinstance(value, bool):
            raise self._error(key, value, "must be true or false")
        return default if value is None else value

    def text(self, *keys: str, default: str) -> str:
        """A string, under the first of `keys` that is set."""
        key, value = self._found(*keys)
        if value is None:
            return default
        if not isinstance(value, str) or not 1 <= len(value) <= 100 or not value.isprintable():
            raise self._error(key, value, "must be a string of 1 to 100 printable characters")
        return value

    def numbers(self, key: str, *, high: int) -> tuple[int, ...]:
        """A list of whole numbers from 0 to `high`; empty where there is none."""
        value = self.document.get(key)
        if value is None:
            return ()
        whole = isinstance(value, list) and all(type(item) is int and 0 <= item <= high for item in value)
        if not whole:
            raise self._error(key, value, f"must be a list of whole numbers from 0 to {high:,}")
        return tuple(value)

    def first(self, *keys: str) -> tuple[str, Any]:
        """The first of `keys` that is set, and what it holds, whatever that is."""
        return self._found(*keys)

    def is_set(self, key: str) -> bool:
        """Whether there is anything but null."""
        return self._found(key)[1] is not None

    def child(self, key: str) -> "Values | None":
        """The object under `key`, None where there is none."""
        value = self.document.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self._error(key, value, "must be an object")
        return Values(value, f"{self.path}.{key}")

    def _found(self, *keys: str) -> tuple[str, Any]:
        """The first of `keys` that is set, and its value; None where none is, and no default for what is absent."""
        for of in (self.document, {} if any(key in self.document for key in keys) else self.defaults):
            for key in keys:
                if of.get(key) is not None:
                    return key, of[key]
        return keys[0], None

    def _error(self, key: str, value: object, rule: str) -> ShapeError:
        return ShapeError(f"{self.path}.{key} is {shown(value)}: {rule}; take the model's own config.json")


def shown(value: object) -> str:
    """A value in a sentence, shortened."""
    if isinstance(value, bool):
        return str(value).lower()
    text = f'"{value}"' if isinstance(value, str) and value.isprintable() else reprlib.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_json(text: str, name: str) -> Mapping[str, Any]:
    """The object that a JSON text holds; `name` is the file's. Raises `ShapeError`."""
    if len(text) > MOST_CHARACTERS:
        raise ShapeError(f"{name} has over {MOST_CHARACTERS:,} characters, more than a config.json has; name another")
    remedy = "name the config.json of a Transformers model"
    try:
        document = json.loads(text)
    except RecursionError as error:
        raise ShapeError(f"{name} cannot be read: it is nested too deeply; {remedy}") from error
    except ValueError as error:
        raise ShapeError(f"{name} is not JSON ({str(error)[:100]}): must be an object; {remedy}") from error
    if not isinstance(document, dict):
        raise ShapeError(f"{name} is {shown(document)}: must be an object; {remedy}")
    return document
