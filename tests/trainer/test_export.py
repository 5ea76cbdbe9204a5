"""What a manifest says of a run's estimates."""

import dataclasses
import json
from pathlib import Path

import pytest
from tests.trainer.conftest import make_config
from tests.trainer.test_manifest import make_manifest
from tests.unit.reports import make_plan

from lora_trainer.model.device import Device
from lora_trainer.result.export import measurable_peak, measured_by
from lora_trainer.spec.config import DeviceConfig
from lora_trainer.storage.manifest import read_manifest, write_sealed
from lora_trainer.storage.sealed import MANIFEST
from lora_trainer.train.evaluate import Evaluation
from lora_trainer.train.guards import LossGuard
from lora_trainer.train.state import StepLoss, TrainerState


@pytest.mark.parametrize(
    ("device_bytes", "nodes", "over", "measurable"),
    [
        (80 * 2**30, 1, None, 9_250_000_000),
        (80 * 2**30, 2, None, 8_550_000_000),
        (80 * 2**30, 2, 8, 7_850_000_000),
        (80 * 2**30, 2, 16, 8_550_000_000),
        (None, 1, None, 10_000_000_000),
    ],
)
def test_what_the_allocator_does_not_give_out_is_no_part_of_a_measured_peak(
    device_bytes: int | None, nodes: int, over: int | None, measurable: int
) -> None:
    """0.75 GB on a GPU, and 0.7 GB of each of NCCL's communicators; without one all of the process is measured."""
    device = DeviceConfig(gpus=1 if nodes == 1 else 8, nodes=nodes)
    plan = make_plan(peak_bytes=10_000_000_000, device_bytes=device_bytes, sharded_over=over)
    assert measurable_peak(plan, device) == measurable


def test_estimates_are_in_the_manifest_where_there_was_a_plan(tmp_path: Path, cpu: Device) -> None:
    """Of memory and of time, beside what was measured."""
    row = Evaluation(sums=(2.0,), tokens=(1,))
    found = []
    for plan in (make_plan(peak_bytes=10_000_000_000, seconds=3600), None):
        trainer_state = TrainerState(
            step=1, tokens=1, seconds=1.0, losses=(StepLoss(loss=1.0, weight=1),), guard=LossGuard()
        )
        measured = measured_by(
            trainer_state, row, row, cpu, config=make_config(), plan=plan, held_out=True, seconds=1.0, resumed=None
        )
        write_sealed(tmp_path, dataclasses.replace(make_manifest("uid-1"), measured=measured))
        assert read_manifest(tmp_path).measured == measured
        written = json.loads((tmp_path / MANIFEST).read_text(encoding="utf-8"))["measured"]
        found.append((written.get("estimated_peak_memory_bytes"), written.get("estimated_seconds")))
    assert found == [(9_250_000_000, 3600), (None, None)]
