"""Whether it pays to compile: what a run saves by it must be more than it takes."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

LEAST_S = 20.0
"""What compiling a layer takes at least, forward and backward; measured only where that could pay."""
_MOST_SAVED = 0.27
"""Of a layer's time: the most that is published for such trainings."""
_LEAST_SAVED = 0.05
"""Less is what timings of a busy machine differ by, and two runs are to choose alike."""
_ROUNDS = 5


class Timed(Protocol):
    """A module in a trial."""

    def stirred(self) -> contextlib.AbstractContextManager[Any]:
        """Its inputs, for the duration of measuring."""

    def seconds(self, inputs: Any) -> tuple[float, float]:
        """Of a pass on the fast path, and of one without."""

    def plain_seconds(self, inputs: Any) -> float:
        """Of a pass without."""


Some = TypeVar("Some", bound=Timed)


def too_short(trials: Mapping[Some, int], passes: int) -> str | None:
    """Why compiling cannot pay in a run of so many micro-batches; None where it may. `trials` has how many modules each
    stands for."""
    (plain,) = _least(trials, lambda trial, inputs: (trial.plain_seconds(inputs),))
    most = _MOST_SAVED * plain * passes
    if most > LEAST_S:
        return None
    return (
        f"compiling takes {LEAST_S:.0f} s or more, and in {passes} micro-batches of {1000 * plain:.1f} ms could save "
        f"{most:.0f} s at most"
    )


def unpaid(trials: Mapping[Some, int], took_s: float, passes: int) -> str | None:
    """Why compiling, which took so long, does not pay in so many micro-batches; None where it does."""
    fast, plain = _least(trials, lambda trial, inputs: trial.seconds(inputs))
    saved = plain - fast
    if saved > _LEAST_SAVED * plain and saved * passes > took_s:
        return None
    return (
        f"it saves {1000 * saved:.1f} of {1000 * plain:.1f} ms in each of {passes} micro-batches, "
        f"{saved * passes:.0f} s in all, and compiling took {took_s:.0f} s"
    )


def _least(trials: Mapping[Some, int], measured: Callable[[Some, Any], tuple[float, ...]]) -> tuple[float, ...]:
    """The least time of some passes through all modules. The first pass of a size allocates, and does not count."""
    with contextlib.ExitStack() as stack:
        given = {trial: stack.enter_context(trial.stirred()) for trial in trials}
        found = []
        for _ in range(1 + _ROUNDS):
            times = [[count * one for one in measured(trial, given[trial])] for trial, count in trials.items()]
            found.append([sum(way) for way in zip(*times, strict=True)])
    return tuple(map(min, zip(*found[1:], strict=True)))
