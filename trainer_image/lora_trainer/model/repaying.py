"""Whether a fast path pays: in time, and where it is compiled in more time than that takes."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from lora_trainer.errors import out_of_memory
from lora_trainer.model.refusal import refusal_of

LEAST_S = 20.0
"""What compiling a layer takes at least, forward and backward; measured only where that could pay."""
_MOST_SAVED = 0.27
"""Of a layer's time: the most that is published for such trainings."""
_LEAST_SAVED = 0.05
"""Less is what timings of a busy machine differ by, and two runs are to choose alike."""
_ROUNDS = 5
TOO_SHORT = "the run is too short"
"""How the sentence begins of what no user can or need do anything about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """How many micro-batches a run has in which what is compiled is to repay that. `agreed` makes of one refusal
    that of all processes, before some of them spend minutes on compiling while the others wait."""

    count: int = 0
    agreed: Callable[[str | None], str | None] = lambda refusal: refusal


class Timed(Protocol):
    """A module in a trial."""

    def stirred(self) -> contextlib.AbstractContextManager[Any]:
        """Its inputs, for the duration of measuring."""

    def seconds(self, inputs: Any) -> tuple[float, float]:
        """Of a pass on the fast path, and of one without."""

    def plain_seconds(self, inputs: Any) -> float:
        """Of a pass without."""


Some = TypeVar("Some", bound=Timed)
Trials = TypeVar("Trials")


def measured(judge: Callable[[Trials], str | None], sized: Trials, small: Trials, path: str) -> str | None:
    """Why the fast path of this name is left out for its time, or fails; None where it is not. Timed on the `small`
    trials where memory does not suffice for those of the run's size."""
    for trials in (sized, small):
        try:
            return judge(trials)
        except Exception as error:
            if trials is small or not out_of_memory(error):
                return refusal_of(error, path)
    return None


def too_short(trials: Mapping[Some, int], passes: int) -> str | None:
    """Why compiling cannot pay in a run of so many micro-batches; None where it may. `trials` has how many modules each
    stands for."""
    (plain,) = _least(trials, lambda trial, inputs: (trial.plain_seconds(inputs),))
    most = _MOST_SAVED * plain * passes
    if most > LEAST_S:
        return None
    return (
        f"{TOO_SHORT}: compiling takes {LEAST_S:.0f} s or more, and in {passes} micro-batches of {1000 * plain:.1f} ms "
        f"could save {most:.0f} s at most"
    )


def unpaid(trials: Mapping[Some, int], took_s: float, passes: int) -> str | None:
    """Why compiling, which took so long, does not pay in so many micro-batches; None where it does."""
    fast, plain = _least(trials, lambda trial, inputs: trial.seconds(inputs))
    saved = plain - fast
    if saved > _LEAST_SAVED * plain and saved * passes > took_s:
        return None
    if saved < 0:
        return f"it takes longer: {1000 * fast:.1f} ms forward and backward, plain PyTorch {1000 * plain:.1f} ms"
    return (
        f"it saves {1000 * saved:.1f} of {1000 * plain:.1f} ms in each of {passes} micro-batches, "
        f"{saved * passes:.0f} s in all, and compiling took {took_s:.0f} s"
    )


def _least(trials: Mapping[Some, int], timed: Callable[[Some, Any], tuple[float, ...]]) -> tuple[float, ...]:
    """The least time of some passes through all modules. The first pass of a size allocates, and does not count."""
    with contextlib.ExitStack() as stack:
        given = {trial: stack.enter_context(trial.stirred()) for trial in trials}
        found = []
        for _ in range(1 + _ROUNDS):
            times = [[count * one for one in timed(trial, given[trial])] for trial, count in trials.items()]
            found.append([sum(way) for way in zip(*times, strict=True)])
    return tuple(map(min, zip(*found[1:], strict=True)))
