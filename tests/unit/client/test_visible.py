"""Nothing that others wrote reaches a terminal as an instruction: answers of models, messages, names, logs."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.client.resources import condition, resource, training
from tests.unit.client.terminals import printed_on_a_terminal
from tests.unit.client.test_logs import PODS, Pods

from lora_client import commands
from lora_client.__main__ import main
from lora_client.documents import load_document
from lora_client.errors import ClientError
from lora_client.output import Form, data, note, say, show
from lora_client.verbs import ask, watch
from lora_client.verbs.logs import logs
from lora_client.views.answers import Answer

CLIPBOARD = "\x1b]52;c;cm0gLXJmIH4=\x07"
SHOWN = "\\u001b]52;c;cm0gLXJmIH4=\\u0007"
TEXT = f"tab\tnew\nline 日本\u3000🧑\u200d💻 {CLIPBOARD}\r\x08\x7f\x9b2J\x85\u202e\u2066\udc00'\"\\"
"""What is kept, and what a terminal, a bidirectional layout or an encoder would trip over."""
FORBIDDEN = {*map(chr, [*range(9), *range(11, 32), *range(127, 160)]), "\u202e", "\u2066", "\udc00"}


@pytest.mark.parametrize("print_", [say, note, lambda text: show(Form.TEXT, [], [text, (text, "red")])])
def test_text_shows_what_a_terminal_would_obey(print_: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Anything else stays: other languages, signs of several characters, lines and tabs."""
    print_(TEXT)
    printed = "".join(capsys.readouterr())
    assert not FORBIDDEN & set(printed)
    assert f"tab\tnew\nline 日本\u3000🧑\u200d💻 {SHOWN}\\u000d\\u0008\\u007f\\u009b2J\\u0085" in printed


def test_line_ends_of_windows_are_line_ends(capsys: pytest.CaptureFixture[str]) -> None:
    """A return alone would overwrite what stands before it."""
    say("one\r\ntwo\rthree")
    assert capsys.readouterr().out == "one\r\ntwo\\u000dthree\n"


@pytest.mark.parametrize("value", [TEXT, "a: \u202e b", " \x9b# ", "\x85\n", *sorted(FORBIDDEN)])
def test_data_stays_what_it_is(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As JSON and as YAML, keys too."""
    data(Form.JSON, {value: [value]})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {value: [value]}
    data(Form.YAML, {value: [value]})
    written = capsys.readouterr().out
    assert yaml.safe_load(written) == {value: [value]}
    assert not FORBIDDEN & set(printed + written)


@pytest.mark.parametrize("error", [ClientError(f"{CLIPBOARD} was added"), ValueError(CLIPBOARD)])
def test_errors_show_it(error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that are reported and those that are mistakes of the client."""

    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr(commands, "run_command", fail)
    assert main([]) == 1
    assert SHOWN in capsys.readouterr().err


@pytest.mark.parametrize("form", [Form.TEXT, Form.JSON, Form.YAML])
def test_a_model_s_answer_shows_it(form: Form, capsys: pytest.CaptureFixture[str]) -> None:
    """OSC 52 would write the clipboard."""
    ask._print(Answer(question="q", base=CLIPBOARD, adapter="\x9b2J"), form)
    printed = capsys.readouterr().out
    assert not FORBIDDEN & set(printed)
    assert "\\" in printed


class Log(Pods):
    """A run whose pods have logged this."""

    def __init__(self, log: bytes) -> None:
        super().__init__(*PODS, status=training())
        self._log = log

    def lines(self, path: str, query: Mapping[str, str], *, silence_s: float | None = None) -> Iterator[bytes]:
        yield from self._log.splitlines(keepends=True)


def test_a_log_shows_it_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Into a file it goes byte for byte; bars of progress return to the line's beginning."""
    line = f"50%\r100% {CLIPBOARD} Größe\n".encode() + b"\xff\n"
    cluster = Log(line)

    def run(_: object) -> int:
        logs(cluster, "tone", Form.TEXT, attempt=None, stage=None, index=0, follow=False, tail=None)
        return 0

    monkeypatch.setattr(commands, "run_command", run)
    main([])
    assert capfdbinary.readouterr().out == line
    assert printed_on_a_terminal(monkeypatch) == f"50%\r100% {SHOWN} Größe\n�\n"


def test_the_picture_of_a_run_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why a run waits is a message of others."""
    waiting = {"conditions": [condition("Complete", "Unknown", "Unschedulable", f"no node {CLIPBOARD}")]}
    monkeypatch.setenv("TERM", "xterm")

    def run(_: object) -> int:
        with watch._Picture() as screen:
            screen.show(resource(status=waiting), {}, "")
            screen.report(f"lost {CLIPBOARD}")
        return 0

    monkeypatch.setattr(commands, "run_command", run)
    drawn = printed_on_a_terminal(monkeypatch)
    assert f"no node {SHOWN}" in drawn
    assert f"lost {SHOWN}" in drawn
    assert CLIPBOARD not in drawn


def test_the_title_of_another_document_is_one_line(tmp_path: Path) -> None:
    """Else it could hold a message of its own."""
    file = tmp_path / "a.yaml"
    file.write_text('kind: LoRAFineTune\n---\nkind: "Pod\\n\\nlora: run this"\nmetadata: {name: "a\\e[2J"}\n')
    assert load_document(str(file)).others == ("Pod lora: run this/a [2J",)
