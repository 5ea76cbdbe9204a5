"""A live line at the foot of a terminal, drawn with tqdm."""

import os
import threading
from dataclasses import dataclass
from typing import Any, TextIO

_ECHO = len("^C")
"""What a terminal puts behind the live line where Ctrl-C is pressed; without room for it, that begins another row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What goes on: `done` of `total` things, either None where it is not known, and more `facts`, the important first.

    A terminal that is too narrow loses the bar and then the last facts.
    """

    what: str
    done: int | None = None
    total: int | None = None
    facts: str = ""


class Screen:
    """Draws on a terminal. One thread alone may use it, and nobody else may write there."""

    def __init__(self, terminal: TextIO) -> None:
        from tqdm import tqdm  # noqa: PLC0415 - pods do without

        # No thread that redraws bars which stand still, and no lock between processes.
        tqdm.monitor_interval = 0
        tqdm.set_lock(threading.RLock())
        self._tqdm: Any = tqdm
        self._terminal = terminal
        self._bar: Any = None
        self._line = Line(what="")

    def write(self, text: str) -> None:
        """Whole lines, above the live one."""
        self._wipe()
        self._tqdm.write(text, file=self._terminal, end="")
        self._terminal.flush()

    def show(self, line: Line) -> None:
        """Draw the live line anew."""
        if self._bar is None or (line.what, line.total) != (self._line.what, self._line.total):
            self.close()
            self._bar = self._new_bar(line)
        else:
            self._bar.n = line.done or 0
            self._bar.ncols = self._columns() - _ECHO
            self._bar.bar_format = _format(line)
            self._bar.set_postfix_str(line.facts)
        self._line = line

    def _new_bar(self, line: Line) -> Any:
        """It is drawn at once."""
        return self._tqdm(
            desc=line.what,
            total=line.total,
            initial=line.done or 0,
            postfix=line.facts,
            bar_format=_format(line),
            file=self._terminal,
            leave=False,
            ncols=self._columns() - _ECHO,
        )

    def close(self) -> None:
        """Take the live line away."""
        if self._bar is not None:
            self._bar.close()
            self._wipe()
        self._bar = None

    def _wipe(self) -> None:
        """Remove the live line and what was put behind it."""
        if self._bar is not None:
            self._terminal.write(f"\r{' ' * self._columns()}\r")

    def _columns(self) -> int:
        """How many may be used: one less than there are, since some terminals begin a row once the last one is."""
        return max(_ECHO + 2, os.get_terminal_size(self._terminal.fileno()).columns - 1)


def _format(line: Line) -> str:
    if line.total is not None:
        return "{desc} {n_fmt}/{total_fmt}{postfix} {percentage:3.0f}%|{bar}|"
    return "{desc} [{elapsed}]{postfix}" if line.done is None else "{desc} {n_fmt} [{elapsed}]{postfix}"
