"""What a manifest says of a run's estimates."""

import dataclasses
import json
from pathlib import Path

import pytest
from tests.trainer.test_artifact import make_manifest
from tests.unit.reports import make_plan

from lora_trainer.artifact.manifest import read_manifest, write_sealed
from lora_trainer.artifact.sealed import MANIFEST
from lora_trainer.model.device import Device
from lora_trainer.result.export import measurable_peak, measured_by
from lora_trainer.training.evaluate import Evaluation
from lora_trainer.training.listener import Trained


@pytest.mark.parametrize(("device_bytes", "measurable"), [(80 * 2**30, 9_250_000_000), (None, 10_000_000_000)])
def test_a_drivers_own_memory_is_no_part_of_a_measured_peak(device_bytes: int | None, measurable: int) -> None:
    """0.75 GB on a GPU; without one the process is measured, all of it."""
    assert measurable_peak(make_plan(peak_bytes=10_000_000_000, device_bytes=device_bytes)) == measurable


def test_estimates_are_in_the_manifest_where_there_was_a_plan(tmp_path: Path, cpu: Device) -> None:
    """Of memory and of time, beside what was measured."""
    row = Evaluation(sums=(2.0,), tokens=(1,))
    found = []
    for plan in (make_plan(peak_bytes=10_000_000_000, seconds=3600), None):
        trained = Trained(steps=1, tokens=1, loss=1.0, seconds=1.0)
        measured = measured_by(trained, row, row, cpu, plan=plan, held_out=True, seconds=1.0, resumed=None)
        write_sealed(tmp_path, dataclasses.replace(make_manifest("uid-1"), measured=measured))
        assert read_manifest(tmp_path).measured == measured
        written = json.loads((tmp_path / MANIFEST).read_text(encoding="utf-8"))["measured"]
        found.append((written.get("estimated_peak_memory_bytes"), written.get("estimated_seconds")))
    assert found == [(9_250_000_000, 3600), (None, None)]
