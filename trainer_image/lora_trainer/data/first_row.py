"""A row as the model will see it, short enough for a status: stretches of text, and which of them are learned."""

import json
import re
from collections.abc import Sequence

from lora_trainer.spec.preflight import MOST_ROW_BYTES

Piece = tuple[str, bool]
"""A text, and whether it is learned."""

SEEN, LEARNED = "seen", "learned"
_MOST_PIECES = 12
_GAP = " […] "
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")


def show_row(pieces: Sequence[Piece], most_bytes: int = MOST_ROW_BYTES) -> str:
    """JSON of at most so many bytes: a list of objects, each with `seen` or `learned` and its text, in order.

    It is printable: what a terminal would obey or hide is escaped. Of long texts the middle is left out, by equal
    measure, and of very many stretches all but the first ones; both as `[…]`.
    """
    shown = list(pieces[:_MOST_PIECES])
    if len(pieces) > len(shown):
        shown.append((_GAP.strip(), False))
    low, high = 0, max((len(text) for text, _ in shown), default=0)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(_json(shown, middle).encode()) <= most_bytes else (low, middle - 1)
    return _json(shown, low)


def _json(pieces: Sequence[Piece], most: int) -> str:
    document = [{LEARNED if learned else SEEN: _short(text, most)} for text, learned in pieces]
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0].isprintable() else _escaped(found[0]), text)


def _short(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    head = (most + 1) // 2
    return text[:head] + _GAP + text[len(text) - (most - head) :]


def _escaped(character: str) -> str:
    return json.dumps(character)[1:-1]
