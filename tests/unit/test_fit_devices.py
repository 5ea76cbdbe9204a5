"""GPUs by the names that drivers and labels give them, and what a size that they are sold with means."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.spec.config import DeviceConfig
from lora_trainer.spec.gpus import (
    GIB,
    KNOWN,
    LABEL_SHARE,
    MIB,
    RELATED,
    DeviceError,
    Gpu,
    by_product,
    device_of,
    find_gpu,
    found_gpu,
    least_label,
    least_memory,
    slice_of,
)

SOLD = {
    "T4": 16,
    "L4": 24,
    "A10": 24,
    "RTX 4090": 24,
    "A100 40": 40,
    "A100 80": 80,
    "L40S": 48,
    "H100": 80,
    "H200": 141,
    "B200": 192,
    "A10G": 24,
    "A30": 24,
    "L40": 48,
    "H100 PCIe": 80,
    "H100 NVL": 94,
    "GH200": 96,
}
"""GiB that they are sold with."""
SIZES = sorted({8, 12, 20, 32, 64, 96, *SOLD.values()})
OLDER = {"T4": (15_079, 15_109), "A10": (22_731,), "A100 40": (40_536,), "A100 80": (80_994, 81_251)}
"""MiB that other drivers report for the same cards."""


@pytest.mark.parametrize("gpu", [*KNOWN, *RELATED], ids=lambda gpu: gpu.name)
def test_a_card_is_taken_by_the_size_that_it_is_sold_with_and_by_no_larger_one(gpu: object) -> None:
    """A label of 23,034 MiB is a card of 24 GB; one of 16 GB is none, whatever its driver keeps for itself."""
    (known,) = (one for one in (*KNOWN, *RELATED) if one is gpu)
    size = SOLD[known.name]
    # 94 and 96 GiB are nearer to each other than what a driver may keep for itself.
    larger = next((other for other in SIZES if other * LABEL_SHARE > size), 256)
    for label in (known.memory_bytes // MIB, *OLDER.get(known.name, ())):
        assert label > least_label(size)
        assert label <= least_label(larger)


@given(size=st.integers(1, 1024))
def test_a_label_is_below_what_is_sold(size: int) -> None:
    """By at most eight hundredths, and the smallest card that is taken has more than the label asks for."""
    assert 0.9 * size * 1024 < least_label(size) + 1 <= size * 1024
    assert least_memory(size) // MIB > least_label(size)


@pytest.mark.parametrize(
    ("product", "name"),
    [
        ("Tesla-T4", "T4"),
        ("Tesla T4", "T4"),
        ("NVIDIA-L4", "L4"),
        ("NVIDIA-A10", "A10"),
        ("NVIDIA-GeForce-RTX-4090", "RTX 4090"),
        ("NVIDIA A100-SXM4-40GB", "A100 40"),
        ("A100-PCIE-40GB", "A100 40"),
        ("NVIDIA-A100-SXM4-80GB", "A100 80"),
        ("NVIDIA-A100-80GB-PCIe", "A100 80"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA-H100-80GB-HBM3", "H100"),
        ("NVIDIA-H200", "H200"),
        ("NVIDIA-B200", "B200"),
        # Others by the same letters, with another memory or another speed.
        ("NVIDIA-L40", "L40"),
        ("NVIDIA-A10G", "A10G"),
        ("NVIDIA A30", "A30"),
        ("NVIDIA-H100-PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("GH200-120GB", "GH200"),
        ("NVIDIA-GH200-144G-HBM3e", None),
        ("NVIDIA-GeForce-RTX-4090-D", None),
        ("NVIDIA-GB200", None),
        ("Tesla-T40", None),
        # In turns with others, who have the memory.
        ("NVIDIA-L4-SHARED", None),
        ("", None),
    ],
)
def test_products_are_known_by_the_drivers_names(product: str, name: str | None) -> None:
    """As nvidia-smi and PyTorch write them, and as labels do."""
    found = by_product(product)
    assert (found.name if found else None) == name


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("nvidia.com/mig-3g.40gb", 40),
        ("nvidia.com/mig-1g.5gb", 5),
        ("nvidia.com/mig-1g.10gb.me", 10),
        ("NVIDIA-A100-SXM4-40GB-MIG-1g.5gb", 5),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", 10),
        ("NVIDIA_A100-SXM4-80GB_MIG_1g.10gb", 10),
        ("nvidia.com/gpu", None),
        ("nvidia.com/mig-3g.0gb", None),
        ("nvidia.com/mig-3g.9999gb", None),
        ("nvidia.com/mig-3g.40gbit", None),
    ],
)
def test_a_slice_says_its_memory(name: str, gib: int | None) -> None:
    """In its profile; the driver keeps some of it, as of a whole card (9,728 MiB of 10 GB)."""
    found = slice_of(name)
    assert (found.memory_bytes if found else None) == (least_memory(gib) if gib else None)
    assert found is None or found.flops is None
    if gib == 10:
        assert found is not None
        assert found.memory_bytes < 9_728 * MIB


def test_a_gpu_that_a_process_finds_is_the_one_of_the_plan() -> None:
    """PyTorch sees less memory than nvidia-smi shows: still it is that GPU, unless part of it is gone."""
    h100 = find_gpu("H100")
    assert found_gpu("NVIDIA H100 80GB HBM3", 85_000_000_000, (9, 0)) == h100
    part = found_gpu("NVIDIA H100 80GB HBM3", 40 * GIB, (9, 0))
    assert part == replace(h100, memory_bytes=40 * GIB)
    volta = found_gpu("Tesla V100-SXM2-16GB", 16 * GIB, (7, 0))
    assert (volta.packs, volta.bf16, volta.flops, volta.memory_bytes) == (False, False, None, 16 * GIB)
    assert found_gpu("NVIDIA Zebra", 16 * GIB, (12, 0)).bf16


def test_a_device_without_a_name_is_its_memory() -> None:
    """As older configurations, or somebody's own, may have it."""
    found = device_of(DeviceConfig(gpu_memory_bytes=24 * GIB))
    assert found is not None
    assert (found.name, found.memory_bytes) == ("24.0 GiB", 24 * GIB)
    assert device_of(DeviceConfig(gpu="H100")) is None
    assert device_of(DeviceConfig(gpu="H100", gpu_memory_bytes=find_gpu("H100").memory_bytes)) == find_gpu("H100")


@pytest.mark.parametrize(
    ("text", "name", "gib"),
    [
        ("NVIDIA-A100-SXM4-80GB", "A100 80", None),
        ("NVIDIA-H100-80GB-HBM3", "H100", None),
        ("NVIDIA-GeForce-RTX-4090", "RTX 4090", None),
        ("Tesla T4", "T4", None),
        ("nvidia.com/mig-3g.40gb", "mig-3g.40gb", 40),
        ("mig-1g.10gb", "mig-1g.10gb", 10),
        ("1g.10gb", "mig-1g.10gb", 10),
        ("NVIDIA-A100-SXM4-40GB-MIG-1g.5gb", "mig-1g.5gb", 5),
    ],
)
def test_a_gpu_is_asked_about_by_the_names_that_manifests_take(text: str, name: str, gib: int | None) -> None:
    """Labels of nodes, resources of slices and their profiles."""
    found = find_gpu(text)
    assert found.name == name
    if gib is None:
        assert found in KNOWN
    else:
        assert (found.memory_bytes, found.sold_bytes) == (least_memory(gib), gib * GIB)


@given(size=st.integers(1, 1024))
def test_whole_gib_are_what_a_gpu_is_sold_with(size: int) -> None:
    """As in resources.gpuMinMemoryGiB; other memory is what the driver reports."""
    asked = replace(find_gpu(f"{size}GiB"), name=f"{size} GiB")
    assert asked == device_of(
        DeviceConfig(gpu=f"{size} GiB", gpu_memory_bytes=least_memory(size), gpu_sold_bytes=size * GIB)
    )
    assert find_gpu(f"{size}.0GiB").memory_bytes == size * GIB
    assert find_gpu(f"{size}.0GiB").sold_bytes is None
    assert find_gpu(f"{size}Gi") == find_gpu(f"{size}GiB")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("3090", "; did you mean 24GiB, which an RTX 3090 is sold with?"),
        ("RTX 3090", "; did you mean 24GiB, which an RTX 3090 is sold with?"),
        ("NVIDIA-GeForce-RTX-3090", "; did you mean 24GiB, which an RTX 3090 is sold with?"),
        ("a6000", "; did you mean 48GiB, which an RTX A6000 is sold with?"),
        ("24", "; did you mean 24GiB?"),
        ("4080", "; name its memory instead, as in 24GiB"),
        ("nvidia.com/gpu", "; name its memory instead, as in 24GiB"),
    ],
)
def test_what_is_meant_by_another_gpu_is_accepted_itself(text: str, hint: str) -> None:
    """A size that a GPU may have, or none."""
    with pytest.raises(DeviceError) as caught:
        find_gpu(text)
    assert str(caught.value).endswith(hint)
    meant = re.search(r"mean (\d+GiB)", hint)
    assert meant is None or find_gpu(meant[1]).sold_bytes


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("A100", "did you mean A100 40 or A100 80?"),
        ("H100x", "did you mean H100?"),
        ("V100", "name its memory instead"),
    ],
)
def test_a_gpu_is_not_taken_for_one_of_another_generation(text: str, hint: str) -> None:
    """A name that several sizes have gets all of them."""
    with pytest.raises(DeviceError) as caught:
        find_gpu(text)
    assert hint in str(caught.value)


@pytest.mark.parametrize("gpu", RELATED, ids=lambda gpu: gpu.name)
def test_a_relative_is_found_by_its_name_and_has_a_speed_of_its_own(gpu: Gpu) -> None:
    """Its share of the peak is told of it, and not of the GPU by whose letters it goes."""
    assert find_gpu(gpu.name) is gpu
    assert device_of(DeviceConfig(gpu=gpu.name, gpu_memory_bytes=gpu.memory_bytes)) == gpu
    assert gpu.flops is not None
    assert gpu.packs


def test_an_a10g_computes_less_than_an_a10() -> None:
    """It has the same memory, and 70 teraflops of 125."""
    a10, a10g = find_gpu("A10"), find_gpu("NVIDIA A10G")
    assert (a10.memory_bytes, a10.bandwidth) == (a10g.memory_bytes, a10g.bandwidth)
    assert (a10.flops, a10g.flops) == (125e12, 70e12)
