"""The fields of a run's dataclasses by their names in manifests, and their values as people read them."""

import dataclasses
import enum
import json
from collections.abc import Iterator


def leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Every field of a dataclass that is none itself, depth first, by its path in the spelling of manifests."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        yield path, value
        return
    for field in dataclasses.fields(value):
        name = camel_case(field.name)
        yield from leaves(getattr(value, field.name), f"{path}.{name}" if path else name)


def camel_case(name: str) -> str:
    """`interval_s` is `intervalSeconds`, as in manifests."""
    first, *rest = (f"{name}econds" if name.endswith("_s") else name).split("_")
    return first + "".join(part.capitalize() for part in rest)


def cell(value: object) -> str:
    """A value as a cell of a Markdown table."""
    if value is None or value in ((), {}):
        return "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bool | int):
        return str(value).lower()
    text = value.value if isinstance(value, enum.Enum) else value
    shown = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
    return " ".join(shown.split()).replace("|", "\\|")
