"""The settings against the base: differences of the held-out loss, paired by row."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from benchmarks.study.records import Run, by_setting
from benchmarks.study.rows import Kind, make_rows

from lora_trainer.train.standard_error import ratio_standard_error

N = TypeVar("N", int, float)
KINDS = tuple(row.kind for row in make_rows().held_out)
"""Of the held-out rows, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Loss of a setting less that of the base, nats a target token: the mean over the seeds that both have.

    `rows_error` is the standard error over the held-out rows of these seeds' mean, `seeds_error` that over the seeds,
    None for a single one.
    """

    by_seed: tuple[float, ...]
    rows_error: float
    seeds_error: float | None

    @property
    def value(self) -> float:
        """The mean."""
        return statistics.fmean(self.by_seed)

    @property
    def error(self) -> float:
        """Over rows and seeds: the variances of both are added. What row and seed have together counts twice, so that
        the error is rather too large than too small."""
        return math.hypot(self.rows_error, self.seeds_error or 0.0)

    @property
    def shown(self) -> bool:
        """Whether it is more than two standard errors, of several seeds."""
        return self.seeds_error is not None and abs(self.value) > 2 * self.error


def mean_loss(runs: Mapping[int, Run], kind: Kind | None) -> float:
    """Held-out loss a target token, the mean over seeds."""
    return statistics.fmean(_loss(run.sums, run.tokens, kind) for run in runs.values())


def difference(runs: Sequence[Run], setting: str, base: str, kind: Kind | None = None) -> Difference | None:
    """Over all held-out rows or those of a kind; None where no seed was trained with both."""
    ours, theirs = by_setting(runs, setting), by_setting(runs, base)
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    tokens = ours[seeds[0]].tokens
    pairs = [[mine - other for mine, other in zip(ours[seed].sums, theirs[seed].sums, strict=True)] for seed in seeds]
    found = tuple(_loss(rows, tokens, kind) for rows in pairs)
    means = [statistics.fmean(row) for row in zip(*pairs, strict=True)]
    return Difference(
        by_seed=found,
        rows_error=ratio_standard_error(_of(means, kind), _of(tokens, kind)) or 0.0,
        seeds_error=statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else None,
    )


def _loss(sums: Sequence[float], tokens: Sequence[int], kind: Kind | None) -> float:
    return sum(_of(sums, kind)) / sum(_of(tokens, kind))


def _of(values: Sequence[N], kind: Kind | None) -> list[N]:
    return [value for value, other in zip(values, KINDS, strict=True) if kind in {None, other}]
