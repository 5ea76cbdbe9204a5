"""What an attempt goes on from, decided from what the earlier ones have left."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.trainer.conftest import make_config

from lora_trainer.training.evaluate import Evaluation
from lora_trainer.training.kept_limit import with_kept_limit
from lora_trainer.training.resume import Saved


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
        Saved(checkpoint=checkpoint, record=record, own=own, best_step=best).log_start(goes_on=goes_on)
    assert [line.getMessage() for line in caplog.records] == [sentence]


@pytest.mark.parametrize(
    ("began", "given", "kept"),
    [
        (None, 2000, None),
        (2000, None, 2000),
        (2000, 2000, 2000),
        (500, 2000, 2000),
        (None, 500, 500),
        ("damaged", 2000, 2000),
    ],
)
def test_what_nobody_named_stays_as_the_run_began(
    tmp_path: Path, began: Any, given: int | None, kept: int | None
) -> None:
    """What somebody named, then or now, is compared like all other fields."""
    config = make_config()
    config = replace(config, dataset=replace(config.dataset, max_validation_rows=given))
    assert with_kept_limit(config, None) == config
    assert with_kept_limit(config, tmp_path) == config
    for step, text in ((4, json.dumps({"config": {"dataset": {"max_validation_rows": began}}})), (6, "{")):
        (tmp_path / f"step-{step:08d}").mkdir()
        (tmp_path / f"step-{step:08d}/run.json").write_text("[]" if began == "damaged" else text, encoding="utf-8")
    found = with_kept_limit(config, tmp_path)
    assert found.dataset.max_validation_rows == kept
    assert replace(found, dataset=config.dataset) == config


def test_the_base_is_evaluated_again_where_the_rows_are_encoded_otherwise(caplog: pytest.LogCaptureFixture) -> None:
    """Losses before and after the training are of the same tokens."""
    before = Evaluation(sums=(1.0,), tokens=(2,))
    record: Any = SimpleNamespace(identity={}, before=before)
    checkpoint: Any = SimpleNamespace(step=4)
    saved = Saved(checkpoint=checkpoint, record=record, own=True)
    assert saved.before({"dataset (encoding)": "1"}) is before
    assert not caplog.messages
    assert saved.before({"dataset (encoding)": "2"}) is None
    assert "the base model is evaluated on them again" in caplog.text
