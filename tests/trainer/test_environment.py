"""How many threads a stage takes, and how they wait; how its GPU's memory is allocated."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lora_trainer.distributed.cpus import cpu_threads
from lora_trainer.host.child import stage_environment


@pytest.mark.parametrize(
    ("text", "threads"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", None), ("", None)]
)
def test_threads_follow_the_quota_of_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, threads: int | None
) -> None:
    """At least one; without a quota those of the affinity."""
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    (tmp_path / "cpu.max").write_text(text, encoding="ascii")
    assert cpu_threads(tmp_path / "cpu.max") == (threads or 8)
    (tmp_path / "cpu.max").write_text("250000 100000", encoding="ascii")
    assert cpu_threads(tmp_path / "cpu.max") == 3
    assert cpu_threads(tmp_path / "none") == 8


def test_threads_wait_asleep_unless_set_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A spinning thread takes the CPU from the one that it waits for."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert stage_environment()["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert stage_environment()["OMP_WAIT_POLICY"] == "ACTIVE"


def test_collectives_of_gpus_go_through_the_backend_whose_errors_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch 2.15 has another one as its default; the user's own choice counts."""
    monkeypatch.delenv("TORCH_DIST_USE_NCCL2", raising=False)
    program = (
        "from torch.distributed import distributed_c10d as d; d._register_builtin_nccl_backend(); "
        "print(d.Backend._plugins['NCCL'].creator_fn.__name__)"
    )
    for environment, backend in (
        (stage_environment(), "_create_nccl_process_group"),
        ({"TORCH_DIST_USE_NCCL2": "1"}, "_create_nccl2_process_group"),
    ):
        given = {**os.environ, **environment}
        done = subprocess.run([sys.executable, "-c", program], env=given, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == backend
    monkeypatch.setenv("TORCH_DIST_USE_NCCL2", "1")
    assert stage_environment()["TORCH_DIST_USE_NCCL2"] == "1"


def test_the_gpus_memory_is_mapped_piece_by_piece_unless_the_user_sets_the_allocator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a name and a value that PyTorch knows, under whichever name the user wrote another."""
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    environment = {**os.environ, **stage_environment()}
    program = "import torch; print(torch._C._accelerator_getAllocatorSettings())"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "expandable_segments:True"
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    assert "PYTORCH_ALLOC_CONF" not in stage_environment()
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:False")
    assert stage_environment()["PYTORCH_ALLOC_CONF"] == "expandable_segments:False"
