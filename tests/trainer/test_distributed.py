"""Processes that train together: shares, collectives, and a process that is lost."""

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.trainer import rank_programs
from tests.trainer.processes import ProgramError, together

from lora_trainer.distributed.collectives import Ranks, balance
from lora_trainer.errors import explain
from lora_trainer.model.device import Device, same_type
from lora_trainer.spec.exit_codes import ExitCode
from lora_trainer.spec.reasons import Reason

SIZES = st.lists(st.integers(min_value=1, max_value=2048), max_size=64)


@given(sizes=SIZES, world=st.integers(min_value=1, max_value=9))
def test_every_item_of_a_step_goes_to_exactly_one_process(sizes: list[int], world: int) -> None:
    """In its order; also where there are fewer items than processes, and some get none."""
    shares = [Ranks(rank=rank, world=world).share(range(len(sizes)), sizes) for rank in range(world)]
    assert sorted(item for share in shares for item in share) == list(range(len(sizes)))
    assert all(share == sorted(share) for share in shares)


@given(sizes=SIZES, parts=st.integers(min_value=1, max_value=9))
def test_shares_are_balanced_by_size(sizes: list[int], parts: int) -> None:
    """The largest part exceeds an even one by less than one item."""
    loads = [0] * parts
    for size, part in zip(sizes, balance(sizes, parts), strict=True):
        loads[part] += size
    assert max(loads) <= sum(sizes) / parts + max(sizes, default=0)


def test_a_step_of_few_long_and_many_short_rows_is_halved_by_tokens_not_by_rows() -> None:
    """One row of 400 tokens weighs as much as four of 100."""
    assert balance([100, 400, 100, 100, 100], 2) == [1, 0, 1, 1, 1]


def test_alone_nothing_needs_to_be_sent() -> None:
    """The group of one answers with what it was given."""
    ranks = Ranks()
    tensor = torch.ones(2)
    assert ranks.is_main
    assert ranks.share("abc", [1, 2, 3]) == ["a", "b", "c"]
    assert (ranks.sum(1.5), ranks.any(flag=True), ranks.gather("x", str), ranks.rounds(3)) == (1.5, True, ["x"], 3)
    assert ranks.broadcast(tensor) is tensor
    assert ranks.broadcast_value("x", str) == "x"


def test_processes_exchange_what_each_must_know() -> None:
    """A gradient that no process has stays absent; one that a single process has counts as it is."""
    said = together(2, rank_programs.every_collective)
    assert not any(isinstance(one, ProgramError) for one in said), said
    assert [one["place"] for one in said] == [(0, 2, 0, True), (1, 2, 1, False)]
    for one in said:
        assert one["sum"] == 2.0
        assert one["any"] == (True, False)
        assert one["broadcast"] == [7, 7]
        assert one["value"] == 0
        assert one["gather"] == ["rank 0", "rank 1rank 1"]
        assert one["gradients"] == [[[3.0] * 3] * 2, [[5.0] * 3] * 2, None]
    assert [one["rounds"] for one in said] == [2, 3]


@pytest.mark.parametrize("how", ["gather", "broadcast"])
def test_what_another_process_sends_is_never_run(how: str, tmp_path: Path) -> None:
    """Whatever reaches node 0's port takes part, and a pickle is code: values are JSON."""
    *_, received = together(2, rank_programs.receive_a_pickle, tmp_path / "run", how)
    assert isinstance(received, ProgramError)
    assert not (tmp_path / "run").exists()


T4 = Device(torch_device=torch.device("cuda", 0), name="Tesla T4", dtype=torch.float16)
A100 = Device(torch_device=torch.device("cuda", 1), name="NVIDIA A100", dtype=torch.bfloat16)
NO_GPU = Device(torch_device=torch.device("cpu"), name="cpu", dtype=torch.float32)


def test_gpus_of_two_generations_compute_in_the_type_that_both_have() -> None:
    """Their gradients are summed: those of fp16 are scaled, and those of bf16 are not."""
    assert together(2, rank_programs.agree_on_a_type, (A100, T4)) == [dataclasses.replace(A100, dtype=T4.dtype), T4]
    assert together(2, rank_programs.agree_on_a_type, (A100, A100)) == [A100, A100]
    assert same_type(A100, Ranks()) is A100


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_process_without_the_gpu_that_the_others_have_ends_the_attempt(dtype: torch.dtype) -> None:
    """On all of them, and before anything is read."""
    for said in together(2, rank_programs.agree_on_a_type, (A100, dataclasses.replace(NO_GPU, dtype=dtype))):
        assert str(said).startswith("GpuFaultError: processes of the run compute on NVIDIA A100 and on cpu")


@pytest.mark.parametrize("how", ["killed", "failed"])
def test_the_others_learn_at_once_that_a_process_is_lost(how: str) -> None:
    """As PeerFailed, long before the collective's time is over; a process with a fault of its own keeps that fault."""
    said = together(3, rank_programs.lose_a_process, how)
    assert all(isinstance(one, ProgramError) for one in said)
    assert [str(said[rank]).startswith("PeerFailedError: another process of the run ended") for rank in (0, 2)] == [
        True,
        True,
    ]
    assert str(said[1]).startswith("the process ended without" if how == "killed" else "ValueError: its own fault")


@pytest.mark.parametrize(
    "text",
    [
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.7]:4711",
        "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1000ms for recv operation",
    ],
)
def test_a_collective_within_a_layer_that_fails_is_a_lost_process_too(text: str) -> None:
    """Sharded layers talk within the forward pass; a retry may help, the configuration is not at fault."""
    known = explain(RuntimeError(text))
    assert (known.code, known.reason) == (ExitCode.TRANSIENT, Reason.PEER_FAILED), "nobody has said that it ends"
