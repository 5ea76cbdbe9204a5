"""What is said about each factor, and what the study says to it."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.study.compare import Difference, difference, mean_loss
from benchmarks.study.records import Run, by_setting
from benchmarks.study.rows import Kind
from benchmarks.study.settings import BASE

SAME_WITHIN = 0.05
"""Share of a held-out loss within which two settings count as equally good."""


class Expected(enum.StrEnum):
    """Of the setting's loss against the base's."""

    LOWER = "lower"
    HIGHER = "higher"
    SAME = "the same"


class Verdict(enum.StrEnum):
    """Of the study on a claim."""

    SUPPORTED = "supports"
    CONTRADICTED = "contradicts"
    OPEN = "cannot show"
    MISSING = "not run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A sentence, and what it expects of a setting's loss against another's, over rows of a kind, all where it is
    None."""

    text: str
    setting: str
    expected: Expected
    kind: Kind | None = None
    against: str = BASE.name


CLAIMS = (
    Claim(
        text="rank 4 to 8 is enough for style and form, under 5,000 rows (rule of thumb)",
        setting="rank-4",
        expected=Expected.SAME,
        kind="rule",
    ),
    Claim(
        text="recall needs a rank of 64 or more (rule of thumb)",
        setting="rank-64",
        expected=Expected.LOWER,
        kind="recall",
    ),
    Claim(text="and loses with a small one", setting="rank-4", expected=Expected.HIGHER, kind="recall"),
    Claim(
        text="alpha = 2 x rank is better than alpha = rank (Raschka)", setting="alpha-rank", expected=Expected.HIGHER
    ),
    Claim(
        text="all linear layers are better than query and value alone (Raschka; LoRA Without Regret)",
        setting="query-value",
        expected=Expected.HIGHER,
    ),
    Claim(
        text="all linear layers are better than attention alone (LoRA Without Regret)",
        setting="attention",
        expected=Expected.HIGHER,
    ),
    Claim(
        text="even with fewer parameters: all linear layers at rank 4 against attention at rank 16",
        setting="attention",
        expected=Expected.HIGHER,
        against="rank-4",
    ),
    Claim(text="NF4 is as good as an unquantized base (QLoRA; Raschka)", setting="nf4", expected=Expected.SAME),
    Claim(text="a dropout of 0.05 helps where rows are few", setting="dropout", expected=Expected.LOWER),
    Claim(text="a second epoch overfits (Raschka)", setting="epochs-2", expected=Expected.HIGHER),
    Claim(text="a third epoch overfits (Raschka)", setting="epochs-3", expected=Expected.HIGHER),
)


def judge(claim: Claim, runs: Sequence[Run]) -> tuple[Verdict, Difference | None]:
    """What the runs say. A claim of a difference is supported or contradicted by one that is shown; a claim of none is
    supported where two standard errors end within `SAME_WITHIN` of the other's loss, and contradicted by a difference
    that is shown and larger than that."""
    found = difference(runs, claim.setting, claim.against, claim.kind)
    if found is None:
        return Verdict.MISSING, None
    if claim.expected is Expected.SAME:
        margin = SAME_WITHIN * mean_loss(by_setting(runs, claim.against), claim.kind)
        if found.seeds_error is not None and abs(found.value) + 2 * found.error <= margin:
            return Verdict.SUPPORTED, found
        return (Verdict.CONTRADICTED if found.shown and abs(found.value) > margin else Verdict.OPEN), found
    if not found.shown:
        return Verdict.OPEN, found
    as_expected = (found.value > 0) == (claim.expected is Expected.HIGHER)
    return (Verdict.SUPPORTED if as_expected else Verdict.CONTRADICTED), found
