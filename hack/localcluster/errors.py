"""The one exception of this package that is meant for a person's eyes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class ClusterError(Exception):
    """One sentence: what failed and what to do; `log` is the file whose last lines explain it."""

    def __init__(self, sentence: str, *, log: Path | None = None) -> None:
        super().__init__(sentence)
        self.log = log

    def explained(self) -> str:
        """The sentence, and below it the end of the log that explains it."""
        text = "" if self.log is None else tail(self.log)
        return f"{self}\n--- the end of {self.log}:\n{text}" if text else str(self)


def tail(path: Path, lines: int = 20) -> str:
    """The last lines of a log file, or an empty string if there is none."""
    try:
        text = path.read_bytes()[-65536:].decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
