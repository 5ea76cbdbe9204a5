"""Quantities of Kubernetes, as in 500m, 4 and 1.5Gi."""

import re
from decimal import Decimal

# The group is the number without its scale.
_QUANTITY = re.compile(r"\+?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,2}|[numkMGTPE]|[KMGTPE]i)?")
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_GIB = 2**30


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


def at_least(text: str, size_bytes: int) -> str:
    """The quantity, or so many bytes in whole GiB where it is less; what is no quantity stays as it is."""
    amount = _QUANTITY.fullmatch(text)
    if amount is None:
        return text
    number, unit = Decimal(amount[1]), amount[2] or ""
    if unit in _BINARY:
        own = number * 2 ** _BINARY[unit]
    else:
        own = number.scaleb(_DECIMAL[unit] if unit in _DECIMAL else int(unit[1:]))
    return text if own >= size_bytes else f"{-(-size_bytes // _GIB)}Gi"
