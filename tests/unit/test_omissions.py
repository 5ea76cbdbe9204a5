"""Statuses of which the API server stores a part are not written again for the rest."""

import logging
from typing import Any

import pytest
from tests.unit.builders import make_finetune

from lora_operator.cluster.omissions import Omissions

WRITTEN = {"attempt": 1, "retries": {"error": 1}}


def stored(**status: Any) -> dict[str, Any]:
    """What the API server answers to the write."""
    return {"metadata": {"resourceVersion": "8"}, "status": status}


def test_what_was_written_in_vain_is_not_written_again(caplog: pytest.LogCaptureFixture) -> None:
    """The definition lacks a field: said once, for all runs, with the field and the remedy."""
    omissions = Omissions()
    with caplog.at_level(logging.WARNING):
        omissions.note("a", WRITTEN, stored(attempt=1))
        omissions.note("b", WRITTEN, stored(attempt=1))
    (record,) = caplog.records
    assert "older than the operator" in record.getMessage()
    assert "(retries): apply crds/lorafinetunes.yaml" in record.getMessage()
    assert omissions.covers(make_finetune(metadata={"uid": "a"}, status={"attempt": 1}), WRITTEN)


def test_a_new_status_or_a_change_by_others_is_written() -> None:
    """Only the same answer to the same status is in vain."""
    omissions = Omissions()
    omissions.note("a", WRITTEN, stored(attempt=1))
    assert not omissions.covers(make_finetune(metadata={"uid": "a"}, status={"attempt": 1}), {**WRITTEN, "attempt": 2})
    assert not omissions.covers(make_finetune(metadata={"uid": "a"}, status={"attempt": 7}), WRITTEN)
    assert not omissions.covers(make_finetune(metadata={"uid": "b"}, status={"attempt": 1}), WRITTEN)


def test_a_definition_that_knows_everything_leaves_nothing_to_remember(caplog: pytest.LogCaptureFixture) -> None:
    """After its upgrade the next write is whole."""
    omissions = Omissions()
    omissions.note("a", WRITTEN, stored(attempt=1))
    caplog.clear()
    omissions.note("a", WRITTEN, stored(**WRITTEN))
    assert not caplog.records
    assert not omissions.covers(make_finetune(metadata={"uid": "a"}, status={"attempt": 1}), WRITTEN)
