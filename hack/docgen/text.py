"""Small pieces of Markdown and JSON."""

import json
from collections.abc import Iterable, Sequence
from typing import Any


def sentence_list(items: Sequence[str], last: str) -> str:
    """`a, b or c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table that ends in a newline; pipes in cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def code(value: object) -> str:
    """The value as code, or nothing for None."""
    return "" if value is None else f"`{value}`"


def dense_json(value: Any, margin: int = 0) -> str:
    """JSON with each map and list on one line where it fits within 120 columns."""
    line = json.dumps(value, ensure_ascii=False)
    if len(line) + margin <= 120 or not isinstance(value, dict | list):
        return line
    inner = margin + 1
    if isinstance(value, dict):
        parts = [f"{json.dumps(key)}: {dense_json(each, inner)}" for key, each in value.items()]
    else:
        parts = [dense_json(each, inner) for each in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}\n" + ",\n".join(" " * inner + part for part in parts) + f"\n{' ' * margin}{closing}"
