"""Many rows to token ids: in this process where they are few, else in as many as there are CPUs, in the same order."""

import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain, islice

from lora_trainer.data.formats import Sample, rendered_size, size
from lora_trainer.data.store import Block
from lora_trainer.data.tokens import Encoder
from lora_trainer.distributed.parent import end_with_parent
from lora_trainer.errors import KernelOutOfMemoryError

BATCH_ROWS, BATCH_CHARACTERS = 512, 2**20
BATCH_RENDERED = 16 * BATCH_CHARACTERS
"""Characters of all texts that are rendered at once: of long conversations many times what they have themselves."""

ALONE_BATCHES = 16
"""With more batches it is worth to start other processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Samples that are encoded together, with the numbers of their rows."""

    numbers: Sequence[int]
    samples: Sequence[Sample]


def batches(rows: Iterable[tuple[int, Sample]]) -> Iterator[Batch]:
    """Cut a stream of samples into batches, of few rows where these are long."""
    numbers: list[int] = []
    samples: list[Sample] = []
    characters, rendered = 0, 0
    for number, sample in rows:
        numbers.append(number)
        samples.append(sample)
        characters += size(sample)
        rendered += rendered_size(sample)
        if len(numbers) == BATCH_ROWS or characters > BATCH_CHARACTERS or rendered > BATCH_RENDERED:
            yield Batch(numbers=numbers, samples=samples)
            numbers, samples, characters, rendered = [], [], 0, 0
    if numbers:
        yield Batch(numbers=numbers, samples=samples)


def encode_batches(given: Iterator[Batch], encoder: Encoder, processes: int) -> Iterator[tuple[Batch, Block]]:
    """Every batch with its tokens, in order. Raises `DatasetError`, `KernelOutOfMemoryError` for a killed process."""
    first = list(islice(given, ALONE_BATCHES + 1))
    # The libraries of other systems do not survive a fork.
    if len(first) > ALONE_BATCHES and processes > 1 and sys.platform == "linux":
        yield from _in_processes(chain(first, given), encoder, processes)
    else:
        for batch in chain(first, given):
            yield batch, Block.of(encoder.encode_all(batch.samples))


def _in_processes(given: Iterable[Batch], encoder: Encoder, processes: int) -> Iterator[tuple[Batch, Block]]:
    # Forked: they share the memory of the tokenizer and of all that is imported.
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(processes, context, _start, (encoder, os.getpid()))
    pending: deque[tuple[Batch, Future[Block]]] = deque()
    try:
        for batch in given:
            pending.append((batch, pool.submit(_encode, batch.samples)))
            if len(pending) > 2 * processes:
                done, future = pending.popleft()
                yield done, future.result()
        while pending:
            done, future = pending.popleft()
            yield done, future.result()
    except BrokenProcessPool as error:
        raise KernelOutOfMemoryError(
            "a process that encodes rows was killed, most likely for memory: raise resources.memory"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_encoders: list[Encoder] = []
"""The encoder of a process of the pool, which has no other place for it."""


def _start(encoder: Encoder, parent: int) -> None:
    # Ctrl-C reaches all processes of a terminal: the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    # The tokenizer's own threads would come on top.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encoders.append(encoder)


def _encode(samples: Sequence[Sample]) -> Block:
    return Block.of(_encoders[0].encode_all(samples))
