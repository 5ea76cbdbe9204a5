"""The demo's terminal as an SVG: what a reader of the README sees of it."""

import io
import re
from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

_FIRST = re.compile(r"ok (helm|kubectl|train|ask) ")
_LAST = "Q: "
_QUESTIONS = 2
_STYLES = {
    r"^ok ": "green",
    r"  [\d.]+ (min|s)\b.*$": "bright_black",
    r"^Q: .*$": "bold cyan",
    r"Base model:|With the adapter:": "bold",
    r"verified\.$": "bold green",
    r"^  improvement .*$": "bold green",
    r"│": "bright_black",
}


def shown(output: str) -> list[str]:
    """The lines of a demo's output that the picture shows: the last steps without what tells of their progress, the
    losses, and the first questions. Raises `ValueError` for an output that ends before."""
    return "\n".join(["$ make demo", "…", *_chosen(output.splitlines())]).rstrip().splitlines()


def _chosen(lines: list[str]) -> Iterator[str]:
    asked = 0
    steps = [line for line in lines if _FIRST.match(line)]
    begin = next((number for number, line in enumerate(lines) if line.startswith("Loss on ")), None)
    if begin is None:
        raise ValueError("the output has no losses: draw the picture from a demo that went to its end")
    yield from steps
    yield ""
    for line in lines[begin:]:
        asked += line.startswith(_LAST)
        if asked > _QUESTIONS or line.startswith("Adapter: "):
            return
        yield line


def draw(output: str) -> str:
    """The SVG. It loads nothing: a viewer's own monospaced font is taken."""
    lines = shown(output)
    console = Console(record=True, width=max(map(len, lines)) + 1, file=io.StringIO(), force_terminal=True)
    for line in lines:
        text = Text(line)
        for pattern, style in _STYLES.items():
            text.highlight_regex(pattern, style)
        console.print(text)
    svg = console.export_svg(title="make demo", unique_id="demo")
    svg = re.sub(r"@font-face \{.*?\}\n", "", svg, flags=re.DOTALL).replace("Fira Code, ", "")
    return "".join(f"{line.rstrip()}\n" for line in svg.splitlines())
