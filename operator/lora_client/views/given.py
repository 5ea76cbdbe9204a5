"""What Python callers give, as JSON has it."""

import json
from collections.abc import Mapping
from typing import Any, SupportsIndex

from lora_client.errors import ClientError


def mapping(what: str, value: object, example: str) -> Mapping[str, Any]:
    """The value. Raises `ClientError` for what is no mapping."""
    if not isinstance(value, Mapping):
        raise ClientError(f"{what} is of the type {type(value).__name__}: must be a mapping, {example}")
    return value


def whole(what: str, value: object) -> int:
    """The number, NumPy's as Python's. Raises `ClientError` for what is no whole number from 1 on."""
    number = None
    if isinstance(value, SupportsIndex) and not isinstance(value, bool):
        number = value.__index__()
    if number is None or number < 1:
        raise ClientError(f"{what} is {value!r}: must be a whole number from 1 on")
    return number


def plain(value: object) -> Any:
    """A copy that can be sent: numbers and arrays of NumPy as Python's, any other object as its text."""
    return json.loads(json.dumps(value, default=lambda each: each.tolist() if hasattr(each, "tolist") else str(each)))
