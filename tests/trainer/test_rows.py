"""Files to rows, and the sentence for each way a file can be broken."""

import json
from pathlib import Path

import numpy as np
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
@pytest.mark.fault("C5.sentence")
def test_a_broken_file_is_reported_with_file_and_line(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    """One sentence that a person can act on."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        list(read_rows([(name, path)]))
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


@pytest.mark.fault("C5.sentence")
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
