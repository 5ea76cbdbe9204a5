"""A rule of advice: when it says something, what it says then, and where that comes from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lora_trainer.contract.advice.codes import Code, Severity
from lora_trainer.contract.advice.facts import Facts

Values = Mapping[str, str]
_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """`condition` says in words when `check` finds something: the values of its sentences, else None.

    `message` says what to do, `evidence` what was seen: of several the first whose values are all there counts, of
    `narrower` messages before the general one.
    `rule_of_thumb` is one that no source proves for every run. With `at_end` it is asked when the training is over.
    """

    code: Code
    severity: Severity
    subject: str
    condition: str
    message: str
    evidence: tuple[str, ...]
    source: str
    rule_of_thumb: bool
    check: Callable[[Facts], Values | None]
    at_end: bool = False
    narrower: tuple[str, ...] = ()


def count(number: float) -> str:
    """A whole number, with separators."""
    return f"{number:,.0f}"


def number(value: float) -> str:
    """A fraction as one writes it."""
    return f"{value:g}"


def size(count_of_bytes: float) -> str:
    """Bytes in binary units."""
    for unit, name in _UNITS:
        if count_of_bytes >= unit:
            return f"{count_of_bytes / unit:.1f} {name}"
    return f"{count_of_bytes:.0f} bytes"
