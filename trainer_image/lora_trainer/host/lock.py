"""One writer at a time in a run's folder, also on a network file system and across nodes.

The lock is a file `lock-<generation>` that its holder rewrites every few seconds. Who wants it creates the next
generation with a hard link, which fails where another was faster (atomic on NFS too; where there are no hard links, as
a file that must not exist yet), and only then removes the one before. A released lock stays as a file that says so:
generations only grow, and a holder that was given up as dead and comes back finds its file gone.

A lock counts as dead where its file stood still for a while, by the file server's own clock and while we looked on, so
that no node's wrong clock and no hanging file server makes two holders. A holder whose process is gone from our own
process table is dead at once.
"""

import contextlib
import errno
import json
import logging
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_trainer.contract.reasons import Reason
from lora_trainer.errors import TransientError, storage_error

log = logging.getLogger(__name__)
_NAME = re.compile(r"lock-(\d{8})")
_SIZE = 1024
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
"""What file systems without hard links answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """`beat_s` between two signs of life, `stale_s` without one until a holder counts as dead, `wait_s` the longest
    that a second one waits. On NFS a reader may see up to 60 s old attributes of a file that it does not open."""

    beat_s: float = 5.0
    stale_s: float = 60.0
    wait_s: float = 120.0
    poll_s: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds a lock. `machine` distinguishes process tables: boot and process namespace; `born` two processes of
    one id apart."""

    uid: str
    attempt: int
    host: str
    machine: str
    pid: int
    born: str
    token: str

    @classmethod
    def this_process(cls, uid: str, attempt: int) -> "Holder":
        """This process, with a token that no other has."""
        return cls(
            uid=uid,
            attempt=attempt,
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            born=_born(os.getpid()) or "",
            token=secrets.token_hex(8),
        )

    def is_gone(self) -> bool:
        """Whether the process can be seen to have ended; False also where it cannot be seen from here."""
        return self.machine != "" and self.machine == _machine() and _born(self.pid) != self.born


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
    """A lock's file as it stands: None for a holder that cannot be read (created, not yet written)."""

    content: bytes
    modified_s: float

    @property
    def released(self) -> bool:
        return b'"released": true' in self.content

    @property
    def holder(self) -> Holder | None:
        try:
            document = json.loads(self.content)
            return Holder(**{name: document[name] for name in Holder.__slots__})
        except (ValueError, KeyError, TypeError):
            return None


class Lock:
    """A lock that is held. `check` before every write; `on_lost` is called once, from the thread that noticed."""

    def __init__(
        self, folder: Path, path: Path, holder: Holder, timing: Timing, on_lost: Callable[[], None] | None = None
    ) -> None:
        self._folder = folder
        self._path = path
        self._holder = holder
        self._timing = timing
        self._on_lost = on_lost
        self._beats = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="lock", daemon=True)
        self._thread.start()

    @property
    def ticket(self) -> str:
        """What another process of this run needs for `check_ticket`."""
        return f"{self._path.name}/{self._holder.token}"

    def check(self) -> None:
        """Raises `TransientError` (`OutputLocked`) where another trainer took the lock over."""
        check_ticket(self._folder, self.ticket)

    def _beat_on(self) -> None:
        while not self._ended.wait(self._timing.beat_s):
            self._beats += 1
            try:
                self.check()
                _rewrite(self._path, _content(self._holder, self._beats))
            except TransientError as error:
                log.error("%s", error)
                if self._on_lost is not None:
                    self._on_lost()
                return
            except OSError as error:
                log.warning("the lock %s cannot be refreshed: %s", self._path.name, error.strerror)

    def release(self) -> None:
        """Let others have it at once. A lock that was lost is left alone."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(TransientError, OSError):
            self.check()
            _rewrite(self._path, _content(self._holder, self._beats, released=True))


def check_ticket(folder: Path, ticket: str) -> None:
    """Raises `TransientError` (`OutputLocked`) unless the lock in `folder` is still that of `ticket`."""
    name, _, token = ticket.partition("/")
    seen = _look(folder / name)
    newest = _newest(folder)
    if seen is None or f'"token": "{token}"'.encode() not in seen.content or newest is None or newest.name != name:
        raise TransientError(
            f"another trainer took the run's folder {folder.name} over, since this one did not renew its lock for "
            "too long: this one ends without writing",
            Reason.OUTPUT_LOCKED,
        )


def is_released(folder: Path) -> bool:
    """Whether nobody holds the lock of `folder`."""
    newest = _newest(folder)
    seen = None if newest is None else _look(newest)
    return seen is None or seen.released


@contextlib.contextmanager
def held(
    folder: Path,
    holder: Holder,
    *,
    timing: Timing | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
    on_lost: Callable[[], None] | None = None,
) -> Iterator[Lock]:
    """Hold the lock of `folder`, which exists. `sleep` may raise to give up.

    Raises `TransientError` (`OutputLocked`) where another holds it for longer than the wait, `StorageError` where the
    folder cannot be written.
    """
    timing = timing or Timing()
    path = _acquire(folder, holder, timing, clock, sleep)
    lock = Lock(folder, path, holder, timing, on_lost)
    try:
        yield lock
    finally:
        lock.release()


def _acquire(
    folder: Path, holder: Holder, timing: Timing, clock: Callable[[], float], sleep: Callable[[float], object]
) -> Path:
    started = clock()
    watched: tuple[str, bytes] | None = None
    since, logged = started, False
    while True:
        looked = clock()
        newest = _newest(folder)
        seen = None if newest is None else _look(newest)
        hung = clock() - looked >= timing.beat_s
        if newest is None or seen is None:
            free, generation = newest is None, 0
        else:
            # Where the server hung, the holder's signs of life did, too.
            if watched != (newest.name, seen.content) or hung:
                watched, since = (newest.name, seen.content), clock()
            free = _is_free(folder, seen, clock() - since, timing)
            generation = _generation(newest)
        if free:
            path = _create(folder, generation + 1, holder)
            if path is not None:
                return path
            continue
        if clock() - started >= timing.wait_s:
            owner = None if seen is None else seen.holder
            raise TransientError(
                f"the run's folder {folder.name} is in use by {_shown(owner)}: this trainer waited "
                f"{timing.wait_s:.0f} s for it and is started again later",
                Reason.OUTPUT_LOCKED,
            )
        if not logged:
            log.info("the run's folder is in use by %s: waiting", _shown(None if seen is None else seen.holder))
            logged = True
        sleep(timing.poll_s)


def _shown(holder: Holder | None) -> str:
    return "another trainer" if holder is None else f"attempt {holder.attempt} on {holder.host} (process {holder.pid})"


def _is_free(folder: Path, seen: _Seen, unchanged_s: float, timing: Timing) -> bool:
    if seen.released or (seen.holder is not None and seen.holder.is_gone()):
        return True
    if unchanged_s < 2 * timing.beat_s:
        return False
    return unchanged_s >= timing.stale_s or _server_time(folder) - seen.modified_s >= timing.stale_s


def _server_time(folder: Path) -> float:
    """Now, by the clock that stamps files in `folder`."""
    probe = folder / f".clock-{secrets.token_hex(4)}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError as error:
        raise storage_error(error, f"the run's folder {folder.name}") from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def _generation(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return 0 if match is None else int(match[1])


def _locks(folder: Path) -> list[Path]:
    # The one who ends may take an empty folder with it: that is a folder without locks.
    entries = list(folder.iterdir()) if folder.is_dir() else []
    return sorted((path for path in entries if _NAME.fullmatch(path.name)), key=_generation)


def _newest(folder: Path) -> Path | None:
    locks = _locks(folder)
    return locks[-1] if locks else None


def _look(path: Path) -> _Seen | None:
    """The file as it stands on the server: opening it is what makes NFS ask."""
    try:
        with path.open("rb") as stream:
            return _Seen(content=stream.read(_SIZE), modified_s=os.fstat(stream.fileno()).st_mtime)
    except OSError:
        return None


def _create(folder: Path, generation: int, holder: Holder) -> Path | None:
    """Create the lock of a generation, complete from its first moment on; None where another was faster."""
    path, draft = folder / f"lock-{generation:08d}", folder / f".lock-{holder.token}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(_content(holder, 0))
        try:
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
    except OSError as error:
        raise storage_error(error, f"the run's folder {folder.name}") from error
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


def _content(holder: Holder, beats: int, *, released: bool = False) -> bytes:
    document = {name: getattr(holder, name) for name in Holder.__slots__}
    text = json.dumps({**document, "beats": beats, "released": released})
    return text.ljust(_SIZE - 1).encode() + b"\n"


def _rewrite(path: Path, content: bytes) -> None:
    """In place and of the same size: a full volume does not stop the signs of life. Never creates the file."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(descriptor, content, 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
