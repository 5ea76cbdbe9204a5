"""The lock of a folder: one holder at a time, whoever dies, hangs or comes back."""

import errno
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.trainer.runs import TRAINER

from lora_trainer.errors import TransientError
from lora_trainer.spec.reasons import Reason
from lora_trainer.storage import lock
from lora_trainer.storage.lock import check_ticket, held, is_abandoned, is_released

WHAT = "the run's folder tone"
HOLDER = """
import sys
from pathlib import Path
from lora_trainer.storage import lock
machine, beat_s = sys.argv[2:]
lock.BEAT_S = float(beat_s)
if machine:
    lock._machine = lambda: machine
with lock.held(Path(sys.argv[1]), "it") as own:
    print("held", flush=True)
    for line in sys.stdin:
        try:
            own.check()
            print("mine", flush=True)
        except Exception as error:
            print(error, flush=True)
"""


class Process:
    """Another process that holds the lock of `folder`, here or on another `machine`."""

    def __init__(self, folder: Path, machine: str, beat_s: float) -> None:
        command = [sys.executable, "-c", HOLDER, str(folder), machine, str(beat_s)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": str(TRAINER)}
        )
        assert self.said() == "held"

    def said(self) -> str:
        """Its next line."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def checks(self) -> str:
        """What it says of its lock."""
        assert self.process.stdin is not None
        self.process.stdin.write("check\n")
        self.process.stdin.flush()
        return self.said()

    def end(self) -> None:
        """As it should."""
        self.process.communicate()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.communicate()


@contextmanager
def other_process(folder: Path, *, machine: str = "", beat_s: float = 0.02) -> Iterator[Process]:
    """One that is killed at the end."""
    process = Process(folder, machine, beat_s)
    try:
        yield process
    finally:
        process.kill()


class Clock:
    """Moves on when somebody sleeps; `then` happens at each sleep."""

    def __init__(self, then: Callable[[float], None] = lambda now: None) -> None:
        self.now = 0.0
        self._then = then

    def __call__(self) -> float:
        """Seconds since the start."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        self._then(self.now)


@pytest.fixture
def take(monkeypatch: pytest.MonkeyPatch) -> Callable[..., float]:
    """Take and release the lock of a folder on a clock; the time that it took."""

    def taken(folder: Path, clock: Clock, wait_s: float | None = 100.0) -> float:
        with monkeypatch.context() as patch:
            patch.setattr(lock, "monotonic", clock)
            with held(folder, WHAT, reason=Reason.OUTPUT_LOCKED, wait_s=wait_s, sleep=clock.sleep):
                return clock.now

    return taken


def dead_lock(folder: Path, age_s: float = 0.0) -> Path:
    """The lock of a process on another machine that ended that many seconds ago by the file server's clock."""
    with other_process(folder, machine="elsewhere"):
        pass
    (path,) = folder.glob("lock-*")
    then = path.stat().st_mtime - age_s
    os.utime(path, (then, then))
    return path


def test_a_second_one_waits_until_the_first_lets_go(
    tmp_path: Path, take: Callable[..., float], caplog: pytest.LogCaptureFixture
) -> None:
    """And takes the lock at once then; the log says once for whom it waits."""
    caplog.set_level(logging.INFO)
    first = ExitStack()
    first.enter_context(held(tmp_path, WHAT))
    clock = Clock(lambda now: first.close() if now == 3 else None)
    assert take(tmp_path, clock) == 3
    assert is_released(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1, "locks pile up"
    assert caplog.text.count(f"{WHAT} is in use by process {os.getpid()} on ") == 1


@pytest.mark.parametrize("machine", ["", "elsewhere"], ids=["here", "elsewhere"])
def test_a_holder_that_lives_is_waited_for_as_long_as_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str
) -> None:
    """Many times as long as one without signs of life would be; it is named, and not disturbed."""
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    monkeypatch.setattr(lock, "STALE_S", 1.0)
    monkeypatch.setattr(lock, "POLL_S", 0.01)
    with other_process(tmp_path, machine=machine) as first:
        with (
            pytest.raises(
                TransientError,
                match=rf"^{WHAT} is in use by process {first.process.pid} on \S+: this one waited 4 s for it",
            ) as gave,
            held(tmp_path, WHAT, reason=Reason.OUTPUT_LOCKED, wait_s=4),
        ):
            pass
        assert (gave.value.reason, gave.value.code) == (Reason.OUTPUT_LOCKED, 75)
        assert first.checks() == "mine"


def test_a_killed_process_of_this_machine_is_given_up_at_once(tmp_path: Path, take: Callable[..., float]) -> None:
    """And one of another, of which nothing is known here, once it stood still long enough by our own clock, whatever
    the server's says."""
    with other_process(tmp_path):
        pass
    assert take(tmp_path, Clock()) == 0
    dead_lock(tmp_path / "elsewhere", age_s=-3600)
    assert take(tmp_path / "elsewhere", Clock()) == lock.STALE_S


def test_a_holder_that_stood_still_long_ago_is_given_up_after_two_beats(
    tmp_path: Path, take: Callable[..., float]
) -> None:
    """By the file server's clock; the look at two beats is for a server that itself hung."""
    dead_lock(tmp_path, age_s=61)
    assert take(tmp_path, Clock()) == 2 * lock.BEAT_S


def test_a_holder_that_lives_is_never_given_up_for_a_wrong_clock(tmp_path: Path, take: Callable[..., float]) -> None:
    """Its file is an hour old by the server's clock, and changes."""
    path = dead_lock(tmp_path, age_s=3600)
    beats = iter(range(1000))

    def beat(_now: float) -> None:
        path.write_bytes(path.read_bytes().replace(b'"beats": ', b'"beats": %d' % next(beats), 1))
        then = path.stat().st_mtime - 3600
        os.utime(path, (then, then))

    with pytest.raises(TransientError, match="in use"):
        take(tmp_path, Clock(beat))


def test_a_holder_is_not_given_up_because_the_file_server_hung(
    tmp_path: Path, take: Callable[..., float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its signs of life hung, too. It is looked at anew once the server answers again."""
    path = dead_lock(tmp_path)
    clock, looks, look = Clock(), 0, lock._look

    def hanging(found: Path) -> object:
        nonlocal looks
        looks += 1
        if looks == 2:
            clock.now += 300
            os.utime(path, (path.stat().st_mtime - 300,) * 2)
        return look(found)

    monkeypatch.setattr(lock, "_look", hanging)
    assert take(tmp_path, clock, None) == 1 + 300 + 2 * lock.BEAT_S


def test_a_holder_that_was_given_up_notices_before_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was only stopped: its lock is worth nothing, and its end takes nothing from the new holder."""
    clock = Clock()
    monkeypatch.setattr(lock, "monotonic", clock)
    with other_process(tmp_path, machine="elsewhere") as stopped:
        assert stopped.checks() == "mine"
        os.kill(stopped.process.pid, signal.SIGSTOP)
        with held(tmp_path, WHAT, sleep=clock.sleep) as new:
            time.sleep(0.1)  # of its clock, more than a beat
            os.kill(stopped.process.pid, signal.SIGCONT)
            assert stopped.checks().startswith("it was taken over by another process")
            stopped.end()
            clock.now += lock.BEAT_S
            new.check()
            check_ticket(tmp_path, new.ticket, WHAT)
    with pytest.raises(TransientError, match=rf"^{WHAT} was taken over by another process") as lost:
        check_ticket(tmp_path, "lock-00000001/0123456789abcdef", WHAT, Reason.OUTPUT_LOCKED)
    assert lost.value.reason is Reason.OUTPUT_LOCKED
    assert is_released(tmp_path)


def test_a_beating_holder_whose_lock_is_taken_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its own thread, so that it can end what is at work; from then on no question is answered well."""
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    lost = threading.Event()
    with held(tmp_path, WHAT, on_lost=lost.set) as own:
        next(tmp_path.glob("lock-*")).rename(tmp_path / "lock-00000002")
        assert lost.wait(300)
        monkeypatch.setattr(lock, "BEAT_S", 3600.0)
        with pytest.raises(TransientError):
            own.check()


def test_a_question_soon_after_a_sign_of_life_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is put for every piece of a download."""
    with held(tmp_path, WHAT) as own:
        monkeypatch.setattr(lock, "_newest", None)
        own.check()
        monkeypatch.undo()


def test_of_many_that_find_a_dead_holder_one_gets_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All at the same moment; each gets it in the end, never two at once."""
    dead_lock(tmp_path, age_s=61)
    monkeypatch.setattr(lock, "BEAT_S", 0.001)
    monkeypatch.setattr(lock, "POLL_S", 0.001)
    inside, most, taken = 0, 0, 0
    guard = threading.Lock()
    barrier = threading.Barrier(8)

    def contend() -> None:
        nonlocal inside, most, taken
        barrier.wait()
        with held(tmp_path, WHAT) as own:
            with guard:
                inside, taken = inside + 1, taken + 1
                most = max(most, inside)
            own.check()
            with guard:
                inside -= 1

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, taken) == (1, 8)


def test_a_generation_that_came_and_went_is_not_taken_again(tmp_path: Path) -> None:
    """Between the look at a dead lock and the attempt to follow it, others had the next one and the one after."""
    (tmp_path / "lock-00000003").write_bytes(b"{}")
    assert lock._create(tmp_path, 2, lock._this_process()) is None
    assert [path.name for path in tmp_path.iterdir()] == ["lock-00000003"]
    assert lock._create(tmp_path, 4, lock._this_process()) == tmp_path / "lock-00000004"


def test_a_wait_can_be_given_up(tmp_path: Path) -> None:
    """A run that is asked to stop while it waits."""

    def stopped(_seconds: float) -> None:
        raise InterruptedError

    with held(tmp_path, WHAT), pytest.raises(InterruptedError), held(tmp_path, WHAT, sleep=stopped):
        pass


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_volume_without_hard_links_has_a_lock_too(
    tmp_path: Path, take: Callable[..., float], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """SMB shares and buckets that are mounted as volumes: a file that must not exist yet is made by one alone."""

    def refused(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refused)
    with held(tmp_path, WHAT):
        assert [path.name for path in tmp_path.iterdir()] == ["lock-00000001"]
        with pytest.raises(TransientError, match="in use by process "):
            take(tmp_path, Clock(), 0)
        assert lock._create(tmp_path, 1, lock._this_process()) is None
        assert [path.name for path in tmp_path.iterdir()] == ["lock-00000001"]
    assert take(tmp_path, Clock()) == 0


def test_what_nobody_holds_any_more_is_abandoned(tmp_path: Path) -> None:
    """At once where that can be seen, after a while elsewhere; a folder without a lock is not."""
    assert not is_abandoned(tmp_path, 100)
    with other_process(tmp_path):
        assert not is_abandoned(tmp_path, 100)
    assert is_abandoned(tmp_path, 100)
    for age_s, abandoned in ((90, False), (110, True)):
        dead_lock(tmp_path / str(age_s), age_s=age_s)
        assert is_abandoned(tmp_path / str(age_s), 100) is abandoned
