"""The lock of a run's folder: one holder at a time, whoever dies, hangs or comes back."""

import errno
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from lora_trainer.contract.reasons import Reason
from lora_trainer.errors import StorageError, TransientError
from lora_trainer.host import lock
from lora_trainer.host.lock import Holder, Lock, Timing, _create, _look, check_ticket, held, is_released

TIMING = Timing(beat_s=0.02, stale_s=60.0, wait_s=100.0, poll_s=1.0)
CODE = """
import sys
from pathlib import Path
from lora_trainer.host.lock import Holder, Timing, held
with held(Path(sys.argv[1]), Holder.this_process("uid-1", 1)):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(attempt: int = 1, host: str = "pod-a") -> Holder:
    """Another machine's process, so that nobody here can see whether it lives."""
    return replace(Holder.this_process("uid-1", attempt), machine="elsewhere", host=host)


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


def dead_lock(folder: Path, age_s: float = 0.0) -> Path:
    """A lock whose holder ended without releasing it, that many seconds ago by the file server's clock."""
    with ExitStack() as stack:
        stack.enter_context(held(folder, holder(), timing=TIMING))
        (path,) = folder.glob("lock-*")
        content = path.read_bytes()
    path.write_bytes(content)
    then = path.stat().st_mtime - age_s
    os.utime(path, (then, then))
    return path


def take(folder: Path, clock: Clock, timing: Timing = TIMING) -> float:
    """Take and release the lock; the time that it took."""
    with held(folder, holder(2, host="pod-b"), timing=timing, clock=clock, sleep=clock.sleep):
        return clock.now


def test_a_second_trainer_waits_until_the_first_lets_go(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And takes the lock at once then; the log says once for whom it waits."""
    caplog.set_level(logging.INFO)
    first = ExitStack()
    first.enter_context(held(tmp_path, holder(), timing=TIMING))
    clock = Clock(lambda now: first.close() if now == 3 else None)
    assert take(tmp_path, clock) == 3
    assert is_released(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1, "locks pile up"
    assert caplog.text.count("the run's folder is in use by attempt 1 on pod-a") == 1


def test_a_second_trainer_gives_up_after_the_wait_with_the_holder_named(tmp_path: Path) -> None:
    """75, so that it is started again; the holder is not disturbed."""
    with held(tmp_path, holder(), timing=replace(TIMING, beat_s=0.001)) as first:
        # Signs of life that differ: one for every look.
        def alive(_now: float) -> None:
            seen = next(tmp_path.glob("lock-*")).read_bytes()
            while next(tmp_path.glob("lock-*")).read_bytes() == seen:
                pass

        with pytest.raises(
            TransientError, match=r"in use by attempt 1 on pod-a \(process \d+\): .* waited 100 s"
        ) as gave:
            take(tmp_path, Clock(alive))
        assert (gave.value.reason, gave.value.code) == (Reason.OUTPUT_LOCKED, 75)
        first.check()


def test_a_holder_that_stood_still_long_ago_is_given_up_after_two_beats(tmp_path: Path) -> None:
    """By the file server's clock; the look at two beats is for a server that itself hung."""
    dead_lock(tmp_path, age_s=61)
    timing = replace(TIMING, beat_s=5)
    assert take(tmp_path, Clock(), timing) == 10


def test_a_holder_that_just_died_is_given_up_when_it_stood_still_long_enough(tmp_path: Path) -> None:
    """Measured with our own clock, whatever the server's says."""
    dead_lock(tmp_path, age_s=-3600)
    assert take(tmp_path, Clock()) == 60


def test_a_holder_that_lives_is_never_given_up_for_a_wrong_clock(tmp_path: Path) -> None:
    """Its file is an hour old by the server's clock, and changes."""
    path = dead_lock(tmp_path, age_s=3600)
    beats = iter(range(1000))

    def beat(_now: float) -> None:
        path.write_bytes(path.read_bytes().replace(b'"beats": ', b'"beats": %d' % next(beats), 1))
        then = path.stat().st_mtime - 3600
        os.utime(path, (then, then))

    with pytest.raises(TransientError, match="in use"):
        take(tmp_path, Clock(beat), replace(TIMING, beat_s=5))


def test_a_process_of_this_machine_that_is_gone_is_given_up_at_once(tmp_path: Path) -> None:
    """Kill -9 of a run and its next attempt on the same machine."""
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2] / "trainer_image")},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        own = Holder.this_process("uid-1", 2)
        clock = Clock()
        with (
            pytest.raises(TransientError, match="in use"),
            held(tmp_path, own, timing=replace(TIMING, wait_s=1), clock=clock, sleep=clock.sleep),
        ):
            pass
    finally:
        process.kill()
        process.communicate()
    clock = Clock()
    with held(tmp_path, own, timing=TIMING, clock=clock, sleep=clock.sleep):
        assert clock.now == 0


def test_a_holder_that_was_given_up_notices_before_it_writes_and_is_reported(tmp_path: Path) -> None:
    """It was only asleep: its lock and its ticket are worth nothing, and its end takes nothing from the new holder."""
    lost = threading.Event()
    with ExitStack() as first:
        asleep = replace(TIMING, beat_s=3600.0)
        old: Lock = first.enter_context(held(tmp_path, holder(), timing=asleep, on_lost=lost.set))
        with held(tmp_path, holder(2), timing=TIMING, clock=(clock := Clock()), sleep=clock.sleep) as new:
            with pytest.raises(TransientError, match="another trainer took the run's folder"):
                old.check()
            with pytest.raises(TransientError):
                check_ticket(tmp_path, old.ticket)
            first.close()
            new.check()
            check_ticket(tmp_path, new.ticket)
    assert is_released(tmp_path)


def test_a_beating_holder_whose_lock_is_taken_is_reported(tmp_path: Path) -> None:
    """From its own thread, so that it can end what is at work."""
    lost = threading.Event()
    with held(tmp_path, holder(), timing=TIMING, on_lost=lost.set):
        next(tmp_path.glob("lock-*")).rename(tmp_path / "lock-00000002")
        assert lost.wait(300)


def test_of_many_that_find_a_dead_holder_one_gets_the_lock(tmp_path: Path) -> None:
    """All at the same moment; each gets it in the end, never two at once."""
    dead_lock(tmp_path, age_s=61)
    inside, most, taken = 0, 0, 0
    guard = threading.Lock()
    barrier = threading.Barrier(8)
    timing = Timing(beat_s=0.001, stale_s=60, wait_s=60, poll_s=0.001)

    def contend(number: int) -> None:
        nonlocal inside, most, taken
        barrier.wait()
        with held(tmp_path, holder(number), timing=timing) as lock:
            with guard:
                inside, taken = inside + 1, taken + 1
                most = max(most, inside)
            lock.check()
            with guard:
                inside -= 1

    threads = [threading.Thread(target=contend, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, taken) == (1, 8)


def test_a_generation_that_came_and_went_is_not_taken_again(tmp_path: Path) -> None:
    """Between the look at a dead lock and the attempt to follow it, others had the next one and the one after."""
    (tmp_path / "lock-00000003").write_bytes(b"{}")
    assert _create(tmp_path, 2, holder()) is None
    assert [path.name for path in tmp_path.iterdir()] == ["lock-00000003"]
    assert _create(tmp_path, 4, holder()) == tmp_path / "lock-00000004"


def test_a_wait_can_be_given_up(tmp_path: Path) -> None:
    """A run that is asked to stop while it waits."""

    def stopped(_seconds: float) -> None:
        raise InterruptedError

    with (
        held(tmp_path, holder(), timing=TIMING),
        pytest.raises(InterruptedError),
        held(tmp_path, holder(2), timing=TIMING, sleep=stopped),
    ):
        pass


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    """With the reason of the system."""
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="the run's folder below cannot be written"):
        take(tmp_path / "file/below", Clock())


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_volume_without_hard_links_has_a_lock_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """SMB shares and buckets that are mounted as volumes: a file that must not exist yet is made by one alone."""

    def refused(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refused)
    with held(tmp_path, holder(), timing=TIMING) as first:
        assert [path.name for path in tmp_path.iterdir()] == ["lock-00000001"]
        with pytest.raises(TransientError, match="in use by attempt 1 on pod-a"):
            take(tmp_path, Clock(), replace(TIMING, wait_s=0))
        assert _create(tmp_path, 1, holder(3)) is None
        first.check()
    assert take(tmp_path, Clock()) == 0


def test_a_holder_is_not_given_up_because_the_file_server_hung(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its signs of life hung, too. It is looked at anew once the server answers again."""
    path = dead_lock(tmp_path)
    clock, looks = Clock(), 0

    def hanging(found: Path) -> object:
        nonlocal looks
        looks += 1
        if looks == 2:
            clock.now += 300
            os.utime(path, (path.stat().st_mtime - 300,) * 2)
        return _look(found)

    monkeypatch.setattr(lock, "_look", hanging)
    timing = replace(TIMING, beat_s=5, wait_s=1000)
    assert take(tmp_path, clock, timing) == 1 + 300 + 10
