"""Files to rows, one after the other, and the fingerprint of their bytes."""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lora_trainer.data.file_kinds import FileKind, file_kind
from lora_trainer.data.rows import Row, Selection
from lora_trainer.data.text_files import read_text
from lora_trainer.data.text_streams import open_text

_CHUNK_BYTES = 2**20
_UNNAMED = FileKind(suffix=".jsonl")
"""A ConfigMap's key need not end in anything."""


def read_rows(
    files: Sequence[tuple[str, Path]],
    *,
    wanted: NDArray[np.bool_] | None = None,
    columns: Collection[str] | None = None,
    batch_rows: int = 1000,
) -> Iterator[Row]:
    """The rows of files that are given with the name to show; a blank line of CSV is a row without values.

    What is not `wanted` is passed over without being parsed, columns of Parquet other than `columns` are not read.
    Raises `DatasetError`, which names file and line.
    """
    selection = Selection(wanted)
    for name, path in files:
        if selection.finished:
            return
        kind = file_kind(path.name) or _UNNAMED
        if kind.suffix == ".parquet":
            from lora_trainer.data.parquet import read_parquet  # noqa: PLC0415 - Arrow takes a second to import

            yield from read_parquet(name, path, selection, columns, batch_rows)
        else:
            with open_text(name, path, kind) as file:
                yield from read_text(name, kind.suffix, file, selection)


def fingerprint(*groups: Sequence[tuple[str, Path]]) -> str:
    """`sha256:` over the bytes of files in order; moving one to another group gives another fingerprint."""
    digests = []
    for files in groups:
        digest = hashlib.sha256()
        for _, path in files:
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
        digests.append(digest.hexdigest())
    return f"sha256:{hashlib.sha256(' '.join(digests).encode()).hexdigest()}"
