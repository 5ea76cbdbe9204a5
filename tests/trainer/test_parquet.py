"""Parquet to rows: nested values as Python's, batches, and the sentence for each way a file can be broken."""

import base64
import datetime
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest

from lora_trainer.data import rows
from lora_trainer.data.parquet import python_values, read_parquet
from lora_trainer.data.readers import read_rows
from lora_trainer.data.rows import Selection
from lora_trainer.errors import DatasetError, explain
from lora_trainer.spec.exit_codes import ExitCode
from lora_trainer.spec.reasons import Reason

CALL = {"function": {"name": "weather", "arguments": {"city": "Bern"}}}
CHATS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": "Wie ist das Wetter? \u2028 ☀"},
            {"role": "assistant", "content": "Gut."},
        ]
    },
    {"messages": [{"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "21 °C"}]},
    {"messages": []},
]


def write(path: Path, values: list[dict[str, Any]], **options: Any) -> Path:
    """A Parquet file of rows."""
    pq.write_table(pa.Table.from_pylist(values), path, **options)
    return path


def read(path: Path, **options: Any) -> list[dict[str, Any]]:
    """The values of all rows."""
    return [dict(row.values) for row in read_rows([(path.name, path)], **options)]


def test_conversations_come_back_without_the_empty_fields_of_the_columns_type(tmp_path: Path) -> None:
    """All structs of a column have the same fields, so that a user's turn has tool calls that are null."""
    assert read(write(tmp_path / "a.parquet", CHATS)) == CHATS


@pytest.mark.parametrize(
    "values",
    [
        ["a", None, "ü"],
        [["a"], None, [], ["b", None]],
        [{"x": 1}, None, {"x": 2}],
        [[{"x": ["a"]}], [], [{"x": []}, {"x": ["b", "c"]}]],
        [1, 2.5, None],
        [datetime.date(2026, 1, 2), None],
    ],
)
def test_values_are_what_arrow_says_they_are(values: list[Any]) -> None:
    """Whole, cut out of a larger array, and by numbers."""
    array = pa.array(values)
    assert python_values(array) == array.to_pylist()
    assert python_values(array[1:]) == array[1:].to_pylist()
    assert python_values(array.take(pa.array([1, 0]))) == array.take(pa.array([1, 0])).to_pylist()
    if isinstance(values[0], str):
        assert python_values(array.dictionary_encode()) == values
        assert python_values(array.cast(pa.large_string())) == values


def test_rows_are_counted_over_all_files_and_only_the_wanted_ones_are_made(tmp_path: Path) -> None:
    """In batches smaller than a file, next to a file of text."""
    first = write(tmp_path / "a.parquet", [{"text": f"a{i}", "more": i} for i in range(5)], row_group_size=2)
    second = tmp_path / "b.jsonl"
    second.write_text('{"text": "b0"}\n\n{"text": "b1"}\nbroken\n', encoding="utf-8")
    files = [(path.name, path) for path in (first, second)]
    wanted = np.array([False, True, False, False, True, False, True, False])
    found = list(read_rows(files, wanted=wanted, columns={"text"}, batch_rows=2))
    assert [(row.number, row.where, dict(row.values)) for row in found] == [
        (1, "a.parquet, row 2", {"text": "a1"}),
        (4, "a.parquet, row 5", {"text": "a4"}),
        (6, "b.jsonl, line 3", {"text": "b1"}),
    ]


class _Keys(pe.KmsClient):  # type: ignore[misc]  # pyarrow has no annotations
    """Wraps keys by doing nothing."""

    def wrap_key(self, key_bytes: bytes, _master: str) -> bytes:
        """The key itself."""
        return base64.b64encode(key_bytes)

    def unwrap_key(self, wrapped: bytes, _master: str) -> bytes:
        """The key itself."""
        return base64.b64decode(wrapped)


def _encrypted(path: Path) -> None:
    table = pa.Table.from_pylist([{"text": "secret"}])
    settings = pe.EncryptionConfiguration(footer_key="k", column_keys={"k": ["text"]})
    connection = pe.KmsConnectionConfig()
    properties = pe.CryptoFactory(lambda _: _Keys()).file_encryption_properties(connection, settings)
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)


def _cut_off(path: Path) -> None:
    write(path, CHATS)
    path.write_bytes(path.read_bytes()[:-100])


def _damaged(path: Path) -> None:
    write(path, [{"text": f"{i}" * 50} for i in range(100)], compression="zstd", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[100:300] = bytes(200)
    path.write_bytes(data)


def _latin(path: Path) -> None:
    binary = pa.array([b"x", "Gr\u00fc\u00dfe".encode("latin-1"), b"y"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, binary.buffers())
    pq.write_table(pa.table({"text": text}), path)


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        (lambda path: path.write_bytes(b"text\n1\n"), "a.parquet: cannot be read as Parquet ("),
        (lambda path: path.write_bytes(b""), "a.parquet: cannot be read as Parquet ("),
        (_cut_off, "a.parquet: cannot be read as Parquet ("),
        (_damaged, "a.parquet: cannot be read as Parquet ("),
        (_encrypted, "a.parquet: the file is encrypted ("),
        (_latin, "a.parquet, row 2: field 'text' is not UTF-8"),
    ],
)
def test_a_broken_file_is_reported(tmp_path: Path, prepare: Callable[[Path], object], sentence: str) -> None:
    """The file, what is wrong, and what to do, in one line."""
    path = tmp_path / "a.parquet"
    prepare(path)
    with pytest.raises(DatasetError) as caught:
        read(path)
    assert str(caught.value).startswith(sentence)
    assert "; " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_giant_row_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not the batch that it is in."""
    monkeypatch.setattr(rows, "MAX_ROW_BYTES", 1000)
    path = write(tmp_path / "a.parquet", [{"text": "x" * 300}] * 6)
    assert len(read(path)) == 6
    write(path, [{"text": "x"}, {"text": "x" * 2000}])
    with pytest.raises(DatasetError, match=r"a\.parquet, row 2: the row has more than .* split it"):
        read(path)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_a_volume_that_fails_is_no_bad_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Bad data is final, and hours of training would be lost to a file server that failed once."""

    def failing(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(pq, "ParquetFile", failing)
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        next(read_parquet("a.parquet", tmp_path / "a.parquet", Selection(), None, 1))
    known = explain(caught.value)
    assert (known.code, known.reason) == (ExitCode.STORAGE, Reason.STORAGE_ERROR)
    assert "look at the claim and its storage" in str(known)
