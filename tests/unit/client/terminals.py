"""A terminal that the client prints on, for tests."""

import os
import pty

import pytest

from lora_client.__main__ import main


def printed_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, *arguments: str, status: int = 0, encoding: str = "utf-8"
) -> str:
    """What the command prints there, whose exit status is to be this."""
    ours, theirs = pty.openpty()
    with open(theirs, "w", encoding=encoding) as terminal, monkeypatch.context() as patch:  # noqa: PTH123 - by its number
        patch.setattr("sys.stdout", terminal)
        assert main(arguments) == status
    printed = b""
    try:
        while data := os.read(ours, 65536):
            printed += data
    except OSError:  # so Linux says that the other side is closed
        pass
    os.close(ours)
    return printed.decode(encoding).replace("\r\n", "\n")
