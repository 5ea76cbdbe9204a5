"""The rule of the split, written anew with the standard library alone."""

import hashlib
from collections.abc import Sequence

HIGHEST = 2**64


def drawn(text: str, seed: int) -> int:
    """The place of a content in the draw."""
    key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
    z = (key + (seed + 1) * 0x9E3779B97F4A7C15) % HIGHEST
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % HIGHEST
    z = (z ^ z >> 27) * 0x94D049BB133111EB % HIGHEST
    return z ^ z >> 31


def held_out(texts: Sequence[str], seed: int, fraction: float, most: int | None = None) -> list[int]:
    """Which of the rows are held out, given the text of each."""
    copies: dict[int, list[int]] = {}
    for row, text in enumerate(texts):
        copies.setdefault(drawn(text, seed), []).append(row)
    held: list[list[int]] = []
    for z in sorted(copies)[:-1]:
        if sum(map(len, held)) < round(len(texts) * fraction):
            held.append(copies[z])
    if most is not None and sum(map(len, held)) > most:
        fitting: list[list[int]] = []
        for rows in held:
            if sum(map(len, fitting)) + len(rows) <= most:
                fitting.append(rows)
        held = fitting
    return sorted(row for rows in held for row in rows)
