"""Which settings of another trainer are tried, and which of them count."""

import math
import subprocess
import time
from dataclasses import asdict, replace

import pytest
from benchmarks import trainer
from benchmarks.comparison.job import Job
from benchmarks.comparison.settings import EFFECTIVE, Form, Setting, Tried, fastest, packs, packs_of_a_step, settings

PADDED = Setting(form=Form.PADDED, micro=2, accumulation=8)


@pytest.mark.parametrize(
    ("tried", "said"),
    [
        (Tried(setting=PADDED, seconds=1.0, learned=1000), ""),
        (Tried(setting=PADDED, seconds=1.0, learned=951), ""),
        (Tried(setting=PADDED, seconds=1.0, learned=949), "949 learned tokens a step against 1000"),
        (Tried(setting=PADDED, seconds=1.0, learned=1051), "1051 learned tokens a step against 1000"),
        (Tried(setting=PADDED, seconds=1.0, learned=1000, see=True), "rows see each other"),
        (Tried(setting=PADDED, trouble="out of memory"), "out of memory"),
    ],
)
def test_a_setting_counts_that_learns_as_much_from_rows_that_are_apart(tried: Tried, said: str) -> None:
    """Within 5 %; what was faster for any other reason is no comparison."""
    assert tried.left_out(1000) == said


def test_the_fastest_is_the_fastest_of_those_that_count() -> None:
    """However fast the others were."""
    slow = Tried(setting=PADDED, seconds=9.0, learned=1000)
    quick = Tried(setting=PADDED, seconds=5.0, learned=1000)
    seen = Tried(setting=PADDED, seconds=1.0, learned=1000, see=True)
    more = Tried(setting=PADDED, seconds=1.0, learned=2000)
    assert fastest([slow, quick, seen, more], 1000) is quick
    with pytest.raises(ValueError, match="empty"):
        fastest([seen, more], 1000)


def test_every_kind_is_tried_by_growing_micro_batch() -> None:
    """Padded, padding-free and packed, with and without Liger; steps of as many rows as ours."""
    lengths = [30] * 48
    found = list(settings(lengths, liger=(True, False), attentions=("sdpa",)))
    assert [(same[0].form, same[0].liger) for same in found] == [
        (form, liger) for liger in (True, False) for form in Form
    ]
    for same in found:
        assert [one.micro for one in same] == sorted(one.micro for one in same)
        for one in same:
            rows = 1 if one.length is None else one.length // 30
            assert one.micro * one.accumulation * rows == pytest.approx(EFFECTIVE, rel=0.05)


def test_packs_are_of_a_length_with_which_a_step_has_as_many_rows_as_ours() -> None:
    """None where none is within 5 %: 16 packs in a micro-batch are more than the rows of a step fill."""
    lengths = [512, 300, 200, *[85] * 45]
    length, accumulation = packs_of_a_step(lengths, 1) or (0, 0)
    assert length >= 512
    assert accumulation / packs(lengths, length) * len(lengths) == pytest.approx(EFFECTIVE, rel=0.05)
    assert packs_of_a_step(lengths, 16) is None


@pytest.mark.parametrize(
    ("lengths", "length", "wanted"), [([10], 10, 1), ([6, 6, 4, 4], 10, 2), ([7, 5, 3, 5], 10, 2), ([9, 9], 10, 2)]
)
def test_packs_are_counted_by_best_fit(lengths: list[int], length: int, wanted: int) -> None:
    """Decreasing."""
    assert packs(lengths, length) == wanted


@pytest.mark.parametrize("setting", [None, Setting(form=Form.PACKED, micro=1, accumulation=3, length=512, liger=True)])
def test_a_job_is_the_same_in_another_process(setting: Setting | None) -> None:
    """By JSON."""
    job = Job(part="ours", workload="short", model="m", length=8, steps=1, seed=1, threads=1, setting=setting)
    assert Job.from_json(job.to_json()) == job


def test_where_no_setting_fits_memory_activations_are_recomputed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the trainer that keeps more would not be compared at all; what never counts is told."""
    job = Job(part="SFTTrainer", workload="full", model="m", length=8, steps=1, seed=1, threads=1)

    def sweep(asked: Job, _ends: float) -> list[dict[str, object]]:
        if not asked.recompute:
            return [asdict(Tried(setting=PADDED, trouble="out of memory"))]
        return [asdict(Tried(setting=PADDED, seconds=2.0, learned=1000))]

    monkeypatch.setattr(trainer, "in_process", sweep)
    assert trainer.at_its_fastest(job, 1000, math.inf) == replace(job, recompute=True, setting=PADDED)
    assert "recomputed: 2.0 s" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no setting of SFTTrainer counts: 1000 learned tokens a step against 2000"):
        trainer.at_its_fastest(job, 2000, math.inf)


def test_a_job_that_is_late_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the sentence by which others know it."""
    job = Job(part="ours", workload="full", model="m", length=8, steps=1, seed=1, threads=1)
    monkeypatch.setattr(trainer, "__file__", "/dev/null/none.py")
    with pytest.raises(SystemExit, match="can't open file"):
        trainer.in_process(job, math.inf)
    with pytest.raises(SystemExit, match=trainer.NO_TIME):
        trainer.in_process(job, time.monotonic() - 1)


@pytest.mark.parametrize(("visible", "seen"), [(None, "0"), ("2,3", "2"), ("GPU-7f,GPU-8a", "GPU-7f"), ("", "")])
def test_each_trainer_sees_one_gpu(monkeypatch: pytest.MonkeyPatch, visible: str | None, seen: str) -> None:
    """Transformers' Trainer takes all that it sees, and learns so many times the rows in a step."""
    environments: list[dict[str, str]] = []

    def run(command: list[str], *, env: dict[str, str], **_: object) -> subprocess.CompletedProcess[str]:
        environments.append(env)
        return subprocess.CompletedProcess(command, 0, "{}", "")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(subprocess, "run", run)
    trainer.in_process(Job(part="ours", workload="full", model="m", length=8, steps=1, seed=1, threads=1), math.inf)
    assert [one["CUDA_VISIBLE_DEVICES"] for one in environments] == [seen]
