"""A log with a live line below it, on terminals. Elsewhere the log alone.

Everything that this process and those that it starts print there goes through a pipe to one thread, which alone draws:
so no line of the log meets the live one, whoever writes it.
"""

import contextlib
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TextIO

from lora_trainer.distributed.activity import heard_by
from lora_trainer.host.screen import Line, Screen
from lora_trainer.host.view import LiveView, View

TICK_S, REDRAW_S = 0.1, 1.0
"""How soon a change is drawn, and how often the time that passes is."""
DRAIN_S = 2.0
"""How long is waited at the end for a terminal that takes nothing."""
_STDOUT, _STDERR = 1, 2


def is_live(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Whether a line can be drawn there again and again: on a terminal, unless it has to be plain.

    `NO_COLOR` asks for plain text (no-color.org); TERM is `dumb` or absent where the cursor cannot go back.
    """
    return stream.isatty() and environment.get("TERM", "") not in ("", "dumb") and not environment.get("NO_COLOR")


@contextlib.contextmanager
def shown(*, live: bool) -> Iterator[View]:
    """The view of what this process does in the meantime, and of what others report to it."""
    if not live:
        yield View()
        return
    view = LiveView()
    with _captured(lambda: view.line), heard_by(view.hear):
        yield view


@contextlib.contextmanager
def _captured(line: Callable[[], Line | None]) -> Iterator[None]:
    """Have all that is printed to the terminal drawn by a thread, together with the live line."""
    read_end, write_end = os.pipe()
    kept = {number: os.dup(number) for number in (_STDOUT, _STDERR) if os.isatty(number)}
    ended = threading.Event()
    terminal = os.fdopen(os.dup(_STDERR), "w", encoding=sys.stderr.encoding, errors="backslashreplace")
    arguments = (read_end, terminal, line, ended)
    drawing = threading.Thread(target=_draw, args=arguments, name="live", daemon=True)
    _flush()
    for number in kept:
        os.dup2(write_end, number)
    os.close(write_end)
    drawing.start()
    try:
        yield
    finally:
        _flush()
        for number, before in kept.items():
            os.dup2(before, number)
            os.close(before)
        ended.set()
        drawing.join(DRAIN_S)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def _draw(read_end: int, terminal: TextIO, line: Callable[[], Line | None], ended: threading.Event) -> None:
    """Until all who write into the pipe have closed it, or this process has and nobody else writes anything more."""
    drawing = _Drawing(terminal)
    rest = b""
    while True:
        readable = select.select([read_end], [], [], TICK_S)[0]
        if readable:
            data = os.read(read_end, 2**16)
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            drawing.write(b"".join(whole + b"\n" for whole in lines))
        elif ended.is_set():
            break
        drawing.show(line())
    drawing.write(rest and rest + b"\n")
    drawing.close()
    os.close(read_end)
    with contextlib.suppress(OSError):
        terminal.close()


class _Drawing:
    """A screen that is drawn no more often than is of use, and no more at all once the terminal is gone."""

    def __init__(self, terminal: TextIO) -> None:
        self._terminal: TextIO | None = terminal
        self._screen: Screen | None = None
        self._shown: Line | None = None
        self._drawn_at_s = 0.0

    def write(self, text: bytes) -> None:
        if text:
            self._try(lambda screen: screen.write(text.decode(errors="replace")))

    def show(self, line: Line | None) -> None:
        since_s = time.monotonic() - self._drawn_at_s
        if line is not None and since_s >= (REDRAW_S if line == self._shown else TICK_S):
            self._shown, self._drawn_at_s = line, time.monotonic()
            self._try(lambda screen: screen.show(line))

    def close(self) -> None:
        self._try(lambda screen: screen.close())

    def _try(self, draw: Callable[[Screen], None]) -> None:
        if self._terminal is None:
            return
        try:
            self._screen = self._screen or Screen(self._terminal)
            draw(self._screen)
        except Exception:
            # The terminal was closed, or tqdm failed, as variables of its own may make it. The pipe is read on, since
            # nobody who writes into it may have to wait.
            self._terminal = None
