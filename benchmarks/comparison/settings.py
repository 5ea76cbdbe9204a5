"""Which settings of TRL's `SFTTrainer` are tried, and which of those that count is the fastest.

A setting counts whose optimizer step learns as many tokens as ours, within 5 %, and whose rows do not see each other.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

EFFECTIVE = 16
"""Rows of an optimizer step."""
MICRO_BATCHES = (1, 2, 4, 8, 16)
TOLERANCE = 0.05
MUCH_SLOWER = 1.2
"""Times the fastest micro-batch of its kind: larger ones are not tried after such a one."""
_PACK_LENGTHS = (1.0, 1.25, 1.5, 1.75, 2.0)
"""Times the longest row; the first with which a step learns as much as ours is taken."""


class Form(StrEnum):
    """How rows become a micro-batch: padded to the longest, laid one after the other, or so into packs of a length."""

    PADDED = "padded"
    PADDING_FREE = "padding-free"
    PACKED = "packed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """`micro` rows, or packs of `length` tokens, in a micro-batch, and `accumulation` of these in a step."""

    form: Form
    micro: int
    accumulation: int
    length: int | None = None
    liger: bool = False
    attention: str = "sdpa"

    def __str__(self) -> str:
        packs = "" if self.length is None else f" of {self.length}"
        return f"{self.form}{packs}, micro-batch {self.micro}, {self.attention}{', Liger' if self.liger else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A setting with its `seconds`, of CPU time on a CPU.

    `learned` are the tokens that a full step of it learns on average, `see` is whether its rows see each other, and
    `trouble` why there are no seconds.
    """

    setting: Setting
    seconds: float = float("inf")
    learned: float = 0.0
    see: bool = False
    trouble: str = ""

    def left_out(self, learned: float) -> str:
        """Why it does not count beside a step of ours, which learns so many tokens; empty where it does."""
        if self.trouble:
            return self.trouble
        if self.see:
            return "rows see each other"
        if abs(self.learned / learned - 1) > TOLERANCE:
            return f"{self.learned:.0f} learned tokens a step against {learned:.0f}"
        return ""


def fastest(tried: Sequence[Tried], learned: float) -> Tried:
    """Of those that count. Raises `ValueError` where none does."""
    return min((one for one in tried if not one.left_out(learned)), key=lambda one: one.seconds)


def plain_settings() -> Iterator[Setting]:
    """Those of the plain script."""
    for micro in MICRO_BATCHES:
        yield Setting(form=Form.PADDED, micro=micro, accumulation=EFFECTIVE // micro)


def settings(lengths: Sequence[int], *, liger: Sequence[bool], attentions: Sequence[str]) -> Iterator[list[Setting]]:
    """Those of `SFTTrainer` for rows of these lengths: of each kind, by growing micro-batch."""
    for attention, with_liger in itertools.product(attentions, liger):
        for form in Form:
            found = []
            for micro in MICRO_BATCHES:
                length, accumulation = None, EFFECTIVE // micro
                if form is Form.PACKED:
                    shape = packs_of_a_step(lengths, micro)
                    if shape is None:
                        continue
                    length, accumulation = shape
                found.append(
                    Setting(
                        form=form,
                        micro=micro,
                        accumulation=accumulation,
                        length=length,
                        liger=with_liger,
                        attention=attention,
                    )
                )
            yield found


def packs_of_a_step(lengths: Sequence[int], micro: int) -> tuple[int, int] | None:
    """The length of packs and the accumulation with which a step has the rows of one of ours, on average; None where
    there is none."""
    for factor in _PACK_LENGTHS:
        length = int(factor * max(lengths))
        wanted = packs(lengths, length) * EFFECTIVE / len(lengths)
        accumulation = max(1, round(wanted / micro))
        if abs(micro * accumulation / wanted - 1) <= TOLERANCE:
            return length, accumulation
    return None


def packs(lengths: Sequence[int], length: int) -> int:
    """How many packs best-fit decreasing makes, as TRL does."""
    room: list[int] = []
    for row in sorted(lengths, reverse=True):
        best = min((left for left in room if left >= row), default=None)
        if best is None:
            room.append(length - row)
        else:
            room[room.index(best)] -= row
    return len(room)
