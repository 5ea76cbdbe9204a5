"""The table of what is fast: each family in it gives with its entries what it gives without, forward and backward, and
the rows of its packs see nothing of each other.

What Triton's interpreter cannot show is left to the self-check on a GPU: bf16 (numpy has none), libdevice's own
functions (`rsqrt` is replaced) and more than one program for a gradient. Whether the kernels compile is in
`test_triton_compiles`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer.families import FAMILIES as TESTED
from tests.trainer.families import MORE, adapted_family, numbers, rows_of
from torch import nn

from lora_trainer.model import liger
from lora_trainer.model.attention import positions, sequence_lengths
from lora_trainer.model.device import Device
from lora_trainer.model.fast import CPU_GATE, FAMILIES, GATE, NORM, ROTATION, Entry, compute_with, isolate, usable
from lora_trainer.model.loading import Adapted, load_model
from lora_trainer.spec.config import Quantization
from lora_trainer.storage.base import Base

REPOSITORY = Path(__file__).parents[2]
LIGER = (NORM, ROTATION, GATE)
OTHERS = {"bert", "t5", "bart", "falcon", "llama4"}
"""Encoders, a family whose modules nothing fast suits, and one that is loaded as another."""


def test_every_tested_family_is_in_the_table() -> None:
    """And no other."""
    assert set(FAMILIES) == ({*TESTED} - OTHERS) | {*MORE}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_gives_fast_and_packed_what_it_gives_plainly_and_alone(tmp_path: Path, cpu: Device, kind: str) -> None:
    """Losses and gradients in fp32, with rows longer than windows, against PEFT's and Transformers' own passes."""
    model = adapted_family(tmp_path, kind, cpu)
    rows = rows_of(model)
    alone = [numbers(model, [row], cpu, packed=False) for row in rows]
    losses, *more = zip(*alone, strict=True)
    wanted = [torch.cat(losses), *(torch.stack(each).sum(0) for each in more)]
    assert isolate(model.model) is FAMILIES[kind].packs
    entries = usable(model.model, cpu, packed=FAMILIES[kind].packs)
    assert entries == tuple(entry for entry in FAMILIES[kind].fast if entry.name in {"fused-adapter", CPU_GATE.name})
    compute_with(model.model, entries, cpu)
    found = numbers(model, rows, cpu, packed=FAMILIES[kind].packs)
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours - theirs).norm() <= 2e-5 * theirs.norm() + 1e-6
    assert not FAMILIES[kind].packs or sees_nothing_of_others(model, rows[:3])


def sees_nothing_of_others(model: Adapted, rows: Any) -> bool:
    """Whether the gradients of a row's logits are 0 at the embeddings of the others, exactly, and of theirs at its
    own."""
    lengths, cpu = tuple(row.length for row in rows), torch.device("cpu")
    ids = torch.cat([torch.as_tensor(row.input_ids) for row in rows])[None]
    seen: list[torch.Tensor] = []

    def keep(_module: nn.Module, _given: Any, embedded: torch.Tensor) -> torch.Tensor:
        seen.append(embedded.detach().requires_grad_())
        return seen[-1].clone()

    handle = model.model.get_input_embeddings().register_forward_hook(keep)
    given = {"position_ids": positions(lengths, cpu), "segments": sequence_lengths(lengths, cpu), "use_cache": False}
    logits = model.model(input_ids=ids, **given).logits[0]
    handle.remove()
    own = torch.zeros(sum(lengths), dtype=torch.bool)
    own[lengths[0] : lengths[0] + lengths[1]] = True
    for result, tokens in ((logits[own], own), (logits[~own], ~own)):
        weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(0))
        (gradient,) = torch.autograd.grad(result, seen[0], weights, retain_graph=True)
        there = gradient[0].ne(0).any(dim=1)
        if there[~tokens].any() or not there[tokens].any():
            return False
    return True


@pytest.fixture(scope="module")
def answers() -> Any:
    """Of `fast_program`."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.trainer.fast_program"],
        cwd=REPOSITORY,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", [kind for kind, family in FAMILIES.items() if {*LIGER} & {*family.fast}])
def test_a_family_gives_with_ligers_kernels_what_it_gives_without(answers: Any, kind: str) -> None:
    """In a pack, where it has such: losses and gradients, with each kernel by itself; and without it as before."""
    found = answers["families"][kind]
    assert set(found) == {entry.name for entry in LIGER if entry in FAMILIES[kind].fast}
    for name, one in found.items():
        assert one["apart"] < 2e-5, name
        assert one["calls"] > 0
        assert one["removed"]


@pytest.mark.parametrize("checkpointing", ["Selective", "Full"])
def test_kernels_are_recomputed_with_their_modules(answers: Any, checkpointing: str) -> None:
    """One in the forward pass alone runs once a module, recomputed once more."""
    found = answers["manners"][checkpointing]
    assert {name: one["modules"] for name, one in found.items()} == {
        "liger-rms-norm": 5,
        "liger-rope": 2,
        "liger-swiglu": 2,
    }
    again = {"Selective": (0, 0, 2), "Full": (4, 2, 2)}[checkpointing]
    assert tuple(one["calls"] for one in found.values()) == (5 + again[0], 2 + again[1], 2 + again[2])
    assert max(one["apart"] for one in found.values()) < 2e-5
    assert all(one["removed"] for one in found.values())


@pytest.mark.parametrize(("dtype", "most"), [("fp32", 2**-20), ("fp16", 2**-11)])
def test_each_kernel_errs_no_more_than_plain_pytorch(answers: Any, dtype: str, most: float) -> None:
    """Forward and backward, on odd lengths, widths and numbers of heads; or by rounding."""
    found = answers["shapes"][dtype]
    assert len(found) == 12
    assert {name: error for name, error in found.items() if not error <= most} == {}


@pytest.mark.parametrize("entry", LIGER, ids=lambda entry: entry.name)
def test_a_cpu_has_none_of_ligers(entry: Entry, tiny_base: Base, cpu: Device) -> None:
    """Triton compiles for GPUs."""
    assert entry.find(load_model(tiny_base, Quantization.NONE, cpu).model, cpu) == []


def test_a_trained_norm_keeps_its_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weight needs a gradient that is not computed."""

    class SomeRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.ones(4)), 1e-6

    monkeypatch.setattr(liger, "DEVICES", {"cpu"})
    trained, frozen = SomeRMSNorm(), SomeRMSNorm().requires_grad_(requires_grad=False)
    assert liger.norms(nn.ModuleList([trained, frozen])) == [frozen]


def test_a_configuration_whose_tokens_see_later_ones_is_not_packed(tmp_path: Path, cpu: Device) -> None:
    """Its family's other models are."""
    model = adapted_family(tmp_path, "gemma3_text", cpu).model
    model.config.use_bidirectional_attention = True
    assert not isolate(model)
