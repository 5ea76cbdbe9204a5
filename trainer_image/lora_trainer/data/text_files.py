"""Files of text to rows: JSONL, JSON and CSV, with the line of every error. Only the row at hand is in memory."""

import codecs
import csv
import json
from collections.abc import Iterator
from io import BufferedReader
from typing import Any

from lora_trainer.data import rows
from lora_trainer.data.rows import Row, Selection, kind_of, too_long
from lora_trainer.errors import DatasetError

_CHUNK_BYTES = 2**20
_NO_LIST = "the file begins a list: let its name end in .json, or write one JSON object a line"


def read_text(name: str, suffix: str, file: BufferedReader, selection: Selection) -> Iterator[Row]:
    """The wanted rows of a file. A blank line of CSV is a row without values. Raises `DatasetError`."""
    if suffix == ".csv":
        return _csv(name, file, selection)
    if suffix == ".json" and file.peek(64).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"[":
        return _json(name, file, selection)
    return _json_lines(name, file, selection)


def _lines(name: str, file: BufferedReader) -> Iterator[tuple[int, bytes]]:
    # Only \n ends a line: str.splitlines() would also split at U+2028 and others that JSON allows inside strings.
    number = 0
    while line := file.readline(rows.MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > rows.MAX_ROW_BYTES:
            raise too_long(f"{name}, line {number}")
        yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def _decode(where: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _not_utf8(where, error) from error


def _not_utf8(where: str, error: UnicodeDecodeError) -> DatasetError:
    return DatasetError(f"{where}: not UTF-8 (byte 0x{error.object[error.start]:02x}); save the file as UTF-8")


def _json_lines(name: str, file: BufferedReader, selection: Selection) -> Iterator[Row]:
    is_list: bool | None = None
    for line, raw in _lines(name, file):
        data = raw.strip()
        if not data:
            continue
        if selection.finished:
            return
        is_list = data.startswith(b"[") if is_list is None else is_list
        number = selection.take()
        if number is None:
            continue
        where = f"{name}, line {line}"
        try:
            item = json.loads(_decode(where, data))
        except (ValueError, RecursionError) as error:
            remedy = _NO_LIST if is_list else "write one JSON object a line"
            raise DatasetError(f"{where}: not JSON ({_reason(error)}); {remedy}") from error
        if is_list and isinstance(item, list):
            raise DatasetError(f"{where}: a list, but each row must be an object with columns; {_NO_LIST}")
        yield _checked(Row(number, where, name, line, item), check=b"\\u" in data)


def _json(name: str, file: BufferedReader, selection: Selection) -> Iterator[Row]:
    """The objects of a list, each parsed as soon as it is read whole."""
    for position, (line, item) in enumerate(_JsonList(name, file).items(), start=1):
        number = selection.take()
        if number is not None:
            where = f"{name}, row {position} (line {line})"
            yield _checked(Row(number, where, name, position, item, "row"), check=True)
        if selection.finished:
            return


class _JsonList:
    """A list in a file of JSON: `text` is what is read and not yet parsed, `line` the number of its first line."""

    def __init__(self, name: str, file: BufferedReader) -> None:
        self._name = name
        self._file = file
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._parse = json.JSONDecoder().raw_decode
        self._text = ""
        self._line = 1
        self._ended = False

    def items(self) -> Iterator[tuple[int, Any]]:
        """Each item with the line on which it begins. Raises `DatasetError`."""
        self._expect("[")
        if self._next() == "]":
            self._expect("]")
        else:
            while True:
                yield self._item()
                if self._next() == "]":
                    self._expect("]")
                    break
                self._expect(",")
        if self._next():
            raise self._broken("Extra data", 0)

    def _item(self) -> tuple[int, Any]:
        self._next()
        while True:
            try:
                item, end = self._parse(self._text)
            except RecursionError as error:
                raise self._broken("nested too deeply", 0) from error
            except json.JSONDecodeError as error:
                # What ends within an item may go on in what is not yet read; everything else is broken for good.
                unfinished = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - 8
                if self._ended or not unfinished:
                    raise self._broken(error.msg.removesuffix(" at"), error.pos) from error
                if len(self._text) > rows.MAX_ROW_BYTES:
                    raise too_long(f"{self._name}, line {self._line}") from error
                self._read(len(self._text))
            else:
                line = self._line
                self._drop(end)
                return line, item

    def _next(self) -> str:
        """The next character that is not blank, or nothing at the end."""
        while True:
            self._drop(len(self._text) - len(self._text.lstrip(" \t\r\n")))
            if self._text or self._ended:
                return self._text[:1]
            self._read(0)

    def _expect(self, sign: str) -> None:
        if self._next() != sign:
            raise self._broken(f"Expecting '{sign}'", 0)
        self._drop(1)

    def _drop(self, count: int) -> None:
        self._line += self._text.count("\n", 0, count)
        self._text = self._text[count:]

    def _read(self, at_least: int) -> None:
        data = self._file.read(max(_CHUNK_BYTES, at_least))
        self._ended = not data
        try:
            self._text += self._utf8.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            line = self._line + self._text.count("\n") + error.object[: error.start].count(b"\n")
            raise _not_utf8(f"{self._name}, line {line}", error) from error

    def _broken(self, what: str, position: int) -> DatasetError:
        line = self._line + self._text.count("\n", 0, position)
        return DatasetError(f"{self._name}, line {line}: not JSON ({what}); repair it, or write one JSON object a line")


def _csv(name: str, file: BufferedReader, selection: Selection) -> Iterator[Row]:
    csv.field_size_limit(rows.MAX_ROW_BYTES)
    reader = csv.reader((_decode(f"{name}, line {number}", line) for number, line in _lines(name, file)), strict=True)
    try:
        header = next(reader, [])
        twice = next((column for column in header if header.count(column) > 1), None)
        if twice is not None:
            raise DatasetError(f"{name}, line 1: the header names the column '{twice}' twice; rename one of them")
        for cells in reader:
            where = f"{name}, line {reader.line_num}"
            if cells and len(cells) != len(header):
                raise DatasetError(
                    f"{where}: {len(cells)} cells, but the header has {len(header)}; quote cells with commas"
                )
            number = selection.take()
            if number is not None:
                values = dict(zip(header, cells, strict=True)) if cells else {}
                yield Row(number, where, name, reader.line_num, values)
            if selection.finished:
                return
    except csv.Error as error:
        raise DatasetError(f"{name}, line {reader.line_num}: not CSV ({error}); close every quote") from error


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        # Some of its messages end in "at" themselves.
        return f"{error.msg.removesuffix(' at')} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _checked(row: Row, *, check: bool) -> Row:
    """The row, if what was parsed is one; `check` looks at its characters, too."""
    if not isinstance(row.values, dict):
        raise DatasetError(f"{row.where}: {kind_of(row.values)}, but each row must be an object with columns")
    try:
        if check:
            json.dumps(row.values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DatasetError(
            f"{row.where}: half of a surrogate pair (\\ud800 to \\udfff) is not a character; repair it"
        ) from error
    return row
