"""Files to rows, and the sentence for each way a file can be broken."""

import json
from pathlib import Path

import pytest

from lora_trainer import rows
from lora_trainer.errors import DatasetError
from lora_trainer.readers import fingerprint, read_rows

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
        ("a.jsonl", b"[" * 100_000, "a.jsonl, line 1: not JSON (nested too deeply)"),
        ("a.json", b'[{"a": 1},\n{"a": }]', "a.json, line 2: not JSON"),
        ("a.json", b'[{"a": 1}, 3]', "a.json, row 2 (line 1): a int, but each row must be an object"),
        ("a.csv", b"a,b\n1\n", "a.csv, line 2: 1 cells, but the header has 2"),
        ("a.csv", b'a,b\n"1,2\n', "a.csv, line 2: not CSV"),
        ("a.csv", b"a\n\xe9\n", "a.csv, line 2: not UTF-8 (byte 0xe9)"),
    ],
)
def test_a_broken_file_is_told_with_file_and_line(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
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
