"""What a training pod's `/metrics` says, and when it says nothing."""

import dataclasses
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer.conftest import make_config
from tests.trainer.runs import Workplace
from tests.trainer.test_reporting import step
from tests.unit.builders import make_resolved
from tests.unit.fit_models import LLAMA_2_7B

from lora_trainer.distributed.activity import Activity
from lora_trainer.distributed.collectives import Ranks
from lora_trainer.distributed.reports import Counters, GpuMemory, Report, Reporter
from lora_trainer.host.metrics import TrainingMetrics
from lora_trainer.host.pulse import Pulse, ticks_of
from lora_trainer.host.supervisor import Settings, Supervisor
from lora_trainer.model.device import Device
from lora_trainer.plan.families import architecture_of
from lora_trainer.spec.progress import Phase, Progress
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train.reporting import ReportingCallback
from lora_trainer.train.resolve_auto import peak_share

H100 = Device(torch_device=torch.device("cuda", 1), name="NVIDIA H100 80GB HBM3", dtype=torch.bfloat16)
MEMORY = GpuMemory(gpu=1, allocated_bytes=5, reserved_bytes=7, peak_bytes=6)


def leading(now: float = 1000.0) -> TrainingMetrics:
    """Of the pod that has the run's numbers."""
    metrics = TrainingMetrics(wall_clock=lambda: now)
    metrics.leads = True
    return metrics


def samples(metrics: TrainingMetrics) -> dict[str, float]:
    """What a scrape brings, by name and labels, histograms without their buckets."""
    lines = (line.rpartition(" ") for line in metrics.text().decode().splitlines() if not line.startswith("#"))
    return {name.removeprefix("lora_training_"): float(value) for name, _, value in lines if "_bucket" not in name}


def on_gpu(allocated: float, reserved: float, peak: float) -> dict[str, float]:
    """The memory of the second GPU."""
    values = {"allocated": allocated, "reserved": reserved, "peak": peak}
    return {f'gpu_memory_{kind}_bytes{{gpu="1"}}': value for kind, value in values.items()}


COUNTERS = {
    "tokens_total": 0.0,
    "samples_total": 0.0,
    'checkpoint_saves_total{result="ok"}': 0.0,
    'checkpoint_saves_total{result="failed"}': 0.0,
    "nonfinite_values_total": 0.0,
    "scaled_down_steps_total": 0.0,
    "micro_batch_halvings_total": 0.0,
    "step_duration_seconds_count": 0.0,
    "step_duration_seconds_sum": 0.0,
}


def test_before_the_first_report_there_are_counters_of_0_and_the_phase_alone() -> None:
    """No loss of 0 and no heartbeat of 1970."""
    assert samples(leading()) == {**COUNTERS, 'phase{phase="Starting"}': 1.0}


def test_every_quantity_is_there_once_it_is_known() -> None:
    """And only then: an evaluation knows no step's duration."""
    metrics = leading()
    metrics.update(Progress(phase=Phase.EVALUATING, resolved=make_resolved()), None)
    evaluating = {'phase{phase="Evaluating"}': 1.0, "heartbeat_timestamp_seconds": 1000.0}
    assert samples(metrics) == {**COUNTERS, **evaluating}
    metrics.checkpoint_interval(600)
    metrics.memory(MEMORY)
    progress = Progress(
        phase=Phase.TRAINING,
        step=3,
        total_steps=9,
        epoch=0.5,
        loss=2.5,
        eval_loss=2.75,
        learning_rate=0.25,
        tokens_per_second=100.0,
        peak_memory_bytes=64,
    )
    metrics.update(progress, Counters(tokens=5, rows=2, gradient_norm=1.5, step_seconds=0.7, mfu=0.375, fill=0.75))
    metrics.update(progress, Counters(tokens=9, rows=3, left_out=2, scaled_down=4, saves=3, failed_saves=1, halvings=1))
    assert samples(metrics) == {
        'phase{phase="Training"}': 1.0,
        "heartbeat_timestamp_seconds": 1000.0,
        "loss": 2.5,
        "eval_loss": 2.75,
        "learning_rate": 0.25,
        "grad_norm": 1.5,
        "step": 3.0,
        "steps": 9.0,
        "epoch": 0.5,
        "tokens_per_second": 100.0,
        "mfu_ratio": 0.375,
        "micro_batch_fill": 0.75,
        "peak_memory_bytes": 64.0,
        "checkpoint_interval_seconds": 600.0,
        "unsaved_seconds": 0.0,
        "checkpoint_last_success_timestamp_seconds": 1000.0,
        "step_duration_seconds_count": 1.0,
        "step_duration_seconds_sum": 0.7,
        "tokens_total": 9.0,
        "samples_total": 3.0,
        'checkpoint_saves_total{result="ok"}': 3.0,
        'checkpoint_saves_total{result="failed"}': 1.0,
        "nonfinite_values_total": 2.0,
        "scaled_down_steps_total": 4.0,
        "micro_batch_halvings_total": 1.0,
        **on_gpu(5.0, 7.0, 6.0),
    }


def test_the_duration_of_a_step_falls_into_its_bucket() -> None:
    """A quantile over the run is then one expression."""
    metrics = leading()
    metrics.update(Progress(), Counters(step_seconds=0.7))
    text = metrics.text().decode()
    assert 'lora_training_step_duration_seconds_bucket{le="0.5"} 0.0' in text
    assert 'lora_training_step_duration_seconds_bucket{le="1.0"} 1.0' in text


def test_what_is_not_saved_are_steps_since_the_last_save() -> None:
    """And no evaluation, however long. Where nothing is saved at all, nobody counts it."""
    metrics, unclaimed = leading(), leading()
    metrics.checkpoint_interval(600)
    saves = [(0, 2.0), (0, 3.0), (0, None), (1, None), (1, 4.0)]
    found = []
    for number, seconds in saves:
        for each in (metrics, unclaimed):
            each.update(Progress(phase=Phase.EVALUATING), Counters(saves=number, step_seconds=seconds))
        found.append(samples(metrics)["unsaved_seconds"])
    assert found == [2.0, 5.0, 5.0, 0.0, 4.0]
    assert "unsaved_seconds" not in samples(unclaimed)


def test_another_node_has_the_memory_of_its_gpus_alone() -> None:
    """Sums and joins over a run's pods would else have its loss twice."""
    metrics = leading()
    metrics.leads = False
    metrics.update(Progress(phase=Phase.TRAINING, loss=1.0), Counters(tokens=5))
    metrics.memory(MEMORY)
    assert samples(metrics) == on_gpu(5.0, 7.0, 6.0)


def test_what_a_training_alone_has_ends_with_it() -> None:
    """A verification saves nothing, and the training's processes have given their memory back."""
    metrics = leading()
    metrics.stage("train")
    metrics.checkpoint_interval(600)
    metrics.memory(MEMORY)
    metrics.update(Progress(phase=Phase.TRAINING, tokens_per_second=1.0, loss=2.0), Counters(mfu=0.5))
    metrics.stage("verify")
    left = samples(metrics)
    ended = ("gpu_", "tokens_per", "mfu", "checkpoint_interval", "unsaved")
    assert not [name for name in left if name.startswith(ended)]
    assert left["loss"] == 2.0


def test_the_heart_beats_with_each_stage_and_while_one_works_that_reports_nothing() -> None:
    """A model that loads for minutes, and a result that is uploaded, are signs of life."""
    now = [1.0]
    metrics = TrainingMetrics(wall_clock=lambda: now[0])
    metrics.leads = True
    for name in ("prepare", "train", "verify", "merge", "publish"):
        now[0] += 1
        metrics.stage(name)
        assert samples(metrics)["heartbeat_timestamp_seconds"] == now[0]
    now[0] = 50.0
    assert samples(metrics)["heartbeat_timestamp_seconds"] == 6.0
    metrics.stirs = lambda: True
    assert samples(metrics)["heartbeat_timestamp_seconds"] == 50.0


def test_a_process_stirs_while_it_takes_cpu_time() -> None:
    """One that waits takes next to none, another process begins anew, and nobody looks twice within a moment."""
    pid: list[int | None] = [None]
    looks = iter([100, 101, 160, 161, 500, 500])
    clock = itertools.count(0.0, 10.0)
    pulse = Pulse(lambda: pid[0], lambda _: next(looks), lambda: next(clock))
    assert not pulse.stirs(), "there is no process"
    pid[0] = 7
    assert [pulse.stirs() for _ in range(4)] == [False, True, True, True]
    pid[0] = 8
    assert [pulse.stirs() for _ in range(2)] == [False, False]
    hasty = Pulse(lambda: 7, lambda _: pytest.fail("looked again"), lambda: 0.0)
    hasty._seen = (7, 0.0, 5)
    assert not hasty.stirs()


def test_a_wait_of_minutes_is_no_work() -> None:
    """A timer's tick in a hundred seconds is below a thousandth of a core."""
    looks, clock = iter([0, 9, 20]), iter([0.0, 100.0, 200.0])
    pulse = Pulse(lambda: 7, lambda _: next(looks), lambda: next(clock))
    assert [pulse.stirs() for _ in range(3)] == [False, False, True]


def test_cpu_time_is_that_of_a_process_and_of_all_that_it_started(tmp_path: Path) -> None:
    """Names hold blanks and parentheses; a process that has just ended is none."""
    for pid, name, parent, used in ((10, "a (b) c", 1, 5), (11, "x", 10, 7), (12, "y", 11, 11), (13, "z", 1, 100)):
        (tmp_path / str(pid)).mkdir()
        fields = ["S", str(parent), *["0"] * 9, str(used), "1", *["0"] * 20]
        (tmp_path / str(pid) / "stat").write_text(f"{pid} ({name}) {' '.join(fields)}\n")
    (tmp_path / "14").mkdir()
    (tmp_path / "14/stat").write_text("14 (gone")
    assert ticks_of(10, tmp_path) == 5 + 7 + 11 + 3
    assert ticks_of(99, tmp_path) == 0


def test_the_system_tells_the_cpu_time_of_a_process_that_works() -> None:
    """The real /proc, by a loop of a quarter second."""
    loop = "import time\nwhile time.process_time() < 0.25: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", loop], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert ticks_of(process.pid) >= 20
        process.communicate("\n")


def test_memory_that_any_process_reports_is_no_sign_of_life_of_the_training(workplace: Workplace) -> None:
    """The first one may hang meanwhile; what else is reported is one."""
    supervisor = supervisor_of(workplace)
    supervisor._begin("train")
    supervisor._take(Report(progress=Progress(phase=Phase.TRAINING, step=1, total_steps=2)))
    heard_at = supervisor.watch._heard_at_s
    supervisor._take(Report(memory=MEMORY))
    assert supervisor.watch._heard_at_s == heard_at
    assert supervisor.progress.step == 1
    supervisor.metrics.leads = True
    left = samples(supervisor.metrics)
    assert left["step"] == 1.0
    assert left['gpu_memory_peak_bytes{gpu="1"}'] == 6.0
    del supervisor.metrics._values["heartbeat_timestamp_seconds"]
    supervisor._take(Report(activity=Activity(what="evaluating rows")))
    assert "heartbeat_timestamp_seconds" in samples(supervisor.metrics)


@pytest.mark.parametrize(("index", "leads"), [("0", True), ("1", False)])
def test_the_first_node_leads(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, index: str, *, leads: bool
) -> None:
    """As the Job numbers them."""
    monkeypatch.setattr(Supervisor, "_run", lambda *_: "led")
    monkeypatch.setattr(Supervisor, "_take_part", lambda *_: "took part")
    for name, value in (("JOB_COMPLETION_INDEX", index), ("LORA_RENDEZVOUS", "tune-x-1-0.tune-x-1:29400")):
        monkeypatch.setenv(name, value)
    supervisor = supervisor_of(workplace, resources={"nodes": 2}, checkpoint={"volumeClaimName": "adapters"})
    assert str(supervisor.run()) == ("led" if leads else "took part")
    assert supervisor.metrics.leads is leads


def supervisor_of(workplace: Workplace, **sections: Any) -> Supervisor:
    """One that serves nothing."""
    volumes = Volumes(claims=workplace.claims, config_maps=workplace.root)
    settings = Settings(volumes=volumes, port=None, work=workplace.root)
    return Supervisor(config=make_config(**sections), settings=settings)


def test_each_process_reports_the_memory_of_its_gpu_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that leaves all else to the first."""
    for name, value in (("memory_allocated", 5), ("memory_reserved", 7), ("max_memory_allocated", 6)):
        monkeypatch.setattr(torch.cuda, name, lambda _device, value=value: value)
    read_end, write_end = os.pipe()
    now = [0.0]
    narrator = ReportingCallback(Reporter(write_end, failures_only=True), H100, clock=lambda: now[0])
    for number in range(1, 5):
        now[0] += 6
        narrator.stepped(step(number, 4))
    os.close(write_end)
    with os.fdopen(read_end) as lines:
        reports = [Report.from_line(line) for line in lines]
    assert reports == [Report(memory=MEMORY)] * 2


def test_the_share_of_the_peak_is_by_4n_operations_a_token(cpu: Device) -> None:
    """Llama-2-7B on two H100 at 10,000 tokens a second; nothing where the peak or the model is not known."""
    shape = architecture_of(LLAMA_2_7B)
    two = dataclasses.replace(Ranks(), world=2)
    share = peak_share(shape, H100, two)
    assert share is not None
    assert 10_000 * share == pytest.approx(4 * 6.607e9 * 10_000 / (2 * 989.4e12), rel=0.001)
    assert peak_share(shape, cpu, two) is None
    assert peak_share(None, H100, two) is None
    assert peak_share(shape, dataclasses.replace(H100, dtype=torch.float32), two) is None
    assert peak_share(shape, dataclasses.replace(H100, name="GTX 1080"), two) is None


def test_a_step_reports_the_share_that_its_speed_is(cpu: Device) -> None:
    """As a ratio from 0 to 1."""
    read_end, write_end = os.pipe()
    narrator = ReportingCallback(Reporter(write_end), cpu, peak_share=0.05)
    narrator.stepped(step(1, 2))
    narrator.saved(1)
    os.close(write_end)
    with os.fdopen(read_end) as lines:
        counters = [report.counters for report in map(Report.from_line, lines)]
    assert [one.mfu for one in counters if one is not None] == [0.25, None]
