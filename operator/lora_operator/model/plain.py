"""Data of ours as plain values, which YAML and JSON can hold."""

import dataclasses
import enum
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from lora_operator.model.wording import instant, masked


def plain(value: object) -> Any:
    """The same without what is unset, and without what looks like a secret, which others may have written."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {field.name: plain(item) for field, item in fields if item not in (None, "", (), {}, field.default)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, datetime):
        return instant(value)
    if isinstance(value, enum.Enum):
        return value.value
    return masked(value) if isinstance(value, str) else value
