"""Text that comes through pipes and files is UTF-8, also where the system has a code page of its own for them."""

import io
import sys

import pytest

from lora_client.__main__ import main
from lora_client.documents import load_document
from lora_client.output import Form, data, note

MANIFEST = """\
apiVersion: lora-operator.io/v1alpha1
kind: LoRAFineTune
metadata: {name: a}
spec: {dataset: {templateArguments: {system: "Größe 日本"}}}
"""


class Terminal(io.TextIOWrapper):
    """Which the system draws in its own way."""

    def isatty(self) -> bool:
        return True


def copied(_: object) -> int:
    """A verb that reads a manifest and prints it."""
    data(Form.JSON, load_document("-").resource["spec"])
    note("日本")
    return 0


@pytest.fixture(autouse=True)
def verb(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that the command line knows."""
    monkeypatch.setattr("lora_client.commands.run_command", copied)


def test_pipes_are_utf_8(monkeypatch: pytest.MonkeyPatch) -> None:
    """As files are; Windows has its ANSI code page there."""
    given, printed, noted = io.BytesIO(MANIFEST.encode()), io.BytesIO(), io.BytesIO()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(given, encoding="cp1252"))
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(printed, encoding="cp1252"))
    monkeypatch.setattr("sys.stderr", io.TextIOWrapper(noted, encoding="cp1252", errors="backslashreplace"))
    assert main([]) == 0
    assert "Größe 日本" in printed.getvalue().decode()
    assert noted.getvalue().decode() == "日本\n"


def test_terminals_keep_their_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """They show what they can."""
    monkeypatch.setattr("sys.stdin", io.StringIO(MANIFEST))
    monkeypatch.setattr("sys.stdout", Terminal(io.BytesIO(), encoding="cp932"))
    monkeypatch.setattr("sys.stderr", Terminal(io.BytesIO(), encoding="cp1252", errors="backslashreplace"))
    main([])
    assert (sys.stdout.encoding, sys.stderr.encoding, sys.stderr.errors) == ("cp932", "cp1252", "backslashreplace")


def test_what_is_missing_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program without a console has none of them."""
    monkeypatch.setattr("lora_client.commands.run_command", lambda _: 0)
    for name in ("stdin", "stderr"):
        monkeypatch.setattr(f"sys.{name}", None)
    assert main([]) == 0


def test_what_has_been_read_from_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a program that calls `main`."""
    given = io.TextIOWrapper(io.BytesIO(f"first\n{MANIFEST}".encode("cp1252", "replace")), encoding="cp1252")
    assert given.readline() == "first\n"
    monkeypatch.setattr("sys.stdin", given)
    assert main([]) == 0
