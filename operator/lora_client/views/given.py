"""What Python callers give, as JSON has it."""

import json
from collections.abc import Mapping
from typing import Any

from lora_client.errors import ClientError


def mapping(what: str, value: object, example: str) -> Mapping[str, Any]:
    """The value. Raises `ClientError` for what is no mapping."""
    if not isinstance(value, Mapping):
        raise ClientError(f"{what} is of the type {type(value).__name__}: must be a mapping, {example}")
    return value


def plain(value: object) -> Any:
    """A copy that can be sent: numbers and arrays of NumPy as Python's, any other object as its text."""
    return json.loads(json.dumps(value, default=lambda each: each.tolist() if hasattr(each, "tolist") else str(each)))
