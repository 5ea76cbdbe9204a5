"""Processes that do not come to be connected: the time limit on what waits without one."""

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.trainer.conftest import make_config
from tests.trainer.runs import PATIENCE_S

from lora_trainer.distributed.deadline import connecting
from lora_trainer.distributed.reports import Report
from lora_trainer.spec.exit_codes import ExitCode
from lora_trainer.spec.reasons import Reason

if TYPE_CHECKING:
    from lora_trainer.errors import TrainerError

_STUCK = """
import sys, time
import torch
import torch.distributed as dist
from torch.distributed import device_mesh
from lora_trainer import stage
from lora_trainer.model.device import Device
from lora_trainer.model.sharding import mesh_over
from lora_trainer.distributed import deadline
from lora_trainer.distributed.group import Group, join
deadline._LEAST_S = 0.1
dist.init_process_group = device_mesh.init_device_mesh = lambda *_, **__: time.sleep(3600)
cpu = torch.device("cpu")
def groups():
    with join(cpu, 0.1):
        pass
def meshes():
    mesh_over(Device(torch_device=cpu, name="cpu", dtype=torch.float32), Group(world=2, timeout_s=0.1), 2)
stage._STAGES["train"] = lambda *_: {what}()
sys.exit(stage.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("what", ["groups", "meshes"])
@pytest.mark.parametrize("nodes", [1, 2])
def test_a_process_that_gets_no_connection_to_the_others_ends_and_names_the_network(
    tmp_path: Path, what: str, nodes: int
) -> None:
    """NCCL waits for ever where its packets do not come through. Those of one node have no network."""
    config, report = tmp_path / "config.json", tmp_path / "report"
    config.write_text(make_config().to_json())
    report.touch()
    arguments = ["train", "--config", config, "--claims", tmp_path, "--configmaps", tmp_path, "--report", report]
    places = {"WORLD_SIZE": "2", "RANK": "0", **({"LORA_PROCESS_STORE": str(tmp_path / "store")} if nodes == 1 else {})}
    command = [sys.executable, "-c", _STUCK.format(what=what), *map(str, arguments)]
    ended = subprocess.run(command, env={**os.environ, **places}, timeout=PATIENCE_S, check=False)
    assert ended.returncode == ExitCode.TRANSIENT
    failure = Report.from_line(report.read_text()).failure
    assert failure is not None
    assert failure.reason is Reason.PEER_FAILED
    remedy = "set NCCL_SOCKET_IFNAME in defaults.environment to the nodes' common network interface)"
    assert (remedy in failure.message) == (nodes > 1)
    assert "no connections between all processes within 0 s" in failure.message


@pytest.mark.parametrize(("timeout_s", "limit_s"), [(1800, 3600), (60, 600)])
def test_a_process_that_loads_for_long_before_it_connects_has_the_time_for_it(
    monkeypatch: pytest.MonkeyPatch, timeout_s: float, limit_s: float
) -> None:
    """Else it would be ended again and again; the sentence names the setting for more."""
    given: list[tuple[float, TrainerError]] = []
    monkeypatch.setattr("lora_trainer.distributed.deadline.within", lambda *limit: given.append(limit))
    connecting(timeout_s)
    ((seconds, error),) = given
    assert seconds == limit_s
    assert "raise stallTimeoutSeconds in the operator's configuration" in str(error)


def test_a_process_that_is_too_late_ends_also_where_nobody_reads_its_report() -> None:
    """The supervisor may be gone: an exception would end the thread of the limit alone."""
    program = """
import os, time
from lora_trainer.errors import PeerFailedError
from lora_trainer.distributed.deadline import reported_by, within
from lora_trainer.distributed.reports import Reporter
reads, writes = os.pipe()
os.close(reads)
with reported_by(Reporter(writes).failure), within(0.1, PeerFailedError("late")):
    time.sleep(20)
"""
    ended = subprocess.run([sys.executable, "-c", program], timeout=PATIENCE_S, check=False)
    assert ended.returncode == ExitCode.TRANSIENT


def test_work_that_is_done_in_time_is_left_alone() -> None:
    """However long the process goes on."""
    program = """
import time
from lora_trainer.errors import PeerFailedError
from lora_trainer.distributed.deadline import within
with within(0.2, PeerFailedError("late")):
    pass
time.sleep(1)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=PATIENCE_S, check=False).returncode == 0
