"""GPUs and drivers that cannot train: one sentence with what was found, what is needed and what to do."""

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.trainer.conftest import make_config
from torch.nn.attention import varlen

from lora_trainer.errors import ConfigError, GpuFaultError, TrainerError
from lora_trainer.model import device_check
from lora_trainer.model.device import choose_device
from lora_trainer.model.device_check import driver_version, without_kernels
from lora_trainer.spec.config import DeviceConfig, Planned, Precision, TrainConfig
from lora_trainer.spec.exit_codes import FINAL
from lora_trainer.spec.reasons import Reason
from lora_trainer.stage import _STAGES, check_gpus
from lora_trainer.storage.volumes import Volumes

GIB = 2**30
OLD_DRIVER = (
    "The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver by downloading "
    "and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
)
BUILT = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
NONE_SEEN = RuntimeError("Found no NVIDIA driver on your system.")


class Card:
    """A GPU as PyTorch shows it; what its first computation raises; how many there are."""

    def __init__(self, name: str = "NVIDIA A10", capability: tuple[int, int] = (8, 6)) -> None:
        self.name, self.capability = name, capability
        self.count, self.free, self.total = 1, 22 * GIB, 23 * GIB
        self.said: Exception | None = None
        self.refused: Exception | None = None
        self.maps, self.in_blocks = True, False

    def show(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put it in PyTorch's place."""

        def initialise() -> None:
            if self.refused is not None:
                raise self.refused

        def multiply(*_: object) -> None:
            if self.said is not None:
                raise self.said

        monkeypatch.setattr(torch.cuda, "is_available", lambda: self.refused is None)
        monkeypatch.setattr(torch.cuda, "init", initialise)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: self.count)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: self.name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: self.capability)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: self.capability >= (8, 0))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (self.free, self.total))
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: BUILT)
        monkeypatch.setattr(torch.version, "cuda", "13.2")

        def use_blocks() -> None:
            self.said, self.in_blocks = (self.said if self.maps else None), True

        monkeypatch.setattr(device_check, "multiply", multiply)
        monkeypatch.setattr(device_check, "use_blocks", use_blocks)
        monkeypatch.setattr("lora_trainer.model.device.driver_version", lambda: "535.104.05")


def on_gpu(**sections: Any) -> TrainConfig:
    """A run that must have its GPU."""
    config = make_config(resources={"gpus": 1}, **sections)
    return dataclasses.replace(config, device=dataclasses.replace(config.device, allow_cpu=False))


def refusal(card: Card, monkeypatch: pytest.MonkeyPatch, config: TrainConfig | None = None) -> TrainerError:
    """What the check says of it."""
    card.show(monkeypatch)
    with pytest.raises(TrainerError) as caught:
        check_gpus(config or on_gpu(), [0])
    return caught.value


def card(name: str = "NVIDIA A10", capability: tuple[int, int] = (8, 6), **changes: object) -> Card:
    """A GPU with changes."""
    made = Card(name, capability)
    for key, value in changes.items():
        setattr(made, key, value)
    return made


@pytest.mark.parametrize(
    ("card", "final", "found", "needed", "remedy"),
    [
        (card(refused=RuntimeError(OLD_DRIVER)), True, "535.104.05 is for CUDA 12.2", "driver 580 or later", "update"),
        (card(refused=NONE_SEEN), False, "no NVIDIA driver", "is 1", "check"),
        (card("Tesla V100-SXM2-16GB", (7, 0)), True, "V100-SXM2-16GB has compute capability 7.0", "7.5", "CUDA 12"),
        (card("a GPU of tomorrow", (13, 0)), True, "capability 13.0", "12.0 at most", "later release"),
        (card(free=3 * GIB // 10), False, "0.3 of 23.0 GiB free", "needs 0.3", "nvidia-smi"),
        (card(said=torch.OutOfMemoryError("CUDA out of memory."), free=0), False, "0.0 of 23.0", "needs 1.0", "end it"),
        (
            card(said=RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable")),
            False,
            "held by another process",
            "Default",
            "end it",
        ),
        (
            card(said=RuntimeError("CUDA error: no kernel image is available for execution on the device")),
            True,
            "no kernel image",
            "built for",
            "docs/install.md",
        ),
        (card(said=RuntimeError("CUDA error: uncorrectable ECC error encountered")), False, "ECC", "health", "check"),
    ],
)  # fmt: skip
def test_what_cannot_train_is_said_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, card: Card, *, final: bool, found: str, needed: str, remedy: str
) -> None:
    """And tried again only where another attempt may find it otherwise."""
    known = refusal(card, monkeypatch)
    assert isinstance(known, GpuFaultError)
    assert known.reason is Reason.GPU_FAULT
    assert (known.code in FINAL) is final
    assert all(text in str(known) for text in (found, needed, remedy)), str(known)


@pytest.mark.parametrize("stage", ["prepare", "train"])
def test_a_gpu_is_tried_before_anything_is_fetched_or_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stage: str
) -> None:
    """Fetching takes minutes. Neither model nor data exist here, and neither is missed."""
    card(refused=RuntimeError(OLD_DRIVER)).show(monkeypatch)
    options: Any = SimpleNamespace(workspace=None, folder=None, config=tmp_path / "config.json")
    reporter: Any = SimpleNamespace(phase=lambda _phase: None)
    with pytest.raises(GpuFaultError):
        _STAGES[stage](on_gpu(), options, Volumes(claims=tmp_path, config_maps=tmp_path), reporter)


NO_FABRIC = "Expected NVML_SUCCESS == DriverAPI::get()->nvmlDeviceGetGpuFabricInfoV_( nvml_device, &fabricInfo) to be"


@pytest.mark.parametrize(
    "said",
    [
        RuntimeError("CUDA driver error: operation not supported"),
        RuntimeError("CUDA driver error: unknown error"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError(NO_FABRIC),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB. 22.00 GiB is free."),
    ],
)
def test_a_gpu_that_maps_no_memory_piece_by_piece_gets_blocks(monkeypatch: pytest.MonkeyPatch, said: Exception) -> None:
    """As virtual GPUs, WSL2 and Jetson, whatever they call it; where that was not the reason, it is a fault as any
    other."""
    virtual, broken = (card(said=said) for _ in range(2))
    virtual.maps = False
    virtual.show(monkeypatch)
    check_gpus(on_gpu(), [0])
    assert virtual.in_blocks
    broken.show(monkeypatch)
    with pytest.raises((TrainerError, RuntimeError), match=re.escape(str(said)[-12:].strip("."))):
        check_gpus(on_gpu(), [0])
    assert broken.in_blocks


@pytest.mark.parametrize("said", [None, RuntimeError("CUDA driver error: out of memory")])
def test_a_gpu_that_maps_or_has_nothing_free_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, said: Exception | None
) -> None:
    """Blocks of fixed size leave gaps, and would not help where another process holds the memory."""
    found = card(said=said, free=22 * GIB if said is None else GIB // 2)
    found.show(monkeypatch)
    if said is None:
        check_gpus(on_gpu(), [0])
    else:
        assert "another process holds the rest" in str(refusal(found, monkeypatch))
    assert not found.in_blocks


def test_pytorch_takes_the_setting_by_which_blocks_are_asked_for() -> None:
    """In a process that runs, by a function that is a private one."""
    settings = torch._C._accelerator_getAllocatorSettings()
    device_check.use_blocks()
    assert torch._C._accelerator_getAllocatorSettings() == "expandable_segments:False"
    torch._C._accelerator_setAllocatorSettings(settings)


def test_memory_that_another_process_holds_is_compared_with_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where preflight made one: the run would fill what is left, and be told that its settings are at fault."""
    plan = Planned(device="A10", device_bytes=23 * GIB, activation_checkpointing=True, micro_batch_tokens=4096,
                   peak_bytes=18 * GIB, room_bytes=18 * GIB)  # fmt: skip
    config = on_gpu()
    known = refusal(card(free=12 * GIB), monkeypatch, dataclasses.replace(config, planned=plan))
    assert "has 12.0 of 23.0 GiB free, and the run needs 17.3" in str(known)
    card(free=12 * GIB).show(monkeypatch)
    check_gpus(config, [0])
    card(free=18 * GIB).show(monkeypatch)
    check_gpus(dataclasses.replace(config, planned=plan), [0])


@pytest.mark.parametrize("peak", [21 * GIB, 27 * GIB])
def test_a_plan_that_not_even_an_empty_gpu_has_room_for_is_no_reason_to_refuse_it(
    monkeypatch: pytest.MonkeyPatch, peak: int
) -> None:
    """It was made for a larger GPU, or with an estimate too wide to tell: nobody holds what is missing."""
    plan = Planned(device="L40", device_bytes=46 * GIB, activation_checkpointing=True, micro_batch_tokens=4096,
                   peak_bytes=peak, room_bytes=peak)  # fmt: skip
    card(free=peak - 2 * GIB if peak < 23 * GIB else 22 * GIB).show(monkeypatch)
    check_gpus(dataclasses.replace(on_gpu(), planned=plan), [0])


def test_a_type_that_the_gpu_lacks_is_refused_with_both_capabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration is at fault, and says what to write instead."""
    config = on_gpu(training={"precision": "BF16"})
    known = refusal(card("Tesla T4", (7, 5)), monkeypatch, config)
    assert isinstance(known, ConfigError)
    assert "the GPU Tesla T4 has compute capability 7.5, and native bf16 needs 8.0; use Auto or FP16" in str(known)


@pytest.mark.parametrize(
    ("name", "final"), [("NVIDIA A100-SXM4-40GB MIG 1g.5gb", True), ("NVIDIA A100-SXM4-40GB", False)]
)
def test_fewer_gpus_than_were_given_are_reported(monkeypatch: pytest.MonkeyPatch, name: str, *, final: bool) -> None:
    """CUDA shows a process one MIG slice, in every attempt; of whole GPUs another attempt may see all."""
    card(name, (8, 0)).show(monkeypatch)
    with pytest.raises(GpuFaultError, match=r"resources\.gpus is 2") as caught:
        choose_device(DeviceConfig(gpus=2), Precision.AUTO, 1)
    assert (caught.value.code in FINAL) is final
    assert ("set resources.gpus: 1" in str(caught.value)) is final


def test_attention_is_not_planned_for_each_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch prefers cuDNN's on an H100, which is slow where micro-batches have another shape each."""
    card("NVIDIA H100 80GB HBM3", (9, 0)).show(monkeypatch)
    monkeypatch.setattr(varlen, "_cudnn_rejection_reasons", lambda *_: [])
    queries, bounds = torch.zeros(8, 2, 64, dtype=torch.bfloat16), torch.tensor([0, 8], dtype=torch.int32)
    arguments = (queries, queries, queries, bounds, bounds, 8, [-1, 0])
    try:
        torch.backends.cuda.enable_cudnn_sdp(enabled=True)
        assert varlen._select_backend(*arguments) == varlen._CUDNN_ATTENTION_BACKEND
        choose_device(DeviceConfig(gpus=1), Precision.AUTO)
        assert varlen._select_backend(*arguments) == varlen._FLASH_ATTENTION_BACKEND
    finally:
        torch.backends.cuda.enable_cudnn_sdp(enabled=True)


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((8, 9), BUILT, True),
        ((7, 5), BUILT, True),
        ((7, 2), BUILT, False),
        ((11, 0), BUILT, False),
        ((9, 0), ["sm_90a"], True),
        ((9, 1), ["sm_90a"], False),
        ((13, 0), ["sm_75", "compute_120"], True),
        ((6, 0), [], True),
        ((6, 0), ["gfx942"], True),
    ],
)
def test_kernels_run_on_the_gpus_that_nvidia_says(capability: tuple[int, int], built: list[str], *, runs: bool) -> None:
    """A build that does not say what it is for is tried."""
    assert (without_kernels("a GPU", capability, built, cuda="13.2") is None) is runs


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n", "535.104.05"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\nGCC: 12.2.0", "570.86.15"),
        ("something else\n", None),
    ],
)
def test_the_driver_is_read_from_the_kernel(tmp_path: Path, text: str, version: str | None) -> None:
    """NVIDIA's own module and the open one; nothing where there is none."""
    file = tmp_path / "version"
    assert driver_version(file) is None
    file.write_text(text)
    assert driver_version(file) == version
