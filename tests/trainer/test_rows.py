"""Files to rows, and the sentence for each way a file can be broken."""

import gzip
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lora_trainer.data import rows, text_files
from lora_trainer.data.readers import fingerprint, read_rows
from lora_trainer.errors import DatasetError

GOOD = {"text": "Grüße\u2028 neu"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", json.dumps(GOOD, ensure_ascii=False) + "\n\n" + json.dumps(GOOD)),
        ("a.ndjson", json.dumps(GOOD) + "\r\n" + json.dumps(GOOD) + "\r\n"),
        ("a.json", json.dumps([GOOD, GOOD])),
        ("a.json", json.dumps(GOOD) + "\n" + json.dumps(GOOD)),
        ("a.csv", "text\nGrüße\u2028 neu\n\n" + '"Grüße\u2028 neu"\n'),
        ("a.csv", "\ufefftext\nGrüße\u2028 neu\nGrüße\u2028 neu\n"),
        ("a.jsonl", "\ufeff" + json.dumps(GOOD) + "\n" + json.dumps(GOOD)),
    ],
)
def test_every_file_format_gives_the_same_rows(tmp_path: Path, name: str, content: str) -> None:
    """JSON lines with blank lines, line ends of Windows and byte order marks, JSON lists, CSV with quotes."""
    path = tmp_path / name
    path.write_bytes(content.encode())
    found = [row for row in read_rows([(name, path)]) if row.values]
    assert [dict(row.values) for row in found] == [GOOD, GOOD]


def compressed(content: bytes, ending: str) -> bytes:
    """In two members one behind the other, as parallel compressors and `cat` leave them."""
    pieces = [content[: len(content) // 2], content[len(content) // 2 :]]
    if ending == ".gz":
        # Tests are named by their bytes, which must be the same in every worker.
        return b"".join(gzip.compress(piece, mtime=0) for piece in pieces)
    frames = []
    for piece in pieces:
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(piece)
        frames.append(sink.getvalue().to_pybytes())
    return b"".join(frames)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", "\ufeff" + json.dumps(GOOD) + "\n" + json.dumps(GOOD)),
        ("a.ndjson", json.dumps(GOOD) + "\n" + json.dumps(GOOD)),
        ("a.json", json.dumps([GOOD, GOOD])),
        ("a.csv", "text\nGrüße\u2028 neu\nGrüße\u2028 neu\n"),
    ],
)
def test_compressed_text_gives_the_same_rows(tmp_path: Path, name: str, content: str, ending: str) -> None:
    """Whatever the format, and wherever the compressed pieces begin."""
    path = tmp_path / f"{name}{ending}"
    path.write_bytes(compressed(content.encode(), ending))
    assert [dict(row.values) for row in read_rows([(path.name, path)])] == [GOOD, GOOD]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_an_error_in_compressed_text_has_the_line_of_the_text(tmp_path: Path, ending: str) -> None:
    """As if it had not been compressed."""
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(compressed(b'{"a": 1}\n{"a": 2\n', ending))
    with pytest.raises(DatasetError, match=rf"^a\.jsonl{ending}, line 2: not JSON"):
        list(read_rows([(path.name, path)]))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "a.jsonl.gz",
            compressed(b'{"a": 1}\n' * 9, ".gz")[:-5],
            "a.jsonl.gz: cut off, damaged or no gzip (C",
        ),
        ("a.jsonl.gz", b'{"a": 1}\n', "a.jsonl.gz: cut off, damaged or no gzip (Not a gzipped file"),
        ("a.csv.gz", gzip.compress(b"a\n1\n" * 99, mtime=0)[:25] + b"x" * 30, "a.csv.gz: cut off, damaged or no gzip"),
        (
            "a.jsonl.zst",
            compressed(b'{"a": 1}\n' * 9, ".zst")[:-5],
            "a.jsonl.zst: cut off, damaged or no zstd (T",
        ),
        ("a.jsonl.zst", b'{"a": 1}\n', "a.jsonl.zst: cut off, damaged or no zstd (ZSTD"),
        (
            "a.jsonl.gz",
            compressed(compressed(b'{"a": 1}', ".gz"), ".gz"),
            "a.jsonl.gz: the file is gzip and not text; compress it once",
        ),
        ("a.jsonl", compressed(b'{"a": 1}', ".gz"), "a.jsonl: the file is gzip and not text; name it a.jsonl.gz"),
        ("a.csv", compressed(b"a\n1", ".zst"), "a.csv: the file is zstd and not text; name it a.csv.zst"),
        ("a.json", b"PK\x03\x04rest", "a.json: the file is a ZIP archive and not text; unpack it"),
        ("a.jsonl", b"PAR1\x15rest", "a.jsonl: the file is Parquet and not text; let its name end in .parquet"),
    ],
)
def test_what_is_no_whole_text_is_reported_with_what_it_is(
    tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    """An archive that was cut off, and one that has the name of another kind of file."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        list(read_rows([(name, path)]))
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_bomb_ends_at_the_longest_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    """A few kilobytes of 64 MiB without an end of line are refused without being unpacked whole."""
    monkeypatch.setattr(rows, "MAX_ROW_BYTES", 2**20)
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(compressed(b" " * 2**26, ending))
    tracemalloc.start()
    try:
        with pytest.raises(DatasetError, match=r"line 1: the row has more than 1 MiB; split it"):
            list(read_rows([(path.name, path)]))
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('[{"a": 1},\n{"a": 2}]', "a.jsonl, line 1: not JSON"),
        ("[\n", "a.jsonl, line 1: not JSON"),
        ('[{"a": 1}, {"a": 2}]\n', "a.jsonl, line 1: a list, but each row must be an object with columns"),
    ],
)
def test_a_list_among_lines_is_reported_with_the_name_it_should_have(
    tmp_path: Path, content: str, sentence: str
) -> None:
    """On one line or on several."""
    path = tmp_path / "a.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DatasetError) as caught:
        list(read_rows([("a.jsonl", path)]))
    assert str(caught.value).startswith(sentence)
    assert "the file begins a list: let its name end in .json" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": 2\n', "a.jsonl, line 2: not JSON (Expecting ',' delimiter at column 8)"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', "a.jsonl, line 2: a list, but each row must be an object"),
        ("a.jsonl", b'{"a": "x"}\n{"a": "\xff"}\n', "a.jsonl, line 2: not UTF-8 (byte 0xff)"),
        ("a.jsonl", b'{"a": "\\ud800"}\n', "a.jsonl, line 1: half of a surrogate pair"),
        ("a.jsonl", b'{"a": "\t"}\n', "a.jsonl, line 1: not JSON (Invalid control character at column 8)"),
        ("a.json", b'[{"a": "\t"}]', "a.json, line 1: not JSON (Invalid control character)"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl, line 1: not JSON (nested too deeply)"),
        ("a.json", b'[{"a": 1},\n{"a": }]', "a.json, line 2: not JSON"),
        ("a.json", b'[{"a": 1}, 3]', "a.json, row 2 (line 1): a number, but each row must be an object"),
        ("a.csv", b"a,b\n1\n", "a.csv, line 2: 1 cells, but the header has 2"),
        ("a.csv", b'a,b\n"1,2\n', "a.csv, line 2: not CSV"),
        ("a.csv", b"a\n\xe9\n", "a.csv, line 2: not UTF-8 (byte 0xe9)"),
        ("a.csv", b"a,b,a\n1,2,3\n", "a.csv, line 1: the header names the column 'a' twice"),
        ("a.json", b'[{"a": 1},\n\n{"a": "\xff"}]', "a.json, line 3: not UTF-8 (byte 0xff)"),
        ("a.json", b'[{"a": 1}\n{"a": 2}]', "a.json, line 2: not JSON (Expecting ',')"),
        ("a.json", b'[{"a": 1},\n{"a": "x', "a.json, line 2: not JSON (Unterminated string"),
        ("a.json", b'[{"a": 1}', "a.json, line 1: not JSON (Expecting ',')"),
        ("a.json", b'[{"a": 1},\n', "a.json, line 2: not JSON (Expecting value)"),
        ("a.json", b'[{"a": 1}]\n[]', "a.json, line 2: not JSON (Extra data)"),
        ("a.json", b"[" * 100_000, "a.json, line 1: not JSON (nested too deeply)"),
        ("a.json", b'[{"a": "\\ud800"}]', "a.json, row 1 (line 1): half of a surrogate pair"),
    ],
)
def test_a_broken_file_is_reported_with_file_and_line(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    """One sentence that a person can act on."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        list(read_rows([(name, path)]))
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_a_giant_row_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is one endless line must not fill the memory of the tokenizer."""
    monkeypatch.setattr(rows, "MAX_ROW_BYTES", 100)
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": "' + "x" * 200 + '"}\n', encoding="utf-8")
    with pytest.raises(DatasetError, match=r"a\.jsonl, line 2: the row has more than .* split it"):
        list(read_rows([("a.jsonl", path)]))


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_a_list_may_be_cut_anywhere_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """Within a character, an escape, a number, a word: each object is parsed once it is whole."""
    monkeypatch.setattr(text_files, "_CHUNK_BYTES", chunk)
    items = [{"a": 'Grüße \u2028 ☀ \\ "', "b": [1.5e3, None, True, {"c": "\U0001f600"}]}, {}, {"a": ""}]
    path = tmp_path / "a.json"
    for text in (json.dumps(items), json.dumps(items, ensure_ascii=False, indent=1)):
        path.write_text(f"\ufeff {text} \n", encoding="utf-8")
        assert [row.values for row in read_rows([("a.json", path)])] == items


def test_a_giant_object_of_a_list_is_refused_before_it_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list need not fit into memory; an object of it must."""
    monkeypatch.setattr(text_files, "_CHUNK_BYTES", 64)
    monkeypatch.setattr(rows, "MAX_ROW_BYTES", 1000)
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"a": "x" * 400}] * 20), encoding="utf-8")
    assert len(list(read_rows([("a.json", path)]))) == 20
    path.write_text(json.dumps([{"a": 1}, {"a": "x" * 5000}]), encoding="utf-8")
    with pytest.raises(DatasetError, match=r"a\.json, line 1: the row has more than .* split it"):
        list(read_rows([("a.json", path)]))


def test_a_quote_that_is_never_closed_does_not_swallow_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cell is refused once it is as long as a row may be."""
    monkeypatch.setattr(rows, "MAX_ROW_BYTES", 100)
    path = tmp_path / "a.csv"
    path.write_text('a,b\n1,"2\n' + "3,4\n" * 50, encoding="utf-8")
    with pytest.raises(DatasetError, match=r"a\.csv, line \d+: not CSV \(field larger .* close every quote"):
        list(read_rows([("a.csv", path)]))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"a": 0}\n\nbroken\n{"a": 2}\nbroken\n'),
        ("a.json", '[{"a": 0}, {"a": 1}, {"a": 2}, broken]'),
        ("a.csv", 'a\n0\n1\n2\n"broken\n'),
    ],
)
def test_rows_that_are_not_wanted_are_passed_over(tmp_path: Path, name: str, content: str) -> None:
    """They are counted and, in JSONL, not parsed; nothing is read after the last that is wanted."""
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    found = list(read_rows([(name, path)], wanted=np.array([True, False, True, False])))
    assert [(row.number, int(row.values["a"])) for row in found] == [(0, 0), (2, 2)]


def test_the_fingerprint_follows_the_bytes(tmp_path: Path) -> None:
    """Equal bytes give equal fingerprints, a changed byte another one."""
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text('{"a": 1}', encoding="utf-8")
    second.write_text('{"a": 1}', encoding="utf-8")
    before = fingerprint([("a.jsonl", first)])
    assert before == fingerprint([("b.jsonl", second)])
    assert before.startswith("sha256:")
    second.write_text('{"a": 2}', encoding="utf-8")
    assert before != fingerprint([("b.jsonl", second)])
    assert fingerprint([("a", first)], [("b", second)]) != fingerprint([("a", first), ("b", second)], [])
