"""The chosen rows of some files, read once more, and encoded many at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lora_trainer.data.encoding import Batch, batches, encode_batches
from lora_trainer.data.formats import Layout, Sample, is_larger, parse, size
from lora_trainer.data.readers import read_rows
from lora_trainer.data.store import Block
from lora_trainer.data.survey import Mask, Part
from lora_trainer.data.tokens import Encoder
from lora_trainer.distributed.cpus import node_cpus
from lora_trainer.errors import DatasetError, KernelOutOfMemoryError


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """At most how many processes encode, None for all CPUs. A row of more than `longest` characters is a
    `KernelOutOfMemoryError`."""

    processes: int | None = None
    longest: int | None = None


def encoded_rows(
    part: Part, wanted: Mask, layout: Layout, encoder: Encoder, pace: Pace | None = None
) -> Iterator[tuple[Batch, Block]]:
    """The wanted rows, many at a time."""
    pace = pace or Pace()
    most = node_cpus() if pace.processes is None else min(pace.processes, node_cpus())
    return encode_batches(batches(_short(parsed_rows(part, wanted, layout), pace.longest)), encoder, most)


def _short(rows: Iterator[tuple[int, Sample]], longest: int | None) -> Iterator[tuple[int, Sample]]:
    for number, sample in rows:
        if longest is not None and is_larger(sample, longest):
            raise KernelOutOfMemoryError(
                f"{sample.where}: a row of {size(sample):,} characters takes more memory to encode than there may be"
            )
        yield number, sample


def parsed_rows(part: Part, wanted: Mask, layout: Layout) -> Iterator[tuple[int, Sample]]:
    left = int(np.count_nonzero(wanted))
    for row in read_rows(part.files, wanted=wanted, columns=layout.names):
        sample = parse(row, layout)
        if sample is None:
            raise DatasetError(f"{row.where}: the row changed while it was read; keep files as they are during a run")
        left -= 1
        yield row.number, sample
    if left:
        raise DatasetError(
            f"{part.files[-1][0]}: {left} rows are gone since the first reading; keep files as they are during a run"
        )
