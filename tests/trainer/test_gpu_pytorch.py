"""The PyTorch that the acceptance of a GPU runs with: one that is too old for packs is named, and a user's own one has
the other packages beside it."""

import sys
from pathlib import Path

import pytest
import torch
from benchmarks.acceptance import device
from benchmarks.acceptance.bench import Bench
from benchmarks.acceptance.findings import Outcome, State

from lora_trainer.model.device import Device

REPOSITORY = Path(__file__).parents[2]


def _found(cpu: Device) -> Outcome:
    (check,) = (check for check in device.checks(Bench(device=cpu, tiny=True)) if check.name == "PyTorch")
    return check.run()


def test_an_older_pytorch_is_told_with_what_it_lacks(cpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence, where each model would be blamed for taking no packs; a PyTorch without the function, too."""
    from torch.nn.attention import varlen  # noqa: PLC0415 - what is changed here

    def of_2_10(query: object, key: object, *, is_causal: bool = False, scale: float | None = None) -> None:
        """Without windows."""

    monkeypatch.setattr(torch, "__version__", "2.10.0+cu128")
    monkeypatch.setattr(varlen, "varlen_attn", of_2_10)
    outcome = _found(cpu)
    assert outcome.state is State.FAILED
    assert outcome.said == (
        "torch 2.10.0+cu128 is older than 2.11: its varlen_attn, which packs need, does not take window_size; "
        "install torch 2.11 or later (docs/install.md)"
    )
    monkeypatch.setitem(sys.modules, varlen.__name__, None)
    outcome = _found(cpu)
    assert outcome.state is State.FAILED
    assert "does not take scale, window_size" in outcome.said
