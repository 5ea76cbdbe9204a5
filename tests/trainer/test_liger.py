"""Liger's Triton kernels under Triton's interpreter, by the comparison that a run makes on its device.

What the interpreter cannot show is left to the acceptance of a GPU: bf16 (numpy has none), libdevice's own functions
(`rsqrt` is replaced), more than one program for the gradient of a norm's weight, and speed. Whether they compile is in
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
from torch import nn

from lora_trainer.contract.config import Quantization
from lora_trainer.model import liger
from lora_trainer.model.device import Device
from lora_trainer.model.fast_path import FastPath
from lora_trainer.model.fast_paths import LIGER_RMS_NORM, LIGER_ROPE, LIGER_SWIGLU
from lora_trainer.model.loading import load_model
from lora_trainer.places.base import Base

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def answers() -> Any:
    """Of `liger_program`."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.trainer.liger_program"],
        cwd=REPOSITORY,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_each_kernel_errs_no_more_than_plain_pytorch(answers: Any, dtype: str) -> None:
    """Forward and backward, on odd lengths, widths and numbers of heads."""
    found = answers["refusals"][dtype]
    assert len(found) == 12
    assert {name: why for name, why in found.items() if why is not None} == {}


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("interleaved", "its result errs by"),
        ("more", "it cannot be compared: ValueError: More is more than a gate between three matrices"),
        ("wrong", "its result errs by 1.0e-02"),
        ("another epsilon", "its result errs by"),
    ],
)
def test_what_only_looks_alike_is_left_out(answers: Any, what: str, why: str) -> None:
    """Modules of the right names that compute something else, and a kernel that is wrong by 1 %."""
    assert answers["others"][what].startswith(why)


@pytest.mark.parametrize("manner", ["None", "Selective", "Full"])
def test_a_model_takes_all_of_them_and_lets_go_of_them(answers: Any, manner: str) -> None:
    """Proven on a pack, with activations kept or recomputed: a kernel in the forward pass alone runs once a module,
    recomputed once more."""
    found = answers["whole"][manner]
    assert found["refusals"] == {"liger-rms-norm": None, "liger-rope": None, "liger-swiglu": None}
    assert found["modules"] == {"liger-rms-norm": 5, "liger-rope": 2, "liger-swiglu": 2}
    assert found["as before"]
    assert found["removed"]
    assert 0 < found["difference"] < 1e-5
    again = {"None": (0, 0, 0), "Selective": (0, 0, 2), "Full": (4, 2, 2)}[manner]
    assert tuple(found["calls"].values()) == (5 + again[0], 2 + again[1], 2 + again[2])


@pytest.mark.parametrize("path", [LIGER_RMS_NORM, LIGER_ROPE, LIGER_SWIGLU], ids=lambda path: path.name)
def test_a_cpu_has_none_of_them(path: FastPath, tiny_base: Base, cpu: Device) -> None:
    """Triton compiles for GPUs."""
    assert path.find(load_model(tiny_base, Quantization.NONE, cpu).model) == []


def test_a_trained_norm_keeps_its_own_code() -> None:
    """Its weight needs a gradient that is not compared."""

    class SomeRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.ones(4)), 1e-6

    liger.DEVICES.add("cpu")
    try:
        trained, frozen = SomeRMSNorm(), SomeRMSNorm().requires_grad_(requires_grad=False)
        assert liger.norms(nn.ModuleList([trained, frozen])) == [frozen]
    finally:
        liger.DEVICES.remove("cpu")
