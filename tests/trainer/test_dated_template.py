"""A chat template that writes the date: a run has one, on whatever day its rows are rendered again."""

import shutil
from datetime import date, datetime, tzinfo
from pathlib import Path

import pytest
from tests.trainer import tiny
from tests.trainer.conftest import make_config
from tests.trainer.runs import Workplace, prepared

from lora_trainer.data.chosen_template import Chosen
from lora_trainer.data.formats import Conversation
from lora_trainer.data.messages import Message
from lora_trainer.data.tokens import Encoder
from lora_trainer.distributed.reports import Reporter
from lora_trainer.result.export import write_result
from lora_trainer.result.export_checkpoint import export_checkpoint
from lora_trainer.result.inputs import base_and_rows
from lora_trainer.result.merge_stage import merge_result
from lora_trainer.result.verify import verify
from lora_trainer.spec import codec
from lora_trainer.spec.config import LossOn, Merge, TrainConfig
from lora_trainer.spec.names import run_suffix
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.manifest import Manifest, read_manifest
from lora_trainer.storage.run_folders import FOLDER
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train.run import RunContext, run_training

FIRST, NEXT = date(2026, 7, 26), date(2026, 8, 3)
DATED = (
    "{% if not day is defined %}{% set day = strftime_now('%A %d %B %Y') %}{% endif %}"
    "{{ '<|im_start|>system\\nToday is ' + day + '<|im_end|>\\n' }}" + tiny.CHATML
)
TRAINING = {"maxSteps": 4, "effectiveBatchSize": 4, "learningRate": "0.01"}


def set_clock(monkeypatch: pytest.MonkeyPatch, day: date) -> None:
    """Have it be another day, for this project and for what Transformers gives to templates."""

    class Date(date):
        @classmethod
        def today(cls) -> "Date":
            return cls(day.year, day.month, day.day)

    class Moment(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Moment":
            return cls(day.year, day.month, day.day, 12, tzinfo=tz)

    monkeypatch.setattr("lora_trainer.data.clock.date", Date)
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Moment)


class Runs:
    """Runs of a model with such a template, on claims."""

    def __init__(self, root: Path) -> None:
        model = tiny.make_model(root / "model", chat_template=DATED)
        self.workplace = Workplace.make(root / "work", model)
        self.volumes = Volumes(claims=self.workplace.claims)

    def checkpoints(self, name: str = "tiny") -> Path:
        """Where a run keeps its states."""
        return self.workplace.claims / "adapters" / FOLDER / f"{name}-{run_suffix(name)}"

    def run(self, folder: str, name: str = "tiny", resume_from: str | None = None, **sections: object) -> Path:
        """Train until the end, and where the result is."""
        given = {"training": TRAINING, "checkpoint": {"intervalSteps": 2}, **sections}
        document = codec.encode(make_config(**given))
        document["run"].update(name=name, uid=name)
        document["resume_from"] = resume_from
        config = codec.decode(TrainConfig, document)
        result = self.workplace.root / folder
        result.mkdir()
        self.checkpoints(name).mkdir(parents=True, exist_ok=True)
        run_training(
            config,
            prepared(config, self.volumes, self.workplace.root / "prepared", self.checkpoints(name)),
            self.volumes,
            Hub(),
            folder=result,
            reporter=Reporter(None),
            run_context=RunContext(folder=self.checkpoints(name)),
            write_result=write_result,
        )
        return result


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    """On the test's own claims."""
    return Runs(tmp_path)


def shown(manifest: Manifest, volumes: Volumes) -> str:
    """The first of the rows that a run evaluates on, as text."""
    return str(tiny.make_tokenizer().decode(base_and_rows(manifest, volumes, Hub())[1][0].input_ids))


def test_a_result_is_verified_merged_and_exported_on_another_day(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows have the date of the run, so that its losses are found again."""
    set_clock(monkeypatch, FIRST)
    folder = runs.run("adapter")
    manifest = read_manifest(folder)
    assert manifest.day == FIRST
    set_clock(monkeypatch, NEXT)
    assert verify(folder, runs.volumes, Hub()).difference < 1e-6
    assert "Today is Sunday 26 July 2026" in shown(manifest, runs.volumes)
    merge_result(folder, tmp_path / "merged", Merge.MERGED, runs.volumes, Hub())
    assert read_manifest(tmp_path / "merged").day == FIRST
    exported = tmp_path / "exported"
    verification = export_checkpoint(runs.checkpoints() / "step-00000004", exported, runs.volumes, Hub())
    assert verification.loss == pytest.approx(manifest.measured.eval_loss_after, abs=1e-6)
    assert read_manifest(exported).day == FIRST


def test_an_attempt_on_another_day_goes_on_with_the_date_of_the_first(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps and two resumed ones equal four."""
    set_clock(monkeypatch, FIRST)
    whole = runs.run("whole")
    shutil.rmtree(runs.checkpoints() / "step-00000004")
    set_clock(monkeypatch, NEXT)
    resumed = runs.run("resumed")
    manifest = read_manifest(resumed)
    assert (manifest.measured.resumed_step, manifest.day) == (2, FIRST)
    name = "adapter_model.safetensors"
    assert (resumed / name).read_bytes() == (whole / name).read_bytes()


def test_another_run_goes_on_with_the_date_of_the_one_that_it_names(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its step, since the rows are the same; a run that names none has the date of its own first day."""
    set_clock(monkeypatch, FIRST)
    runs.run("first")
    set_clock(monkeypatch, NEXT)
    longer = read_manifest(runs.run("longer", "longer", resume_from="tiny", training={**TRAINING, "maxSteps": 6}))
    assert (longer.measured.resumed_step, longer.day) == (4, FIRST)
    assert read_manifest(runs.run("other", "other")).day == NEXT


def test_encoders_of_different_days_keep_theirs() -> None:
    """Transformers compiles a template once for all of them."""
    row = Conversation(
        where="line 1", messages=tuple(Message(role=role, content="x") for role in ("user", "assistant"))
    )
    encoders = [
        Encoder(tiny.make_tokenizer(chat_template=DATED), LossOn.COMPLETION, 256, (), Chosen(day=day))
        for day in (FIRST, NEXT)
    ]
    for encoder, day in (*zip(encoders, ("26 July", "03 August"), strict=True),) * 2:
        assert day in encoder.tokenizer.decode(encoder.encode(row).input_ids)
