"""A run that asks for RDMA and cannot use it says so: NCCL takes TCP in silence."""

import os
import resource
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.trainer.conftest import make_config

from lora_trainer.host import rdma
from lora_trainer.host.rdma import obstacle
from lora_trainer.host.supervisor import Settings, Supervisor
from lora_trainer.storage.volumes import Volumes

MOST, LITTLE = resource.RLIM_INFINITY, 8 * 2**20
THERE, ABSENT = "libc.so.6", "libnowhere.so.1"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the test's own environment has."""
    for name in [name for name in os.environ if name.startswith("NCCL_IB_")]:
        monkeypatch.delenv(name)


def pod(monkeypatch: pytest.MonkeyPatch, folder: Path, *, device: bool, library: str, locked: int) -> None:
    """Have what a container sees: a device of a plugin, NCCL's library by another name, the runtime's limit."""
    if device:
        (folder / "uverbs0").touch()
    monkeypatch.setattr(rdma, "DEVICES", folder)
    monkeypatch.setattr(rdma, "LIBRARY", library)
    monkeypatch.setattr(resource, "getrlimit", lambda _what: (locked, locked))


@pytest.mark.parametrize(
    ("environment", "device", "library", "locked", "said"),
    [
        ({}, True, THERE, MOST, None),
        ({"NCCL_IB_HCA": "mlx5"}, True, THERE, MOST, None),
        ({}, False, ABSENT, LITTLE, None),
        ({"NCCL_DEBUG": "INFO"}, False, ABSENT, LITTLE, None),
        ({"NCCL_IB_DISABLE": "1", "NCCL_IB_HCA": "mlx5"}, True, ABSENT, LITTLE, None),
        ({}, True, ABSENT, MOST, "libnowhere.so.1 cannot be loaded (libnowhere.so.1: cannot open"),
        ({}, True, ABSENT, MOST, "use the release's trainer image, or install libibverbs1 and ibverbs-providers"),
        ({}, True, THERE, LITTLE, "a process may lock 8192 KiB of memory"),
        ({"NCCL_IB_DISABLE": "0"}, True, THERE, LITTLE, "set LimitMEMLOCK=infinity"),
        ({"NCCL_IB_HCA": "mlx5"}, False, THERE, MOST, "NCCL_IB_HCA is set, but the pod has no device"),
    ],
)
def test_what_keeps_a_pod_from_rdma_is_named_where_a_run_asks_for_it(
    *,
    environment: dict[str, str],
    device: bool,
    library: str,
    locked: int,
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """By a device, however its resource is named, or by NCCL's variables."""
    pod(monkeypatch, tmp_path, device=device, library=library, locked=locked)
    found = obstacle(environment)
    assert (found is None) if said is None else (found is not None and said in found), found


@pytest.mark.parametrize(("nodes", "gpus", "warnings"), [(2, 4, 1), (1, 4, 0), (2, 0, 0)])
def test_a_node_warns_once_where_gpus_meet_over_the_network(
    *,
    nodes: int,
    gpus: int,
    warnings: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Before the training begins, and not in each of its processes."""
    pod(monkeypatch, tmp_path, device=True, library=ABSENT, locked=MOST)
    settings = Settings(volumes=Volumes(claims=tmp_path, config_maps=tmp_path), port=None)
    supervisor = Supervisor(config=make_config(resources={"nodes": nodes, "gpus": gpus}), settings=settings)
    begun: list[Any] = []
    stages: Any = SimpleNamespace(run=lambda *given: begun.append((given, len(caplog.records))))
    supervisor._watched_training(stages)
    assert begun == [(("train",), warnings)]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warnings
    assert all(message.startswith("RDMA between the nodes: libnowhere.so.1") for message in caplog.messages)
