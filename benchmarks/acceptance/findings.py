"""What a check found, and how it is shown: a line for people, an object for the record."""

import enum
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

Figure = float | str
Figures = Mapping[str, Figure]


class State(enum.StrEnum):
    """`MEASURED` are figures that prove no fault, `NOT_RUN` what this machine or this call leaves out."""

    PASSED = "passed"
    FAILED = "failed"
    MEASURED = "measured"
    NOT_RUN = "not run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a check found. `said` is for people."""

    state: State
    said: str = ""
    figures: Figures = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A question to the device; `run` may raise anything, which fails the check."""

    name: str
    run: Callable[[], Outcome]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The outcome of one check of a part, and the seconds that it took."""

    part: str
    check: str
    state: State
    said: str = ""
    figures: Figures = field(default_factory=dict)
    seconds: float = 0.0


def judged(right: bool, said: str, **figures: Figure) -> Outcome:
    """Passed where `right`, else failed."""
    return Outcome(state=State.PASSED if right else State.FAILED, said=said, figures=figures)


def not_run(why: str) -> Outcome:
    """Left out, and why."""
    return Outcome(state=State.NOT_RUN, said=why)


def line(finding: Finding) -> str:
    """One row of the table."""
    return f"{finding.part:<10} {finding.check:<38} {finding.state.value:<8} {finding.seconds:6.1f} s  {finding.said}"


def to_json(finding: Finding) -> str:
    """On one line, as a part's process gives it to the one that started it."""
    return json.dumps(asdict(finding))


def from_json(text: str) -> Finding | None:
    """The finding on a line; None for a line that a library has printed."""
    try:
        read = json.loads(text)
        return Finding(**{**read, "state": State(read["state"])})
    except (ValueError, TypeError, KeyError):
        return None


def summary(findings: Sequence[Finding]) -> str:
    """How many of each state."""
    counts = {state: sum(finding.state is state for finding in findings) for state in State}
    return ", ".join(f"{count} {state.value}" for state, count in counts.items())


def record(findings: Iterable[Finding], facts: Figures) -> str:
    """The whole acceptance as JSON."""
    return json.dumps({**facts, "findings": [asdict(finding) for finding in findings]}, indent=1)
