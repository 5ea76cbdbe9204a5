"""Small pieces of Markdown."""

from collections.abc import Iterable, Sequence


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
