"""The same question to the base model and to the model with the adapter, side by side."""

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass

_GAP = "  │  "
_ENDS = (".", "!", "?", '"', ")")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One question and both answers."""

    question: str
    base: str
    adapter: str


def side_by_side(answers: Iterable[Answer], width: int) -> str:
    """Each question with both answers beside each other, in `width` columns."""
    column = max(24, (width - len(_GAP) - 2) // 2)
    lines = []
    for answer in answers:
        left = ["Base model:", *_wrapped(_marked(answer.base), column)]
        right = ["With the adapter:", *_wrapped(_marked(answer.adapter), column)]
        height = max(len(left), len(right))
        left += [""] * (height - len(left))
        right += [""] * (height - len(right))
        lines.append(f"Q: {answer.question}")
        lines += [f"  {a:<{column}}{_GAP}{b}".rstrip() for a, b in zip(left, right, strict=True)]
        lines.append("")
    return "\n".join(lines).rstrip()


def _wrapped(text: str, column: int) -> list[str]:
    """Lines stay lines, with their indentation: an answer may be code."""
    return [part for line in text.splitlines() for part in textwrap.wrap(line, column) or [""]]


def _marked(text: str) -> str:
    """With dots where it was cut off: answers are asked for up to a number of tokens."""
    return text if text.endswith(_ENDS) else f"{text} …"
