"""Files to rows: JSONL, JSON and CSV, read with the line or the row of every error."""

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_trainer.errors import DatasetError

MAX_ROW_BYTES = 16 * 2**20
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row and where it stands, as in `train.jsonl, line 17`."""

    where: str
    values: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Equal for rows of equal content."""
        return hashlib.sha256(json.dumps(self.values, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """All rows of a data set; `fingerprint` is `sha256:` over the bytes of its files in order."""

    rows: tuple[Row, ...]
    fingerprint: str
    empty: int


def read_table(files: Sequence[tuple[str, Path]]) -> Table:
    """Read files, given with the name to show. Raises `DatasetError`, which names file and line."""
    digest = hashlib.sha256()
    rows: list[Row] = []
    empty = 0
    for name, path in files:
        data = path.read_bytes()
        digest.update(data)
        for row in _rows(name, path.suffix.lower(), data):
            if row.values:
                rows.append(row)
            else:
                empty += 1
    if not rows:
        raise DatasetError(f"{', '.join(name for name, _ in files)} has no rows: a data set needs at least one")
    return Table(rows=tuple(rows), fingerprint=f"sha256:{digest.hexdigest()}", empty=empty)


def _rows(name: str, suffix: str, data: bytes) -> Iterator[Row]:
    if suffix == ".csv":
        return _csv(name, _decode(name, data))
    if suffix == ".json" and data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
        return _json(name, _decode(name, data))
    return _json_lines(name, data)


def _decode(name: str, data: bytes, line: int | None = None) -> str:
    try:
        return data.decode("utf-8-sig" if line in (None, 1) else "utf-8")
    except UnicodeDecodeError as error:
        number = line or data.count(b"\n", 0, error.start) + 1
        raise DatasetError(
            f"{name}, line {number}: not UTF-8 (byte 0x{data[error.start]:02x}); save the file as UTF-8"
        ) from error


def _json_lines(name: str, data: bytes) -> Iterator[Row]:
    # Only \n ends a line: str.splitlines() would also split at U+2028 and others that JSON allows inside strings.
    for number, raw in enumerate(data.split(b"\n"), start=1):
        where = f"{name}, line {number}"
        _check_size(where, len(raw))
        text = _decode(name, raw, number).strip()
        if text:
            yield _object(where, _parse(where, text))


def _json(name: str, text: str) -> Iterator[Row]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise DatasetError(f"{name}, line {line}: not JSON ({_reason(error)})") from error
    for number, item in enumerate(document, start=1):
        where = f"{name}, row {number}"
        row = _object(where, item)
        _check_size(where, len(json.dumps(item)))
        yield row


def _csv(name: str, text: str) -> Iterator[Row]:
    csv.field_size_limit(MAX_ROW_BYTES)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        for cells in reader:
            where = f"{name}, line {reader.line_num}"
            if cells and len(cells) != len(header):
                raise DatasetError(
                    f"{where}: {len(cells)} cells, but the header has {len(header)}; quote cells with commas"
                )
            yield Row(where=where, values=dict(zip(header, cells, strict=True)) if cells else {})
    except csv.Error as error:
        raise DatasetError(f"{name}, line {reader.line_num}: not CSV ({error})") from error


def _check_size(where: str, size: int) -> None:
    if size > MAX_ROW_BYTES:
        raise DatasetError(
            f"{where}: the row has {size / 2**20:.0f} MiB, more than {MAX_ROW_BYTES // 2**20} MiB; "
            "split it or write one JSON object a line"
        )


def _parse(where: str, text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{where}: not JSON ({_reason(error)}); write one JSON object a line") from error


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _object(where: str, item: object) -> Row:
    if not isinstance(item, dict):
        raise DatasetError(f"{where}: a {type(item).__name__}, but each row must be an object with columns")
    try:
        json.dumps(item, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DatasetError(
            f"{where}: half of a surrogate pair (\\ud800 to \\udfff) is no character; repair it"
        ) from error
    return Row(where=where, values=item)
