"""Quantities of Kubernetes, as in 500m, 4 and 1.5Gi."""

import math
import re
from decimal import Decimal

from lora_trainer.spec.api import Rule

# The group is the number without its scale.
_QUANTITY = re.compile(r"\+?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,2}|[numkMGTPE]|[KMGTPE]i)?")
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_GIB = 2**30
_MOST = Decimal(2**63 - 1)
"""As Kubernetes, which takes a larger amount for this one."""
LEAST_MEMORY = "16Mi"
"""Less memory or disk is taken for a mistake, as in memory: 16."""


def above_zero(noun: str, write: str) -> Rule:
    """That an amount is one, and more than nothing."""
    return Rule(
        cel="isQuantity(string(self)) && quantity(string(self)).isGreaterThan(quantity('0'))",
        message=f"is not {noun}: {write}",
        quoted=True,
        broken=lambda text: not is_positive(text),
    )


def at_least_16_mi(noun: str, example: str) -> Rule:
    """That an amount of memory or disk is no mistake."""
    return Rule(
        cel=f"isQuantity(string(self)) && !quantity(string(self)).isLessThan(quantity('{LEAST_MEMORY}'))",
        message=f"is not a usable amount of {noun}: write at least {LEAST_MEMORY} as a quantity with its unit, as in "
        f'"{example}" (a number alone means bytes)',
        quoted=True,
        broken=lambda text: (size_of(text) or 0) < (size_of(LEAST_MEMORY) or 0),
    )


def is_positive(text: str) -> bool:
    """Whether Kubernetes reads the text as a quantity above 0."""
    amount = _QUANTITY.fullmatch(text)
    return amount is not None and re.search(r"[1-9]", amount[1]) is not None


def times(text: str, count: int) -> str:
    """So many times a quantity, in its own unit; what is no quantity stays as it is."""
    amount = _QUANTITY.fullmatch(text)
    if amount is None or count == 1:
        return text
    return f"{(Decimal(amount[1]) * count).normalize():f}{amount[2] or ''}"


def size_of(text: str) -> int | None:
    """Of an amount of memory or disk, the bytes, rounded up, at most 2^63 - 1; None for what is no quantity."""
    amount = _QUANTITY.fullmatch(text)
    if amount is None:
        return None
    number, unit = Decimal(amount[1]), amount[2] or ""
    size: Decimal
    if unit in _BINARY:
        size = number * 2 ** _BINARY[unit]
    else:
        size = number.scaleb(_DECIMAL[unit] if unit in _DECIMAL else int(unit[1:]))
    return math.ceil(min(size, _MOST))


def at_least(text: str, size_bytes: int) -> str:
    """The quantity, or so many bytes in whole GiB where it is less; what is no quantity stays as it is."""
    own = size_of(text)
    return text if own is None or own >= size_bytes else f"{-(-size_bytes // _GIB)}Gi"
