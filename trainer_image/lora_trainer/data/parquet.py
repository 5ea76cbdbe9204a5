"""Parquet to rows, a batch at a time; lists and structs become Python's."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lora_trainer.data import rows
from lora_trainer.data.rows import Row, Selection
from lora_trainer.errors import DatasetError

_BATCH_BYTES = 32 * 2**20


def read_parquet(
    name: str, path: Path, selection: Selection, columns: Collection[str] | None, batch_rows: int
) -> Iterator[Row]:
    """The wanted rows of a file. Raises `DatasetError` for what is no Parquet, encrypted, cut off or damaged."""
    with _stated(name, 1):
        file = pq.ParquetFile(path)
    with file:
        total = file.metadata.num_rows
        stored = sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
        batch_rows = max(1, min(batch_rows, _BATCH_BYTES * total // max(1, stored)))
        chosen = [column for column in file.schema_arrow.names if columns is None or column in columns]
        batches = file.iter_batches(batch_size=batch_rows, columns=chosen, use_threads=False)
        done = 0
        while not selection.finished:
            with _stated(name, done + 1):
                batch = next(batches, None)
            if batch is None:
                return
            first = selection.count
            numbers = selection.take_many(batch.num_rows)
            if numbers:
                for number, values in zip(
                    numbers, _values(name, batch, [n - first for n in numbers], done), strict=True
                ):
                    position = done + number - first + 1
                    where = f"{name}, row {position}"
                    yield Row(number, where, name, position, values, "row")
            done += batch.num_rows


@contextmanager
def _stated(name: str, row: int) -> Iterator[None]:
    """Arrow's errors as a sentence; `row` is the first that could not be read."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the volume failed, not the file; Arrow's own errors have no number
        text = " ".join(str(error).split())[:200]
        if "crypt" in text:
            raise DatasetError(f"{name}: the file is encrypted ({text}); write it without encryption") from error
        what = "cannot be read as Parquet" if row == 1 else f"cannot be read as Parquet from row {row} on"
        raise DatasetError(f"{name}: {what} ({text}); write or copy the file again") from error


def _values(name: str, batch: Any, positions: list[int], done: int) -> list[dict[str, Any]]:
    if batch.nbytes > rows.MAX_ROW_BYTES:
        for position in positions:
            if batch.slice(position, 1).nbytes > rows.MAX_ROW_BYTES:
                raise rows.too_long(f"{name}, row {done + position + 1}")
    if len(positions) < batch.num_rows:
        batch = batch.take(pa.array(positions))
    try:
        columns = [python_values(column) for column in batch.columns]
    except UnicodeDecodeError as error:
        raise _not_utf8(name, batch, positions, done) from error
    return [dict(zip(batch.schema.names, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _not_utf8(name: str, batch: Any, positions: list[int], done: int) -> DatasetError:
    for i, position in enumerate(positions):
        for field, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                python_values(column.slice(i, 1))
            except UnicodeDecodeError:
                where = f"{name}, row {done + position + 1}: field '{field}'"
                return DatasetError(f"{where} is not UTF-8; write the file again from text that is")
    raise AssertionError("unreachable: one of the rows was not UTF-8")


def python_values(array: Any) -> list[Any]:
    """The values of an Arrow array. A struct loses its fields without a value.

    In Parquet all structs of a column have the same fields: where one message of many has a name, all others have a
    name that is null. Arrow's own `to_pylist` is several times slower on text.
    """
    kind = array.type
    if pa.types.is_dictionary(kind):
        return python_values(array.dictionary_decode())
    if isinstance(kind, pa.ExtensionType):
        return python_values(array.storage)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _texts(array)
    if pa.types.is_struct(kind):
        names = [field.name for field in kind]
        structs = [
            {name: cell for name, cell in zip(names, cells, strict=True) if cell is not None}
            for cells in zip(*(python_values(child) for child in array.flatten()), strict=True)
        ]
        return _with_nulls(array, structs)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        items = python_values(array.flatten())
        lists, start = [], 0
        for length in pc.fill_null(pc.list_value_length(array), 0).to_numpy().tolist():
            lists.append(items[start : start + length])
            start += length
        return _with_nulls(array, lists)
    values: list[Any] = array.to_pylist()
    return values


def _texts(array: Any) -> list[Any]:
    try:
        texts: list[Any] = array.to_numpy(zero_copy_only=False).tolist()
    except pa.ArrowException:
        # Nothing checked the bytes when they were written; Arrow does not say which are wrong.
        return [None if text is None else text.decode() for text in array.cast(pa.binary()).to_pylist()]
    return texts


def _with_nulls(array: Any, values: list[Any]) -> list[Any]:
    if not array.null_count:
        return values
    return [value if valid else None for value, valid in zip(values, array.is_valid().to_pylist(), strict=True)]
