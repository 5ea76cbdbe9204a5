"""Processes that outlive the command that started them, and how to be sure that a pid is still ours."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from localcluster.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessId:
    """A process for certain: the kernel reuses pids, but not with the same start time in the same boot."""

    pid: int
    start_ticks: int
    boot_id: str


def parse_start_ticks(stat: str) -> int:
    """Field 22 of /proc/PID/stat; the command in field 2 may itself hold spaces and parentheses."""
    return int(stat[stat.rindex(")") + 2 :].split()[19])


def identify(pid: int) -> ProcessId | None:
    """The identity of a running process, or None if there is none or it is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if stat[stat.rindex(")") + 2] in "ZX":
        return None
    return ProcessId(pid=pid, start_ticks=parse_start_ticks(stat), boot_id=boot)


def is_running(process: ProcessId | None) -> bool:
    return process is not None and identify(process.pid) == process


def save(process: ProcessId, path: Path) -> None:
    write_atomically(path, json.dumps(asdict(process)))


def load(path: Path) -> ProcessId | None:
    """The process noted in the file, or None if the file is missing or was cut short."""
    try:
        return ProcessId(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file so that a reader, or an interruption, never sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as file:
        file.write(text)
    temporary.replace(path)


def end(process: ProcessId | None, *, timeout_s: float = 120) -> bool:
    """Kill the process if it is still the one that was noted, and wait until it and its children are gone.

    The children are those that the kernel kills with it. A PID namespace's first process is gone only
    after everything in the namespace is, so waiting for children waits for all of a node.
    Returns whether there was one. Raises ClusterError if it does not go away.
    """
    if process is None:
        return False
    with contextlib.ExitStack() as stack:
        descriptor = _descriptor(process, stack)
        if descriptor is None:
            return False
        waited = {process.pid: descriptor}
        for child in children(process.pid):
            handle = _descriptor(child, stack)
            if handle is not None:
                waited[child.pid] = handle
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        deadline = time.monotonic() + timeout_s
        for pid, handle in waited.items():
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise ClusterError(f"Process {pid} did not end within {timeout_s:.0f} s of SIGKILL.")
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)
    return True


def children(pid: int) -> list[ProcessId]:
    """The processes whose parent is this one, now."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            stat = (folder / "stat").read_text()
            if int(stat[stat.rindex(")") + 2 :].split()[1]) == pid and (child := identify(int(folder.name))):
                found.append(child)
    return found


def _descriptor(process: ProcessId, stack: contextlib.ExitStack) -> int | None:
    """A handle on the process, which its pid is not: a pid may become someone else's at any time."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return None
    stack.callback(os.close, descriptor)
    return descriptor if is_running(process) else None


def start_detached(argv: Sequence[str], *, pid_file: Path, log: Path, environment: Mapping[str, str]) -> ProcessId:
    """Start a process that outlives this one.

    It notes its own identity in `pid_file` before it becomes `argv`, so that killing this command at
    any moment cannot leave a process that nobody knows of.
    """
    with log.open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "localcluster.launch", str(pid_file), *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=dict(environment),
        )

    def noted() -> ProcessId | None:
        process = load(pid_file)
        return process if process is not None and process.pid == child.pid else None

    wait_until(lambda: noted() is not None or child.poll() is not None, timeout_s=120)
    process = noted()
    if process is None:
        raise ClusterError(f"{argv[0]} could not be started.", log=log)
    # Python warns of a Popen that is dropped while its process runs; this one is meant to go on.
    child.returncode = 0
    return process


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the thread that started it ends (Linux prctl)."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def locked(path: Path, *, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock that the kernel drops when this process ends, however it ends.

    Whoever holds the lock may delete the file: others then lock the next file of that name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                waiting(f"waiting for another hack/cluster (process {file.read().strip() or 'unknown'}) to finish")
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(file, path):
                continue
            file.seek(0)
            file.truncate()
            file.write(str(os.getpid()))
            file.flush()
            yield
            return


def _is_at(file: TextIO, path: Path) -> bool:
    """Whether the open file is still the one that the path names."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def wait_until(
    condition: Callable[[], bool],
    *,
    timeout_s: float,
    interval_s: float = 0.05,
    check: Callable[[], None] | None = None,
) -> bool:
    """Poll until the condition holds; `check` may raise to give up early. Returns whether it held in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        if condition():
            return True
        if check is not None:
            check()
        if time.monotonic() >= deadline:
            return False
        time.sleep(interval_s)
