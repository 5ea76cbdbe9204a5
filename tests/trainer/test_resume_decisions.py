"""What an attempt goes on from, decided from what the earlier ones have left."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from lora_trainer.train.resume import Saved


@pytest.mark.parametrize(
    ("own", "goes_on", "best", "sentence"),
    [
        (True, True, 2, "continuing after step 4, which an earlier attempt saved"),
        (False, True, 2, "continuing after step 4 of the run tiny, optimizer included"),
        (False, False, None, "starting at step 0 from the weights that the run tiny had after step 4"),
        (False, False, 2, "starting at step 0 from the weights that the run tiny had after step 2"),
    ],
)
def test_the_log_says_where_a_run_goes_on(
    caplog: pytest.LogCaptureFixture, *, own: bool, goes_on: bool, best: int | None, sentence: str
) -> None:
    """Its own state, another run's, or the weights of that alone."""
    record: Any = SimpleNamespace(config=SimpleNamespace(run=SimpleNamespace(name="tiny")))
    checkpoint: Any = SimpleNamespace(step=4)
    with caplog.at_level(logging.INFO):
        Saved(checkpoint=checkpoint, record=record, own=own, best_step=best, goes_on=goes_on).log_start()
    assert [line.getMessage() for line in caplog.records] == [sentence]
