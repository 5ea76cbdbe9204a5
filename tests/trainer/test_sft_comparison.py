"""The comparison with TRL's trainer: its rows are seen to be apart, or not, by trial."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.comparison import sft
from benchmarks.comparison.job import Job, learned_in, training_rows
from benchmarks.comparison.measuring import Clock
from benchmarks.comparison.plain import new_model
from benchmarks.comparison.settings import Form, Setting

pytestmark = [
    # Of TRL about attention that is not Flash Attention, and of the libraries about a CPU.
    pytest.mark.filterwarnings("ignore"),
]
SETTINGS = {
    Form.PADDED: Setting(form=Form.PADDED, micro=4, accumulation=4),
    Form.PADDING_FREE: Setting(form=Form.PADDING_FREE, micro=4, accumulation=4),
    Form.PACKED: Setting(form=Form.PACKED, micro=1, accumulation=4, length=64),
}


def job_of(model: Path) -> Job:
    """A step of short rows."""
    return Job(part="SFTTrainer", workload="short", model=str(model), length=48, steps=1, seed=1, threads=1)


@pytest.mark.parametrize("form", Form)
def test_what_rows_see_is_tried(form: Form, tiny_folder: Path) -> None:
    """Positions that begin anew keep rows apart in sdpa, too; without these, a pack's rows see each other."""
    job = job_of(tiny_folder)
    rows = training_rows(job)
    model = new_model(job, "sdpa")
    with sft.trainer_of(job, SETTINGS[form], model, rows, Clock(torch.device("cpu"))) as trainer:
        assert not sft.rows_see_each_other(trainer)
        if form is not Form.PADDED:
            original = trainer.compute_loss

            def blind(model: Any, inputs: dict[str, Any], **others: Any) -> Any:
                return original(model, {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}, **others)

            trainer.compute_loss = blind
            assert sft.rows_see_each_other(trainer)
            trainer.compute_loss = original
        if form is not Form.PACKED:
            assert sft.learned_in_a_step(trainer, SETTINGS[form]) == pytest.approx(learned_in(rows))


def test_a_training_is_measured(tiny_folder: Path) -> None:
    """From its first to its last step; the loss is that of the adapter that was trained, without TRL's patches."""
    found = sft.sft(replace(job_of(tiny_folder), setting=SETTINGS[Form.PACKED]))
    assert found["seconds"] > 0
    assert found["loss"] > 0
