"""Progress on the terminal: which steps run, for how long, and how long each took."""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_REDRAW_S = 0.2
_HEARTBEAT_S = 20.0


def duration(seconds: float) -> str:
    """Seconds as a person writes them: 0.4 s, 12 s, 3 min 05 s."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


@dataclass(slots=True, kw_only=True)
class Step:
    """One running step; `detail` says what it is doing right now."""

    title: str
    started_s: float
    log: Path | None = None
    note: str = ""
    next_heartbeat_s: float = 0.0

    def detail(self, text: str) -> None:
        self.note = text


@dataclass(slots=True)
class Console:
    """Steps may run at the same time, each in a thread of its own.

    On a terminal the running steps are one live line; elsewhere each gets a line at the start, at the
    end, and one every 20 s between.
    """

    stream: TextIO = field(default_factory=lambda: sys.stderr)
    clock: Callable[[], float] = time.monotonic
    _active: list[Step] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ticker: threading.Thread | None = None

    @property
    def live(self) -> bool:
        return self.stream.isatty()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        with self._lock:
            self._print(text)

    @contextlib.contextmanager
    def step(self, title: str, *, log: Path | None = None) -> Iterator[Step]:
        """Show a step while the block runs; its last line says how long it took and whether it failed."""
        step = Step(title=title, started_s=self.clock(), log=log, next_heartbeat_s=self.clock() + _HEARTBEAT_S)
        with self._lock:
            self._active.append(step)
            if not self.live:
                self._print(f"   {title} ...")
            if self._ticker is None:
                self._ticker = threading.Thread(target=self._tick, daemon=True)
                self._ticker.start()
        mark = "!!"
        try:
            yield step
            mark = "ok"
        finally:
            with self._lock:
                self._active.remove(step)
                note = f" ({step.note})" if step.note and mark == "ok" and step.log is None else ""
                self._print(f"{mark} {title}{note}  {duration(self.clock() - step.started_s)}")

    def _tick(self) -> None:
        while True:
            with self._lock:
                if not self._active:
                    self._ticker = None
                    return
                now = self.clock()
                if self.live:
                    self._draw(now)
                else:
                    self._beat(now)
            time.sleep(_REDRAW_S)

    def _draw(self, now: float) -> None:
        texts = [f"{s.title} {duration(now - s.started_s)}{': ' + _note(s) if _note(s) else ''}" for s in self._active]
        width = shutil.get_terminal_size().columns - 1
        self.stream.write("\r\033[K" + f".. {' | '.join(texts)}"[:width])
        self.stream.flush()

    def _beat(self, now: float) -> None:
        for step in self._active:
            if now >= step.next_heartbeat_s:
                step.next_heartbeat_s = now + _HEARTBEAT_S
                note = _note(step)
                self._print(f"   {step.title}: {duration(now - step.started_s)} so far{', ' + note if note else ''}")

    def _print(self, text: str) -> None:
        self.stream.write(("\r\033[K" if self.live else "") + text + "\n")
        self.stream.flush()


def _note(step: Step) -> str:
    if step.note or step.log is None:
        return step.note
    try:
        with step.log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 400))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")[:100]
