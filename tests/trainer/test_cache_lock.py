"""Waiting for another run that fetches the same: as long as it gets on, and no longer."""

import logging
from pathlib import Path

import pytest
from filelock import FileLock

from lora_trainer.errors import TransientError
from lora_trainer.places.cache_lock import PATIENCE_S, alone_in_cache


class Download:
    """Another run's, which holds the lock. Each second that is slept here brings a byte there, `most` in all."""

    def __init__(self, lock: Path, most: int, done_at: int | None = None) -> None:
        self.held = FileLock(lock)
        self.held.acquire()
        self.most = most
        self.done_at = done_at
        self.now = 0

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += int(seconds)
        if self.now == self.done_at:
            self.held.release()

    def size(self) -> int:
        """What has arrived."""
        return min(self.now, self.most)


def test_a_download_that_gets_on_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """However long it takes; the wait is logged once."""
    hours = 3 * 3600
    other = Download(tmp_path / ".lock", most=hours, done_at=hours)
    with (
        caplog.at_level(logging.INFO, logger="lora_trainer"),
        alone_in_cache(
            tmp_path / ".lock", other.size, what="weights", clock=lambda: float(other.now), sleep=other.sleep
        ),
    ):
        assert other.now == hours
        with pytest.raises(TimeoutError):
            FileLock(tmp_path / ".lock").acquire(blocking=False)
    assert caplog.messages == ["weights is being fetched by another run: waiting"]
    FileLock(tmp_path / ".lock").acquire(blocking=False)


def test_a_holder_that_stands_still_is_not_waited_for(tmp_path: Path) -> None:
    """As a node that is gone, for which the file server still holds the lock."""
    other = Download(tmp_path / ".lock", most=40)
    with (
        pytest.raises(
            TransientError, match=r"weights: another run has held its lock in the cache \(\.lock\) for 1200 s"
        ),
        alone_in_cache(
            tmp_path / ".lock", other.size, what="weights", clock=lambda: float(other.now), sleep=other.sleep
        ),
    ):
        raise AssertionError("it has the lock of another")
    assert other.now == 40 + PATIENCE_S
