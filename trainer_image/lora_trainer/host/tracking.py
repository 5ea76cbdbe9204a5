"""A run's curve to a tracker of experiments, by a process of its own that follows `metrics.jsonl`.

The file is the queue. A tracker that is missing, refuses, hangs or dies can thus neither fail a run nor slow it: nobody
waits for it but for a few seconds at the end. What it did not take is sent again, as long as the run goes on.
"""

import argparse
import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lora_trainer.distributed import logs
from lora_trainer.errors import discreet
from lora_trainer.host.trackers import SECRETS, STATE, Backend, State, UnusableError, open_backend
from lora_trainer.spec.config import Tracker, TrainConfig
from lora_trainer.storage.curve_records import METRICS, Record, parse

log = logging.getLogger(__name__)

POLL_S = 2.0
RETRY_S = 30.0
FLUSH_S = 10.0
"""How long a run waits at its end for its tracker."""


@contextlib.contextmanager
def tracked(
    config: TrainConfig,
    config_file: Path,
    folder: Path,
    environment: Mapping[str, str],
    flush_s: float = FLUSH_S,
) -> Iterator[None]:
    """Have the tracker of the run, if it has one, follow the `metrics.jsonl` in `folder`."""
    if config.tracking.kind is Tracker.NONE:
        yield
        return
    command = [sys.executable, "-P", "-m", "lora_trainer.host.tracking", str(config_file), str(folder)]
    # What was read from a file often ends with a newline, for which the client refuses the header, and quotes it.
    given = {name: value.strip() if name in SECRETS else value for name, value in {**os.environ, **environment}.items()}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True, env=given)
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    finally:
        _end(process, status, flush_s, config.tracking.kind)


def _end(process: "subprocess.Popen[str]", status: str, flush_s: float, kind: Tracker) -> None:
    try:
        process.communicate(status, timeout=flush_s)
    except subprocess.TimeoutExpired:
        text = "%s did not take the end of the curve within %.0f s: the run continues without it"
        log.warning(text, kind.value, flush_s)
    # Its helpers, too: W&B's client starts a process of its own.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Follow a run's curve until standard input ends, with the status of the run as its only text."""
    parser = argparse.ArgumentParser(prog="lora_trainer.host.tracking")
    parser.add_argument("config", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    with logs.inherited(os.environ, logging.INFO):
        config = TrainConfig.from_json(options.config.read_text(encoding="utf-8"))
        follower = Follower(
            kind=config.tracking.kind,
            metrics=options.folder / METRICS,
            state_file=options.folder / STATE,
            opened=lambda state: open_backend(config, options.folder, state, os.environ),
        )
        status = _wait_for_end(follower.turn)
        follower.end(status or "KILLED")
    # Not by the way of other exits: clients of trackers wait in their handlers for servers that are away.
    sys.stderr.flush()
    os._exit(0)


def _wait_for_end(turn: Callable[[], None]) -> str:
    text = b""
    while True:
        readable, _, _ = select.select([0], [], [], POLL_S)
        if readable:
            data = os.read(0, 4096)
            if not data:
                return text.decode()
            text += data
        else:
            turn()


@dataclass(slots=True, kw_only=True)
class Follower:
    """Sends the lines of a growing file. `opened` makes the connection, or raises; `clock` is in seconds."""

    kind: Tracker
    metrics: Path
    state_file: Path
    opened: Callable[[State], Backend]
    clock: Callable[[], float] = time.monotonic
    backend: Backend | None = None
    state: State | None = None
    failed_at_s: float | None = None
    warned: bool = False
    unusable: bool = False
    position: tuple[int, int] = (0, 0)

    def turn(self) -> None:
        """Send what is new. After a failure only every half a minute, with one warning in all."""
        waiting = self.failed_at_s is not None and self.clock() - self.failed_at_s < RETRY_S
        if not self.unusable and not waiting:
            self._guarded(self._send)

    def end(self, status: str) -> None:
        """Send the rest and close the run at the tracker."""
        if self.unusable:
            return

        def last() -> None:
            backend = self._send()
            backend.finish(status)
            log.info("%s has the curve: %s", self.kind.value, backend.where)

        self._guarded(last)

    def _guarded(self, action: Callable[[], object]) -> None:
        try:
            action()
            self.failed_at_s = None
        except Exception as error:
            self.unusable = isinstance(error, UnusableError)
            self.failed_at_s = self.clock()
            if not self.warned:
                self.warned = True
                text = "tracking.kind is %s: %s; the run continues without it"
                log.warning(text, self.kind.value, without_secrets(error))

    def _send(self) -> Backend:
        state = self.state = self.state or _read_state(self.state_file)
        if self.backend is None:
            self.backend = self.opened(state)
        records, position = self._read()
        # Steps that another attempt takes again have the values that they had.
        new = [record for record in records if state.is_new(record)]
        if new:
            self.backend.log(new)
            for record in new:
                state.sent(record)
        self.position = position
        self.state_file.write_text(json.dumps(state.document()), encoding="utf-8")
        return self.backend

    def _read(self) -> tuple[list[Record], tuple[int, int]]:
        """Records since the last time, or all where the file was replaced; and its number with the place to go on."""
        if not self.metrics.is_file():
            return [], self.position
        with self.metrics.open("rb") as stream:
            status = os.fstat(stream.fileno())
            known, offset = self.position
            if status.st_ino != known or status.st_size < offset:
                offset = 0
            stream.seek(offset)
            # A line without its end is still being written.
            text = stream.read().rpartition(b"\n")[0]
        lines = text.decode(errors="replace").splitlines()
        records = [record for record in map(parse, lines) if record is not None]
        return records, (status.st_ino, offset + len(text) + bool(text))


def _read_state(path: Path) -> State:
    try:
        return State(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return State()


def without_secrets(error: Exception) -> str:
    """The sentence of an error of a tracker's client, which may quote an address with a password, or a key."""
    text = " ".join(str(error).split())
    password = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", "")).password or ""
    secrets = [*(os.environ.get(name, "").strip() for name in SECRETS), password, unquote(password)]
    # As it is, as a sentence has its blanks, and as Python quotes it.
    forms = {form for secret in secrets for form in (secret, " ".join(secret.split()), repr(secret)[1:-1])} - {""}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, "…")
    return f"{type(error).__name__}: {discreet(text)}".removesuffix(": ")[:400]


if __name__ == "__main__":
    sys.exit(main())
