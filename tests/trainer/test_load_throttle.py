"""How many processes of a node read a base model at a time, where each makes a copy of it in main memory."""

import dataclasses
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lora_trainer.distributed.collectives import ALONE, Ranks
from lora_trainer.model import load_throttle
from lora_trainer.model.device import Device
from lora_trainer.model.load_throttle import copied_bytes, free_memory, readers, throttled
from lora_trainer.model.sharding import weight_bytes
from lora_trainer.result.merged import _unquantized_bytes, rounding
from lora_trainer.spec.config import Quantization
from lora_trainer.storage.base_architecture import parameters_in
from lora_trainer.storage.model_folder import weights_in


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Threads(Ranks):
    """Threads as processes."""

    meeting: threading.Barrier

    def barrier(self) -> None:
        """Wait until every thread is here."""
        self.meeting.wait(timeout=300)


@pytest.mark.parametrize(("at_once", "nodes"), [(1, 1), (2, 1), (3, 1), (4, 1), (1, 2), (2, 2)])
def test_so_many_processes_of_each_node_read_at_a_time(at_once: int, nodes: int) -> None:
    """All of them in the end, and no node waits for another's turn alone."""
    here, meeting = 4 // nodes, threading.Barrier(4)
    wanted, changed = min(at_once, here), threading.Condition()
    reading, most, done = [0] * nodes, [0] * nodes, []

    def read(rank: int) -> None:
        ranks = Threads(rank=rank, world=4, local_rank=rank % here, local_world=here, meeting=meeting)
        with throttled(ranks, at_once):
            node = rank // here
            with changed:
                reading[node] += 1
                most[node] = max(most[node], reading[node])
                changed.notify_all()
                changed.wait_for(lambda: most[node] >= wanted, timeout=120)
            # Whoever begins too early begins before this one ends.
            time.sleep(0.02)
            with changed:
                reading[node] -= 1
        done.append(rank)

    threads = [threading.Thread(target=read, args=(rank,)) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [0, 1, 2, 3]
    assert most == [wanted] * nodes


def test_what_a_model_holds_as_its_files_do_is_not_copied(tmp_path: Path) -> None:
    """Experts one by one become a stack; another type is another copy."""
    whole = {"model.layers.0.mlp.up_proj.weight": torch.zeros(8, 4), "model.layers.0.mlp.experts.up": torch.zeros(2, 3)}
    single = {f"model.layers.0.mlp.experts.{i}.up_proj.weight": torch.zeros(5, 2) for i in range(3)}
    save_file({**whole, **single}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    files = list(tmp_path.glob("*.safetensors"))
    assert copied_bytes(files, torch.float32) == 4 * 30
    assert copied_bytes(files, torch.bfloat16) == 2 * (32 + 6 + 30)


@pytest.mark.parametrize(("free", "at_once"), [(10**9, 4), (400, 2), (1, 1)])
def test_as_many_read_as_memory_has_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, at_once: int
) -> None:
    """At least one; all of them where nothing is copied."""
    monkeypatch.setattr(load_throttle, "free_memory", lambda: free)
    ranks = Ranks(world=4, local_world=4)
    save_file({"a.weight": torch.zeros(40)}, tmp_path / "model.safetensors")
    assert readers(tmp_path, torch.float32, ranks) == 4
    save_file({"a.experts.0.weight": torch.zeros(40)}, tmp_path / "model.safetensors")
    assert readers(tmp_path, torch.float32, ranks) == at_once


def test_a_container_has_room_up_to_its_limit(tmp_path: Path) -> None:
    """The cache of files is given back; without a limit, or without cgroups of version 2, it is the machine's."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 900 kB\nMemAvailable: 500 kB\n", encoding="ascii")
    assert free_memory(tmp_path, meminfo) == 500 * 1024
    (tmp_path / "memory.stat").write_text("anon 1000\nfile 5000\nshmem 500\n", encoding="ascii")
    for limit, room in (("max", 500 * 1024), ("10000", 8500), ("1200", 0), ("99999999", 500 * 1024)):
        (tmp_path / "memory.max").write_text(f"{limit}\n", encoding="ascii")
        assert free_memory(tmp_path, meminfo) == room


def test_a_system_without_proc_has_all_of_its_memory(tmp_path: Path) -> None:
    """A Mac does not say what is free."""
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal:"))
    assert free_memory(tmp_path, tmp_path / "none") == 1024 * int(total.split()[1])


def test_weights_that_a_folder_has_twice_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistral's repositories repeat them in a file of its own names, which Transformers does not read."""
    base: Any = SimpleNamespace(folder=tmp_path)
    device = Device(torch_device=torch.device("cpu"), name="cpu", dtype=torch.float32)
    monkeypatch.setattr(load_throttle, "free_memory", lambda: 400)
    ranks = dataclasses.replace(ALONE, local_world=4)

    def counted() -> tuple[object, ...]:
        taken = weight_bytes(weights_in(tmp_path), torch.float32, Quantization.NONE), parameters_in(tmp_path, "x")
        return *taken, _unquantized_bytes(base, device), rounding(base, device), readers(tmp_path, torch.float32, ranks)

    save_file({"a.experts.0.weight": torch.zeros(40)}, tmp_path / "model.safetensors")
    alone = counted()
    save_file({"w1.experts.0.weight": torch.zeros(40).bfloat16()}, tmp_path / "consolidated.safetensors")
    assert counted() == alone == (160, 40, 160, "fp32", 2)
