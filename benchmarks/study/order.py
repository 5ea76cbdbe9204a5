"""Which trainings there are, and which are still to be done."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.study.records import read
from benchmarks.study.settings import RATES, SETTINGS, UNTRAINED, Setting


def plan(seeds: Sequence[int]) -> Iterator[tuple[Setting, int]]:
    """All in their order: the model as it is, the settings seed by seed, other learning rates."""
    yield from ((setting, seeds[0]) for setting in UNTRAINED)
    yield from ((setting, seed) for seed in seeds for setting in SETTINGS)
    yield from ((setting, seed) for seed in seeds for setting in RATES)


def missing(results: Path, seeds: Sequence[int]) -> list[tuple[Setting, int]]:
    """Those that are not recorded, in their order."""
    done = {run.key for run in read(results)}
    return [(setting, seed) for setting, seed in plan(seeds) if (setting.name, seed) not in done]
