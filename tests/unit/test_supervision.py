"""A process that has failed ends, whatever holds it up."""

import logging
import threading

import pytest

from lora_operator.running import supervision


def test_a_process_that_does_not_end_by_itself_is_ended_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Status 1, and the reason in the log, which nobody else would write any more."""
    ended, statuses = threading.Event(), []

    def end(status: int) -> None:
        statuses.append(status)
        ended.set()

    monkeypatch.setattr("os._exit", end)
    with caplog.at_level(logging.CRITICAL):
        supervision.end_within(0.01, ValueError("the definition is gone"))
        assert ended.wait(timeout=300)
    assert statuses == [1]
    assert [record.getMessage() for record in caplog.records] == ["the definition is gone"]
