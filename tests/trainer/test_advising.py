"""What a whole training advises: in its log, once each, and in the manifest."""

import itertools
import json
import logging
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.trainer import tiny
from tests.trainer.conftest import make_config
from tests.trainer.runs import prepared
from tests.trainer.test_held_out import REWRITES

from lora_trainer.distributed.reports import Reporter
from lora_trainer.errors import NonFiniteLossError
from lora_trainer.plan.hints import spoken
from lora_trainer.result.export import write_result
from lora_trainer.spec.advice import Code
from lora_trainer.spec.reasons import Reason
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.manifest import Manifest, read_manifest
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train import evaluator, loop
from lora_trainer.train.evaluate import Evaluation, evaluate
from lora_trainer.train.run import RunContext, run_training
from lora_trainer.train.step import run_step


def trained(folder: Path, model: Path, rows: int, turns: int = 1, **sections: Any) -> Manifest:
    """The manifest of a training in this process, on some chats of which a fifth is held out."""
    claims = folder / "claims"
    chats = [
        {name: value * (turns if name == "messages" else 1) for name, value in row.items()} for row in tiny.chats(rows)
    ]
    tiny.write_jsonl(claims / "data/train.jsonl", chats)
    shutil.copytree(model, claims / "models/tiny")
    (folder / "adapter").mkdir()
    config, volumes = make_config(**sections), Volumes(claims=claims)
    data = prepared(config, volumes, folder / "prepared")
    where = folder / "adapter"
    run_training(
        config,
        data,
        volumes,
        Hub(),
        folder=where,
        reporter=Reporter(None),
        run_context=RunContext(),
        write_result=write_result,
    )
    return read_manifest(where)


def said(lines: list[str], code: Code, manifest: Manifest) -> int:
    """How often the log says what the manifest advises under a code."""
    (line,) = [one.line for one in spoken(manifest.advice) if one.code is code]
    return sum(line in logged for logged in lines)


def test_evaluations_on_the_way_show_where_the_loss_is_going(
    tmp_path: Path, tiny_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With what was known before, and once each."""
    training = {"maxSteps": 8, "effectiveBatchSize": 32, "learningRate": "0.01", "evalSteps": 4}
    with caplog.at_level(logging.INFO):
        manifest = trained(tmp_path, tiny_folder, 120, training=training)
    assert {Code.SEVERAL_EPOCHS, Code.STILL_IMPROVING} <= {one.code for one in manifest.advice}
    assert [said(caplog.messages, code, manifest) for code in (Code.SEVERAL_EPOCHS, Code.STILL_IMPROVING)] == [1, 1]


def test_the_curve_shows_the_best_weights_at_their_own_step(tmp_path: Path, tiny_folder: Path) -> None:
    """And not at the last one, where it would end in a fall that no training made."""
    training = {"maxSteps": 40, "effectiveBatchSize": 8, "learningRate": "0.1", "evalSteps": 2, "schedule": "Constant"}
    manifest = trained(tmp_path, tiny_folder, 40, training={**training, "earlyStoppingPatience": 2})
    lines = (tmp_path / "adapter/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    evaluated = [record for line in lines if "eval_loss" in (record := json.loads(line))]
    measured = manifest.measured
    assert measured.best_step is not None
    assert measured.best_step < measured.steps
    assert [record["step"] for record in evaluated] == list(range(0, measured.steps + 1, 2))
    losses = {record["step"]: record["eval_loss"] for record in evaluated}
    assert losses[measured.best_step] == pytest.approx(measured.eval_loss_after, abs=1e-5)
    assert losses[measured.steps] > measured.eval_loss_after


def test_few_held_out_rows_are_warned_of(tmp_path: Path, tiny_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At the beginning, and once."""
    with caplog.at_level(logging.INFO):
        manifest = trained(tmp_path, tiny_folder, 20, training={"maxSteps": 1, "learningRate": "0.001"})
    assert [one.code for one in manifest.advice] == ["FewHeldOutRows"]
    assert said(caplog.messages, Code.FEW_HELD_OUT_ROWS, manifest) == 1
    (record,) = [record for record in caplog.records if record.getMessage().startswith("advice: ")]
    assert record.levelno == logging.WARNING
    assert "Held-out rows: 4" in record.getMessage()


def test_content_that_is_not_read_is_warned_of(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run without preflight, too."""
    monkeypatch.setattr(tiny, "chats", lambda rows: [{"text": f"Ahoy {i}", "summary": "hi"} for i in range(rows)])
    manifest = trained(tmp_path, tiny_folder, 20, training={"maxSteps": 1, "learningRate": "0.001"})
    assert Code.COLUMNS_NOT_READ in [one.code for one in manifest.advice]


def test_rows_are_counted_whatever_many_samples_they_become(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a template that rewrites earlier answers a conversation of eight answers becomes eight samples."""
    model = tiny.make_model(tmp_path / "model", chat_template=REWRITES)
    with caplog.at_level(logging.INFO):
        manifest = trained(tmp_path, model, 20, turns=8, training={"maxSteps": 1, "learningRate": "0.001"})
    assert said(caplog.messages, Code.FEW_HELD_OUT_ROWS, manifest) == 1
    assert manifest.dataset.validation_samples == 32
    assert "32 held out (of 4 rows)" in caplog.text
    assert re.search(r"loss before training \S+ ± \S+ on 4 held-out rows \(32 samples\)", caplog.text)


def test_last_steps_that_were_left_out_are_told(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No third step came to end the run: the adapter is that of the last good step, and it computes."""
    factors = iter((1.0, math.nan, math.nan))
    monkeypatch.setattr(loop, "run_step", lambda *given, **more: run_step(*given, **more) * next(factors))
    manifest = trained(tmp_path, tiny_folder, 20, training={"maxSteps": 3, "learningRate": "0.001"})
    assert caplog.text.count("the step is left out") == 2
    assert math.isfinite(manifest.measured.train_loss)


@pytest.mark.parametrize(
    ("nth", "sentence"),
    [
        (1, "the loss before training is nan: the base model itself gives no number for a row; set training.precision"),
        (2, "the loss after training is nan: lower training.learningRate, and use BF16 or FP32 instead of FP16"),
    ],
    ids=["the base", "the adapter"],
)
def test_a_model_that_gives_no_number_is_no_result(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, *, nth: int, sentence: str
) -> None:
    """A base before anything is trained; an adapter whose last steps may all have been taken."""
    calls = itertools.count(1)

    def evaluated(*given: Any, **more: Any) -> Evaluation:
        found = evaluate(*given, **more)
        return replace(found, sums=(math.nan, *found.sums[1:])) if next(calls) == nth else found

    monkeypatch.setattr(evaluator, "evaluate", evaluated)
    with pytest.raises(NonFiniteLossError, match=sentence) as ended:
        trained(tmp_path, tiny_folder, 20, training={"maxSteps": 1, "learningRate": "0.001"})
    assert ended.value.reason is Reason.NON_FINITE_LOSS
    assert not (tmp_path / "adapter/manifest.json").exists()
