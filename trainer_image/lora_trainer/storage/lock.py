"""One holder at a time, also on a network file system and across nodes: of a run's folder, of what is fetched or
computed once for all, of a temporary folder.

The lock of a folder is a file `lock-<generation>` in it that its holder rewrites every few seconds. Who wants it
creates the next generation with a hard link, which fails where another was faster (atomic on NFS too; where there are
no hard links, as a file that must not exist yet), and only then removes the one before. A released lock stays as a file
that says so: generations only grow, and a holder that was given up as dead and comes back finds its file gone.

A lock counts as dead where its file stood still for a while, by the file server's own clock and while we looked on, so
that no node's wrong clock and no hanging file server makes two holders. A holder whose process is gone from our own
process table is dead at once.
"""

import contextlib
import errno
import json
import logging
import math
import os
import re
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic

from lora_trainer.errors import TransientError
from lora_trainer.spec.reasons import Reason

log = logging.getLogger(__name__)

BEAT_S = 5.0
"""Between two signs of life."""
STALE_S = 60.0
"""Without one until a holder counts as dead: on NFS a reader may see attributes that are so old of a file that it does
not open."""
POLL_S = 1.0

_NAME = re.compile(r"lock-(\d{8})")
_SIZE = 1024
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
"""What file systems without hard links answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Holder:
    """`machine` distinguishes process tables: boot and process namespace; `born` two processes of one id; `token` two
    locks of one process."""

    host: str
    machine: str
    pid: int
    born: str
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def is_gone(self) -> bool:
        """Whether the process can be seen to have ended; False also where it cannot be seen from here."""
        return self.machine != "" and self.machine == _machine() and _born(self.pid) != self.born


def _this_process() -> _Holder:
    pid = os.getpid()
    return _Holder(
        host=socket.gethostname(), machine=_machine(), pid=pid, born=_born(pid) or "", token=secrets.token_hex(8)
    )


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _born(pid: int) -> str | None:
    """Start of a process in ticks since boot, None where there is none (field 22 of proc(5)'s stat)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """A lock's file as it stands; a holder of None cannot be read (created, not yet written)."""

    content: bytes
    modified_s: float

    @property
    def released(self) -> bool:
        return b'"released": true' in self.content

    @property
    def holder(self) -> _Holder | None:
        try:
            document = json.loads(self.content)
            return _Holder(**{name: document[name] for name in _Holder.__slots__})
        except (ValueError, KeyError, TypeError):
            return None

    @property
    def is_over(self) -> bool:
        return self.released or (self.holder is not None and self.holder.is_gone())


class Lock:
    """A lock that is held. `check` before every write."""

    def __init__(
        self, path: Path, holder: _Holder, what: str, reason: Reason | None, on_lost: Callable[[], None]
    ) -> None:
        self._path, self._holder = path, holder
        self._what, self._reason, self._on_lost = what, reason, on_lost
        self._beats = 0
        self._renewed_s = monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="lock", daemon=True)
        self._thread.start()

    @property
    def ticket(self) -> str:
        """What another process needs for `check_ticket`."""
        return f"{self._path.name}/{self._holder.token}"

    def check(self) -> None:
        """Raises `TransientError` where another took the lock over. Nobody does so soon after a sign of life, so that
        it costs nothing to ask for every piece of a file."""
        if monotonic() - self._renewed_s >= BEAT_S:
            self._look()

    def _look(self) -> None:
        check_ticket(self._path.parent, self.ticket, self._what, self._reason)

    def _beat_on(self) -> None:
        while not self._ended.wait(BEAT_S):
            self._beats += 1
            asked_s = monotonic()
            try:
                self._look()
                _rewrite(self._path, self._holder, self._beats)
                self._renewed_s = asked_s
            except TransientError as error:
                self._renewed_s = -math.inf
                log.error("%s", error)
                self._on_lost()
                return
            except OSError as error:
                log.warning("the lock %s cannot be refreshed: %s", self._path, error.strerror)

    def release(self) -> None:
        """Let others have it at once. A lock that was lost is left alone."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(TransientError, OSError):
            self._look()
            _rewrite(self._path, self._holder, self._beats, released=True)


def check_ticket(folder: Path, ticket: str, what: str, reason: Reason | None = None) -> None:
    """Raises `TransientError` unless the lock of `folder` is still that of `ticket`; the others as of `held`."""
    name, _, token = ticket.partition("/")
    newest, seen = _newest(folder)
    if newest is None or newest.name != name or seen is None or f'"token": "{token}"'.encode() not in seen.content:
        raise TransientError(
            f"{what} was taken over by another process, since this one did not renew its lock for too long: this one "
            "ends without writing",
            reason,
        )


def is_released(folder: Path) -> bool:
    """Whether nobody holds the lock of `folder`."""
    _, seen = _newest(folder)
    return seen is None or seen.released


def is_abandoned(folder: Path, after_s: float) -> bool:
    """Whether somebody held the lock of `folder` who is gone: seen to be, or without a sign of life for `after_s` by
    this machine's clock, as nobody looks on."""
    _, seen = _newest(folder)
    return seen is not None and (seen.is_over or time.time() - seen.modified_s >= after_s)


@contextlib.contextmanager
def held(
    folder: Path,
    what: str,
    *,
    reason: Reason | None = None,
    wait_s: float | None = None,
    sleep: Callable[[float], object] = time.sleep,
    on_lost: Callable[[], None] = lambda: None,
) -> Iterator[Lock]:
    """Hold the lock of `folder`, made where it is missing; `what` is locked, for the sentences.

    `sleep` may raise to give up waiting; `on_lost` is called from the thread that notices that another took the lock.

    Raises `TransientError` (of the `reason`) where another holds it for longer than `wait_s`, by default for as long as
    that one lives, and `OSError` where the folder cannot be written.
    """
    holder = _this_process()
    path = _acquire(folder, holder, what, reason=reason, wait_s=wait_s, sleep=sleep)
    lock = Lock(path, holder, what, reason, on_lost)
    try:
        yield lock
    finally:
        lock.release()


def _acquire(
    folder: Path,
    holder: _Holder,
    what: str,
    *,
    reason: Reason | None,
    wait_s: float | None,
    sleep: Callable[[float], object],
) -> Path:
    started = since = monotonic()
    watched: tuple[Path | None, _Seen | None] | None = None
    logged = False
    while True:
        looked = monotonic()
        newest, seen = found = _newest(folder)
        # Where the server hung, the holder's signs of life did, too.
        if watched != found or monotonic() - looked >= BEAT_S:
            watched, since = found, monotonic()
        if newest is None or (seen is not None and _is_free(folder, seen, monotonic() - since)):
            path = _create(folder, _generation(newest) + 1, holder)
            if path is not None:
                return path
            continue
        owner = (seen and seen.holder) or "another process"
        if wait_s is not None and monotonic() - started >= wait_s:
            raise TransientError(
                f"{what} is in use by {owner}: this one waited {wait_s:.0f} s for it and is tried again later", reason
            )
        if not logged:
            log.info("%s is in use by %s: waiting", what, owner)
            logged = True
        sleep(POLL_S)


def _is_free(folder: Path, seen: _Seen, unchanged_s: float) -> bool:
    if seen.is_over:
        return True
    if unchanged_s < 2 * BEAT_S:
        return False
    return unchanged_s >= STALE_S or _server_time(folder) - seen.modified_s >= STALE_S


def _server_time(folder: Path) -> float:
    """Now, by the clock that stamps files in `folder`."""
    with tempfile.NamedTemporaryFile(prefix=".clock-", dir=folder) as probe:
        return os.fstat(probe.fileno()).st_mtime


def _generation(path: Path | None) -> int:
    match = path and _NAME.fullmatch(path.name)
    return int(match[1]) if match else 0


def _locks(folder: Path) -> list[Path]:
    # The one who ends may take an empty folder with it: that is a folder without locks.
    entries = list(folder.iterdir()) if folder.is_dir() else []
    return sorted((path for path in entries if _NAME.fullmatch(path.name)), key=_generation)


def _newest(folder: Path) -> tuple[Path | None, _Seen | None]:
    locks = _locks(folder)
    return (locks[-1], _look(locks[-1])) if locks else (None, None)


def _look(path: Path) -> _Seen | None:
    """The file as it stands on the server: opening it is what makes NFS ask."""
    try:
        with path.open("rb") as stream:
            return _Seen(content=stream.read(_SIZE), modified_s=os.fstat(stream.fileno()).st_mtime)
    except OSError:
        return None


def _create(folder: Path, generation: int, holder: _Holder) -> Path | None:
    """Create the lock of a generation, complete from its first moment on; None where another was faster."""
    path, draft = folder / f"lock-{generation:08d}", folder / f".lock-{holder.token}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        draft.write_bytes(_content(holder, 0))
        _link(draft, path)
    except FileExistsError:
        return None
    finally:
        draft.unlink(missing_ok=True)
    locks = _locks(folder)
    if any(_generation(other) > generation for other in locks):
        # Looked at long ago: this generation came and went since, and its number was free again.
        path.unlink(missing_ok=True)
        return None
    # A holder that was given up must find its file gone before anything here is written.
    for older in locks:
        if _generation(older) < generation:
            older.unlink(missing_ok=True)
    return path


def _link(draft: Path, path: Path) -> None:
    """Give the draft its name, which nobody has yet. Raises `FileExistsError`."""
    try:
        os.link(draft, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # Not whole from its first moment on, which who looks at it takes for a holder that it cannot read.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(draft.read_bytes())
            stream.flush()
            os.fsync(stream.fileno())


def _content(holder: _Holder, beats: int, *, released: bool = False) -> bytes:
    text = json.dumps({**asdict(holder), "beats": beats, "released": released})
    return text.ljust(_SIZE - 1).encode() + b"\n"


def _rewrite(path: Path, holder: _Holder, beats: int, *, released: bool = False) -> None:
    """In place and of the same size: a full volume does not stop the signs of life. Never creates the file."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(descriptor, _content(holder, beats, released=released), 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
