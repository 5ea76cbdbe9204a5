"""Encoded rows, in memory or in files: any number of them in a bounded resident set, each read when it is asked for."""

import os
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, Self, overload

import numpy as np
from numpy.typing import NDArray

from lora_trainer.data.tokens import IGNORED, Encoded, Example
from lora_trainer.errors import storage_error

COLUMNS = ("tokens", "sizes", "targets", "truncated", "rows")
"""The files of a store."""

TARGET = np.uint32(1 << 31)
"""The top bit of a stored token: whether it is learned. No vocabulary comes near 2^31 entries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    """What is known of each example without reading its tokens; `starts` (int64) is where they begin in the store,
    `sizes` (examples, sequences) how many each of its sequences has, and `rows` numbers the rows of the data set that
    they were made of, in the store's order."""

    starts: NDArray[np.int64]
    sizes: NDArray[np.int32]
    targets: NDArray[np.int32]
    truncated: NDArray[np.bool_]
    rows: NDArray[np.int32]

    def select(self, rows: Any) -> "_Columns":
        """The columns of some rows, by slice or by numbers."""
        return _Columns(
            starts=self.starts[rows],
            sizes=self.sizes[rows],
            targets=self.targets[rows],
            truncated=self.truncated[rows],
            rows=self.rows[rows],
        )


class _File:
    """Tokens in a file, read with pread: a mapped file would grow the resident set, and a bad disk end the process."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)
        self._path = path

    def read(self, start: int, count: int) -> NDArray[np.uint32]:
        """Tokens from `start` on. Raises `OSError` where the file ends before."""
        data = os.pread(self._descriptor, 4 * count, 4 * start)
        if len(data) != 4 * count:
            raise OSError(f"{self._path} is shorter than when it was written")
        return np.frombuffer(data, dtype=np.uint32)


class _Memory:
    """Tokens in memory."""

    def __init__(self, tokens: NDArray[np.uint32]) -> None:
        self._tokens = tokens

    def read(self, start: int, count: int) -> NDArray[np.uint32]:
        """Tokens from `start` on."""
        return self._tokens[start : start + count]


class Examples(Sequence[Example]):
    """Encoded rows. `lengths` and `targets` (int32) are the tokens and the target tokens of each."""

    def __init__(self, tokens: _File | _Memory, columns: _Columns) -> None:
        self._tokens = tokens
        self._columns = columns

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each row."""
        sizes = self._columns.sizes
        # Of one sequence each, a view.
        return sizes[:, 0] if sizes.shape[1] == 1 else sizes.sum(axis=1, dtype=np.int32)

    def room(self, *, packed: bool) -> NDArray[np.int32]:
        """Tokens that each takes of a micro-batch, padding among its own sequences included."""
        sizes = self._columns.sizes
        return self.lengths if packed else sizes.max(axis=1, initial=0) * np.int32(sizes.shape[1])

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return int(self._columns.sizes.max())

    @property
    def targets(self) -> NDArray[np.int32]:
        """Learned tokens of each row."""
        return self._columns.targets

    @property
    def truncated(self) -> NDArray[np.bool_]:
        """Whether each row was cut."""
        return self._columns.truncated

    @property
    def rows(self) -> NDArray[np.int32]:
        """The number of the data set's row that each was made of, which may have become several."""
        return self._columns.rows

    @property
    def row_count(self) -> int:
        """How many rows of the data set they were made of."""
        return len(np.unique(self.rows))

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._columns.targets)

    @overload
    def __getitem__(self, row: int) -> Example: ...
    @overload
    def __getitem__(self, row: slice) -> "Examples": ...
    def __getitem__(self, row: int | slice) -> "Example | Examples":
        """One row, read now, or a view of several. Raises `IndexError`."""
        if isinstance(row, slice):
            return self.select(row)
        columns = self._columns
        sizes = tuple(columns.sizes[row].tolist())
        stored = self._tokens.read(int(columns.starts[row]), sum(sizes))
        input_ids = (stored & ~TARGET).astype(np.int64)
        labels = np.where(stored & TARGET, input_ids, IGNORED)
        return Example(input_ids=input_ids, labels=labels, truncated=bool(columns.truncated[row]), sizes=sizes)

    def __iter__(self) -> Iterator[Example]:
        """Every row in turn."""
        return (self[row] for row in range(len(self)))

    def select(self, rows: slice | NDArray[np.int64]) -> "Examples":
        """A view of some rows, in the given order."""
        return Examples(self._tokens, self._columns.select(rows))

    @classmethod
    def of(cls, examples: Iterable[Example]) -> "Examples":
        """Rows kept in memory."""
        block = Block.of([[Encoded(example=example, cut_tokens=0, cut_targets=0)] for example in examples])
        columns = _Columns(
            starts=_starts(block.sizes),
            sizes=block.sizes,
            targets=block.targets,
            truncated=block.truncated,
            rows=block.rows,
        )
        return cls(_Memory(block.tokens), columns)

    @classmethod
    def open(cls, folder: Path) -> "Examples":
        """Rows that a `Writer` has put into a folder; what is known of each is mapped, the tokens stay on the disk."""
        targets = _mapped(folder / "targets", np.int32)
        sizes = _mapped(folder / "sizes", np.int32).reshape(len(targets), -1 if len(targets) else 1)
        columns = _Columns(
            starts=_starts(sizes),
            sizes=sizes,
            targets=targets,
            truncated=_mapped(folder / "truncated", np.bool_),
            rows=_mapped(folder / "rows", np.int32),
        )
        return cls(_File(folder / "tokens"), columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Some examples packed for a store: their `tokens` one after the other, and for each its sizes, flags and counts.

    `samples` are the positions of the samples that they were made of, in rising order. `cut_tokens` and `cut_targets`
    are what did not fit into the longest length; the rest as in `Encoded`.
    """

    tokens: NDArray[np.uint32]
    samples: NDArray[np.int64]
    sizes: NDArray[np.int32]
    targets: NDArray[np.int32]
    truncated: NDArray[np.bool_]
    cut_tokens: NDArray[np.int64]
    cut_targets: NDArray[np.int64]
    apart: NDArray[np.bool_]
    answers: NDArray[np.int64]
    learned_answers: NDArray[np.int64]
    unended_answers: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each."""
        found: NDArray[np.int64] = self.sizes.sum(axis=1, dtype=np.int64)
        return found

    @property
    def rows(self) -> NDArray[np.int32]:
        """The samples that still have examples, numbered from 0 on."""
        begins = np.diff(self.samples, prepend=self.samples[:1]) != 0
        return np.cumsum(begins, dtype=np.int32)

    @classmethod
    def of(cls, samples: Sequence[Sequence[Encoded]]) -> "Block":
        """Pack the examples of each of some samples."""
        encoded = [one for several in samples for one in several]
        examples = [one.example for one in encoded]
        return cls(
            tokens=np.concatenate([np.empty(0, np.uint32), *map(_packed, examples)]),
            samples=np.repeat(np.arange(len(samples)), [len(several) for several in samples]),
            sizes=_sizes(examples),
            targets=np.array([example.targets for example in examples], np.int32),
            truncated=np.array([example.truncated for example in examples], np.bool_),
            cut_tokens=np.array([one.cut_tokens for one in encoded], np.int64),
            cut_targets=np.array([one.cut_targets for one in encoded], np.int64),
            apart=np.array([one.apart for one in encoded], np.bool_),
            answers=np.array([one.answers for one in encoded], np.int64),
            learned_answers=np.array([one.learned_answers for one in encoded], np.int64),
            unended_answers=np.array([one.unended_answers for one in encoded], np.int64),
        )

    def select(self, chosen: NDArray[np.bool_]) -> "Block":
        """Some of the examples."""
        columns = {field.name: getattr(self, field.name)[chosen] for field in fields(self) if field.name != "tokens"}
        return Block(tokens=self.tokens[np.repeat(chosen, self.lengths)], **columns)


class Writer:
    """Appends rows to the files of a folder, which must not hold any yet; a context. Raises `StorageError`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._rows = 0

    def __enter__(self) -> Self:
        with self._stated():
            self._folder.mkdir(parents=True, exist_ok=True)
            for name in COLUMNS:
                self._files[name] = (self._folder / name).open("xb")
        return self

    def append(self, block: Block) -> None:
        """Add rows at the end."""
        rows = block.rows + np.int32(self._rows)
        self._rows = int(rows.max(initial=self._rows - 1)) + 1
        with self._stated():
            for name, file in self._files.items():
                file.write((rows if name == "rows" else getattr(block, name)).tobytes())

    def __exit__(self, *_: object) -> None:
        with self._stated():
            for file in self._files.values():
                file.close()

    @contextmanager
    def _stated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise storage_error(error, f"the folder for tokens, {self._folder},") from error


def _packed(example: Example) -> NDArray[np.uint32]:
    tokens = example.input_ids.astype(np.uint32)
    tokens[example.labels != IGNORED] |= TARGET
    return tokens


def _sizes(examples: Sequence[Example]) -> NDArray[np.int32]:
    sequences = len(examples[0].lengths) if examples else 1
    return np.array([example.lengths for example in examples], np.int32).reshape(-1, sequences)


def _starts(sizes: NDArray[np.int32]) -> NDArray[np.int64]:
    lengths: NDArray[np.int64] = sizes.sum(axis=1, dtype=np.int64)
    return np.cumsum(lengths) - lengths


def _mapped(path: Path, kind: Any) -> Any:
    # An empty file cannot be mapped. The plain view spares each access the cost of the subclass.
    return np.asarray(np.memmap(path, dtype=kind, mode="r")) if path.stat().st_size else np.empty(0, kind)
