"""The comparison with TRL's trainer: its rows are seen to be apart, or not, by trial."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.comparison import measuring, plain, sft
from benchmarks.comparison import ours as ours_module
from benchmarks.comparison.job import Job, Row, learned_in, training_rows
from benchmarks.comparison.measuring import Clock
from benchmarks.comparison.plain import new_model
from benchmarks.comparison.settings import EFFECTIVE, Form, Setting

from lora_trainer.model.device import Device
from lora_trainer.spec.config import ActivationCheckpointing
from lora_trainer.spec.gpus import find_gpu
from lora_trainer.train.loop import Training
from lora_trainer.train.state import copy_of, trainable

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


class Recorder:
    """In place of both libraries' trainers: notes the rows and the adapter that each training begins with, and changes
    the adapter."""

    def __init__(self) -> None:
        self.settings: list[Setting] = []
        self.rows: list[int] = []
        self.begun: list[dict[str, torch.Tensor]] = []
        self.resets: list[int] = []

    def train(self, _job: Job, setting: Setting, model: Any, data: list[Row], clock: Clock | None = None) -> Clock:
        """As `plain.train`."""
        clock = clock or Clock(torch.device("cpu"))
        self.settings.append(setting)
        self.rows.append(len(data))
        self.begun.append(copy_of(trainable(model)))
        clock.stamp()
        with torch.no_grad():
            for parameter in trainable(model).values():
                parameter.add_(1)
        clock.stamp()
        return clock

    @contextlib.contextmanager
    def trainer_of(self, job: Job, setting: Setting, model: Any, data: list[Row], clock: Clock) -> Iterator[Any]:
        """As `sft.trainer_of`."""
        recorder = self

        class Trainer:
            def train(self) -> None:
                recorder.train(job, setting, model, data, clock)

        yield Trainer()

    def reset(self) -> None:
        """A new measurement of memory."""
        self.resets.append(len(self.rows))


@pytest.mark.parametrize("part", ["plain", "SFTTrainer"])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_each_trainer_has_used_the_gpu_before_its_clock_starts(
    part: str, device: str, tiny_folder: Path, cpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ours has, which tries its kernels: what a GPU's first kernels take is nobody's speed. The training that is
    measured begins with a fresh adapter; on a CPU, whose most memory counts from the start on, it is the only one."""
    recorder = Recorder()
    for module in (measuring, plain, sft):
        monkeypatch.setattr(module, "device_of", lambda _: cpu)
    monkeypatch.setattr(plain, "train", recorder.train)
    monkeypatch.setattr(sft, "trainer_of", recorder.trainer_of)
    monkeypatch.setattr(Device, "reset_peak_memory", lambda _: recorder.reset())
    setting = SETTINGS[Form.PADDED]
    rows = [1, EFFECTIVE] if device == "cuda" else [EFFECTIVE]
    job = replace(job_of(tiny_folder), part=part, device=device, setting=setting)
    (plain.plain if part == "plain" else sft.sft)(job)
    assert (recorder.rows, recorder.settings) == (rows, [setting] * len(rows))
    assert recorder.resets == [len(rows) - 1]
    fresh = copy_of(trainable(new_model(job, setting.attention)))
    begun = recorder.begun[-1]
    assert begun.keys() == fresh.keys()
    assert all(torch.equal(begun[name], values) for name, values in fresh.items())


@pytest.mark.parametrize("form", Form)
def test_a_row_alone_is_trained_in_every_form(form: Form, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the measured training, with the same setting."""
    clocks: list[Clock] = []
    original = sft.trainer_of

    def look(job: Job, setting: Setting, model: Any, data: list[Row], clock: Clock) -> Any:
        clocks.append(clock)
        return original(job, setting, model, data, clock)

    monkeypatch.setattr(sft, "trainer_of", look)
    job = job_of(tiny_folder)
    sft._warm_up(job, SETTINGS[form], training_rows(job))
    assert [len(clock.stamps) for clock in clocks] == [2]


@pytest.mark.parametrize("recompute", [False, True])
def test_ours_trains_as_a_run_does_on_a_gpu(
    tiny_folder: Path, cpu: Device, monkeypatch: pytest.MonkeyPatch, *, recompute: bool
) -> None:
    """With the micro-batches and the recomputation of its plan: with smaller ones it would be measured below a run."""
    made: list[Training] = []

    def training(**given: Any) -> Training:
        made.append(Training(**given))
        return made[-1]

    monkeypatch.setattr(ours_module, "gpu_of", lambda device: find_gpu("H100"), raising=False)
    monkeypatch.setattr(ours_module, "device_of", lambda job: cpu)
    monkeypatch.setattr(ours_module, "Training", training)
    ours_module.ours(replace(job_of(tiny_folder), part="ours", length=120, recompute=recompute))
    assert made[0].limit.tokens == EFFECTIVE * 120
    wanted = ActivationCheckpointing.FULL if recompute else ActivationCheckpointing.NONE
    assert made[0].adapted.checkpointing is wanted
