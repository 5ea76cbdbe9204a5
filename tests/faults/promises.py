"""What a row of the fault matrix promises, as data: tests assert it (proofs.py), docs/faults.md is rendered from it.

A promise has a key, unique in its row; `fault("B11.secret")` marks a test that proves it, `fault("B11")` one that
proves the whole row.
"""

import enum
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from lora_trainer.contract.reasons import Reason

# I10: every wait has its reason in a condition within this time.
WITHIN_S = 60
# Promises are made for a machine that has time: on one where other tests compute they may take half as long again.
BUSY = 1.5
Wanted: TypeAlias = tuple[str, Reason | None]
"""Status and reason of a condition; None is any reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sees:
    """What the user sees at one moment, in `when`'s circumstance; it is asserted on the API server.

    `state` is the reason of condition Complete, STATE in `kubectl get`. `says` are parts of the first condition's
    message, of the state's where no condition is named, else of the Event's. Texts are templates, whose {names} the
    test fills in. `retries` are counts by cause; `status` are fields that are set. A metric `counts`
    or `does not count`; one that is a time `stands still` or `goes on`.
    """

    key: str
    when: str = ""
    state: Reason | None = None
    conditions: Mapping[str, Wanted] = field(default_factory=dict)
    says: tuple[str, ...] = ()
    event: tuple[str, Reason] | None = None
    retries: Mapping[str, int] | None = None
    status: tuple[str, ...] = ()
    advice: str = ""
    metric: str = ""
    metric_does: str = "counts"
    log: tuple[str, ...] = ()
    refusal: tuple[str, ...] = ()
    nothing: bool = False
    within_s: int = WITHIN_S


class Kept(enum.Enum):
    """What is never lost. The value is the sentence on the page; proofs.py has the assertion of each."""

    PODS = "The pods that live are the same ones, and none is stopped"
    ONE_JOB = "Each attempt has one Job"
    JOBS = "The Jobs and what they specify"
    VERDICT = "The verdict"
    RETRIES = "No retry is used up: `maxRetries` holds for the run's own errors"
    CLAIMS = "The claims: none is deleted or changed"
    BEGINS = "The run begins once it may, in its first attempt"
    ENDS_WELL = "The run ends as it would have"
    ONE_WRITER = "One writer at a time: no two of a run's pods live at once"
    NO_WRITES = "The operator writes nothing"
    MEMORY = "The operator's memory grows by less than 8 MiB"
    OTHERS_OBJECT = "Somebody else's object, untouched"
    OTHERS_MARKS = "Labels and annotations that others have put there"
    OTHERS_CONDITIONS = "Conditions that others have put there"

    @property
    def key(self) -> str:
        """How marks name it."""
        return self.name.lower().replace("_", "-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a test asserts in its own way, between the lines of `with faults.proving(...)`.

    `by` names tests of another kind than those against an API server alone: the whole marked test is the proof there.
    """

    key: str
    says: str
    by: str = ""


Promise: TypeAlias = Sees | Kept | Shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One fault, what the user sees of it, and what is never lost."""

    id: str
    fault: str
    sees: tuple[Sees | Shown, ...]
    keeps: tuple[Kept | Shown, ...]

    def promises(self) -> Iterator[tuple[str, Promise]]:
        """Every promise by the name with which marks and tests call it, such as `B11.secret`."""
        for promise in (*self.sees, *self.keeps):
            yield f"{self.id}.{promise.key}", promise


def describe(promise: Promise) -> str:
    """A promise as the page says it."""
    if isinstance(promise, Kept):
        return promise.value
    if isinstance(promise, Shown):
        return f"{promise.says} ({promise.by})" if promise.by else promise.says
    when = f"{promise.when[0].upper()}{promise.when[1:]}: " if promise.when else ""
    time = "" if promise.within_s == WITHIN_S else f", within {promise.within_s} s"
    return when + "; ".join(_parts(promise)) + time


def _parts(promise: Sees) -> Iterator[str]:
    """What is seen where."""
    if promise.nothing:
        yield "Nothing: no condition changes, and there is no Warning"
    says = _quoted(promise.says)
    if promise.state:
        yield f"State `{promise.state}`" + ("" if promise.conditions else says)
    for number, (kind, (status, reason)) in enumerate(promise.conditions.items()):
        yield f"`{kind}={status}" + (f" {reason}" if reason else "") + "`" + ("" if number else says)
    if promise.event:
        kind, reason = promise.event
        yield f"{kind} `{reason}`" + ("" if promise.conditions or promise.state else says)
    yield from (f"`status.retries.{cause}` is {count}" for cause, count in (promise.retries or {}).items())
    if promise.retries == {}:
        yield "`status.retries` counts nothing"
    yield from (f"`status.{path}` is set" for path in promise.status)
    if promise.advice:
        yield f"`status.advice`{_quoted((promise.advice,))}"
    if promise.metric:
        yield f"`{_shown(promise.metric)}` {promise.metric_does}"
    if promise.log:
        yield f"the operator's log{_quoted(promise.log)}"
    if promise.refusal:
        yield f"the API server refuses it{_quoted(promise.refusal)}"


def _quoted(texts: tuple[str, ...]) -> str:
    """Parts of a message."""
    return " with " + " and ".join(f'"{_shown(text)}"' for text in texts) if texts else ""


def _shown(template: str) -> str:
    """What differs from run to run is in angle brackets; braces that stand for themselves are doubled."""
    shown = re.sub(r"(?<!\{)\{(\w+)\}(?!\})", lambda match: f"<{match[1].replace('_', ' ')}>", template)
    return shown.replace("{{", "{").replace("}}", "}")
