"""Advice of the trainer as data: a code and what it rests on; `docs/advice.md` has every rule with its source."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One thing that would make this run, or the next one, go better. `values` fill the code's sentence."""

    code: str
    values: Mapping[str, str] = field(default_factory=dict)
