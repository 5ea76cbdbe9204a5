"""Where a run's configuration has the memory of its GPU from."""

from typing import Any

import pytest
from tests.unit.builders import make_manifest

from lora_trainer.spec.config import DeviceConfig
from lora_trainer.spec.device_section import GpuSetting
from lora_trainer.spec.gpus import GIB, MIB, device_of, find_gpu
from lora_trainer.spec.manifest import ManifestError, RunOptions, train_config

SETTINGS = (
    GpuSetting(name="NVIDIA-RTX-A5000", memory_gib=24, price=1.5),
    GpuSetting(name="amd.com/gpu", memory_gib=192),
    GpuSetting(name="nvidia.com/gpu", memory_gib=16, price=0.5),
    GpuSetting(name="NVIDIA-L4", memory_gib=24, price=0.8),
)


def device(
    resources: dict[str, Any], settings: tuple[GpuSetting, ...] = SETTINGS, product: str | None = None
) -> DeviceConfig:
    """What the pods of a run are given, on the nodes of a product where it selects them."""
    spec: dict[str, Any] = {"resources": resources}
    if product is not None:
        spec["scheduling"] = {"nodeSelector": {"nvidia.com/gpu.product": product, "zone": "a"}}
    return train_config(make_manifest(spec=spec), RunOptions(uid="u", gpus=settings)).device


LEAST_24, LEAST_40 = 22_610 * MIB, 37_684 * MIB
SOURCES: list[tuple[dict[str, Any], str, int | None, float | None]] = [
    ({"gpuMinMemoryGiB": 24}, "24 GiB", LEAST_24, None),
    ({"gpuProducts": ["NVIDIA-L4"]}, "NVIDIA-L4", 23_034 * MIB, 0.8),
    ({"gpuProducts": ["Tesla-T4", "NVIDIA-L4"]}, "T4", 15_360 * MIB, 0.5),
    ({"gpuProducts": ["NVIDIA-RTX-A5000"]}, "NVIDIA-RTX-A5000", LEAST_24, 1.5),
    ({"gpuProducts": ["Tesla-T4", "NVIDIA-L4"], "gpuMinMemoryGiB": 24}, "NVIDIA-L4", 23_034 * MIB, 0.8),
    # What nobody knows may be the smallest: what is asked for at least counts, or else nothing does.
    ({"gpuProducts": ["NVIDIA-L4", "Zebra-9000"], "gpuMinMemoryGiB": 24}, "24 GiB", LEAST_24, None),
    # A slice is all that the run gets of a GPU, whatever that has, or it asks for at least.
    ({"gpuMinMemoryGiB": 24, "gpuResourceName": "nvidia.com/mig-3g.40gb"}, "nvidia.com/mig-3g.40gb", LEAST_40, None),
    (
        {"gpuProducts": ["NVIDIA-A100-SXM4-80GB"], "gpuResourceName": "nvidia.com/mig-3g.40gb"},
        "nvidia.com/mig-3g.40gb",
        LEAST_40,
        None,
    ),
    ({"gpuResourceName": "nvidia.com/mig-3g.40gb"}, "nvidia.com/mig-3g.40gb", LEAST_40, None),
    ({"gpuResourceName": "nvidia.com/mig-1g.10gb.shared"}, "nvidia.com/mig-1g.10gb.shared", None, None),
    ({"gpuResourceName": "amd.com/gpu"}, "amd.com/gpu", 180_880 * MIB, None),
    ({}, "nvidia.com/gpu", 15_074 * MIB, 0.5),
]


@pytest.mark.parametrize(
    ("resources", "name", "memory", "price"), SOURCES, ids=[str(resources) for resources, *_ in SOURCES]
)
def test_the_nearest_source_tells_the_memory(
    resources: dict[str, Any], name: str, memory: int | None, price: float | None
) -> None:
    """What the run asks for, then the slice's name, then the operator's setting."""
    found = device(resources)
    if memory is None:
        assert (found.gpu, found.gpu_memory_bytes) == (name, None)
        return
    assert (found.gpu, found.gpu_memory_bytes, found.gpu_price) == (name, memory, price)


@pytest.mark.parametrize(
    ("product", "resources", "name", "memory"),
    [
        ("NVIDIA-L4", {}, "NVIDIA-L4", 23_034 * MIB),
        ("NVIDIA-RTX-A5000", {}, "NVIDIA-RTX-A5000", LEAST_24),
        ("NVIDIA-L4", {"gpuProducts": ["Tesla-T4", "NVIDIA-L4"]}, "NVIDIA-L4", 23_034 * MIB),
        ("NVIDIA-L4", {"gpuMinMemoryGiB": 16}, "NVIDIA-L4", 23_034 * MIB),
        ("Zebra-9000", {"gpuMinMemoryGiB": 24}, "24 GiB", LEAST_24),
        ("Zebra-9000", {}, "nvidia.com/gpu", 15_074 * MIB),
        ("NVIDIA-A100-SXM4-80GB", {"gpuResourceName": "nvidia.com/mig-3g.40gb"}, "nvidia.com/mig-3g.40gb", LEAST_40),
    ],
)
def test_nodes_that_are_selected_by_their_gpu_tell_it(
    product: str, resources: dict[str, Any], name: str, memory: int
) -> None:
    """As a product that the run names; of one that nobody knows, the other sources count."""
    found = device(resources, product=product)
    assert (found.gpu, found.gpu_memory_bytes) == (name, memory)
    assert device({"gpus": 0}, product=product).gpu is None


@pytest.mark.parametrize(
    ("resources", "name", "price"),
    [
        ({}, "nvidia.com/gpu", 0.9),
        ({"gpuMinMemoryGiB": 16}, "nvidia.com/gpu", 0.9),
        ({"gpuMinMemoryGiB": 24}, "nvidia.com/gpu", 0.9),
        ({"gpuMinMemoryGiB": 32}, "32 GiB", None),
        ({"gpuProducts": ["NVIDIA-L4"]}, "L4", 0.9),
        ({"gpuProducts": ["NVIDIA-RTX-A5000"]}, "NVIDIA-RTX-A5000", 1.5),
        ({"gpuProducts": ["Tesla-T4"]}, "T4", None),
        ({"gpuProducts": ["NVIDIA-L40S"]}, "L40S", None),
    ],
    ids=str,
)
def test_a_price_by_the_resources_name_is_that_of_all_gpus_of_that_size(
    resources: dict[str, Any], name: str, price: float | None
) -> None:
    """A product's own goes before; of another size the cluster cannot have only one kind."""
    settings = (
        GpuSetting(name="nvidia.com/gpu", memory_gib=24, price=0.9),
        GpuSetting(name="NVIDIA-RTX-A5000", memory_gib=24, price=1.5),
    )
    found = device(resources, settings)
    assert (found.gpu, found.gpu_price) == (name, price)


@pytest.mark.parametrize(
    ("resources", "sold"),
    [
        ({"gpuMinMemoryGiB": 80}, 80),
        ({"gpuResourceName": "nvidia.com/mig-3g.40gb"}, 40),
        ({"gpuProducts": ["NVIDIA-RTX-A5000"]}, 24),
        ({}, 16),
        ({"gpuProducts": ["NVIDIA-L4"]}, None),
    ],
    ids=str,
)
def test_what_only_has_a_size_may_have_all_of_it(resources: dict[str, Any], sold: int | None) -> None:
    """Of a GPU that the table has, the driver's number is known: that is all."""
    found = device_of(device(resources))
    assert found is not None
    assert found.sold_bytes == (None if sold is None else sold * GIB)
    assert found.most_bytes == (found.memory_bytes if sold is None else sold * GIB)


MIG = "nvidia.com/mig-1g.10gb"
UNOBTAINABLE: list[tuple[dict[str, Any], str]] = [
    (
        {"gpuResourceName": MIG, "gpuMinMemoryGiB": 11},
        "GiB is 11: is more than the slice of a GPU in gpuResourceName has",
    ),
    ({"gpuResourceName": f"{MIG}.shared", "gpuMinMemoryGiB": 11}, "is more than the slice"),
    ({"gpuProducts": ["Tesla-T4", "NVIDIA-L4"], "gpuMinMemoryGiB": 32}, "at most what one of Tesla-T4, NVIDIA-L4 has"),
    (
        {"gpuResourceName": "amd.com/gpu", "gpuMinMemoryGiB": 64},
        "gpuMinMemoryGiB is 64: nodes with GPUs of this gpuResourceName lack the labels of NVIDIA",
    ),
    (
        {"gpuResourceName": "gpu.intel.com/xe", "gpuProducts": ["A"]},
        "gpuProducts is ['A']: nodes with GPUs of this",
    ),
]


@pytest.mark.parametrize(("resources", "rule"), UNOBTAINABLE, ids=[str(resources) for resources, _ in UNOBTAINABLE])
def test_what_no_node_can_give_is_refused(resources: dict[str, Any], rule: str) -> None:
    """One sentence with field, value, rule and remedy, and not a pod that waits forever; without GPUs another one."""
    with pytest.raises(ManifestError) as refused:
        device(resources)
    assert len(refused.value.problems) == 1
    assert rule in str(refused.value)
    with pytest.raises(ManifestError, match="a run without GPUs cannot choose one"):
        device({**resources, "gpus": 0})


@pytest.mark.parametrize(
    "resources",
    [
        {"gpuResourceName": MIG, "gpuMinMemoryGiB": 10},
        {"gpuResourceName": MIG, "gpuProducts": ["NVIDIA-A100-SXM4-80GB"]},
        {"gpuProducts": ["Tesla-T4", "Zebra-9000"], "gpuMinMemoryGiB": 32},
        {"gpuProducts": ["NVIDIA-RTX-A5000"], "gpuMinMemoryGiB": 32},
        {"gpuProducts": ["Tesla-T4", "NVIDIA-L40S"], "gpuMinMemoryGiB": 48},
        {"gpuResourceName": "example.com/vgpu", "gpuMinMemoryGiB": 24},
    ],
    ids=str,
)
def test_what_a_node_may_give_is_not(resources: dict[str, Any]) -> None:
    """Whatever the setting knows of a product, and whoever offers NVIDIA's GPUs under another name."""
    assert device(resources).gpus == 1


def test_a_selected_product_has_what_is_asked_for() -> None:
    """As a named one."""
    with pytest.raises(ManifestError, match="must be at most what one of NVIDIA-L4 has"):
        device({"gpuMinMemoryGiB": 48}, product="NVIDIA-L4")


def test_where_nothing_tells_it_there_is_none() -> None:
    """Any GPU may come; a product that nobody knows, and a run without GPUs, tell nothing either."""
    for resources, named in (
        ({}, None),
        ({"gpuResourceName": "nvidia.com/gpu"}, None),
        ({"gpuProducts": ["NVIDIA-L4", "Zebra-9000"]}, "Zebra-9000"),
        ({"gpuProducts": ["NVIDIA-L4-SHARED"]}, "NVIDIA-L4-SHARED"),
        ({"gpuResourceName": "nvidia.com/mig-1g.0gb"}, "nvidia.com/mig-1g.0gb"),
    ):
        found = device(resources, ())
        assert (found.gpu, found.gpu_memory_bytes, found.gpu_price) == (named, None, None)
        assert device_of(found) is None
    assert device({"gpus": 0}).gpu_memory_bytes is None


def test_a_product_that_is_known_has_its_speed() -> None:
    """And compute capability: a T4 has no bf16, whoever names it; of a size alone nothing is known."""
    named = device_of(device({"gpuProducts": ["Tesla-T4"]}, ()))
    assert named == find_gpu("T4")
    sized = device_of(device({"gpuMinMemoryGiB": 16}, ()))
    assert sized is not None
    assert (sized.flops, sized.bf16, sized.memory_bytes) == (None, True, 15_074 * MIB)
    priced = device_of(device({"gpuProducts": ["NVIDIA-L4"]}))
    assert priced is not None
    assert priced.flops == find_gpu("L4").flops


def test_a_setting_may_know_less_memory_than_the_table() -> None:
    """Of a product that is partitioned in software; more than the table has it can only mean as sold."""
    half = (GpuSetting(name="NVIDIA-L4", memory_gib=12),)
    assert device({"gpuProducts": ["NVIDIA-L4"]}, half).gpu_memory_bytes == 11_305 * MIB
    assert 11_305 * MIB < 12 * GIB


@pytest.mark.parametrize(
    ("resources", "resource", "problem"),
    [
        ({"gpuProducts": ["NVIDIA-L4"]}, "amd.com/gpu", "nodes with GPUs of this gpuResourceName lack the labels"),
        ({"gpuMinMemoryGiB": 11}, MIG, "is more than the slice of a GPU in gpuResourceName has"),
        ({"extendedResources": {"a.b/gpu": 1}}, "a.b/gpu", "GPUs are asked for with gpus and gpuResourceName"),
        ({"gpus": 0, "gpuProducts": ["NVIDIA-L4"]}, "amd.com/gpu", "a run without GPUs cannot choose one"),
    ],
    ids=str,
)
def test_what_does_not_go_with_a_name_does_not_with_the_clusters_own(
    resources: dict[str, Any], resource: str, problem: str
) -> None:
    """In the same sentence, once; the API server does not know it."""
    with pytest.raises(ManifestError) as caught:
        train_config(make_manifest(spec={"resources": resources}), RunOptions(uid="u", gpu_resource=resource))
    (found,) = caught.value.problems
    assert found.rule.startswith(problem)


@pytest.mark.parametrize(
    ("products", "accepted"), [(["NVIDIA-L4"], False), (["Tesla-T4", "NVIDIA-L4"], True), (["Tesla-T4"], True)]
)
def test_products_that_leave_out_the_selected_one_are_refused(products: list[str], accepted: bool) -> None:
    """No node has both labels; what names neither a product nor a GPU is selected for other reasons."""
    if accepted:
        assert device({"gpuProducts": products}, product="Tesla-T4").gpu_selected
        return
    with pytest.raises(ManifestError) as caught:
        device({"gpuProducts": products}, product="Tesla-T4")
    assert str(caught.value) == (
        "spec.resources.gpuProducts is ['NVIDIA-L4']: must hold Tesla-T4, to which scheduling.nodeSelector "
        "(nvidia.com/gpu.product) restricts the nodes: remove one of the two, or name the same"
    )


def test_only_a_selected_gpu_is_marked_so() -> None:
    """Products that are allowed select none, and a run without GPUs has none to select."""
    assert not device({"gpuProducts": ["Tesla-T4"]}).gpu_selected
    assert not device({"gpus": 0}, product="Tesla-T4").gpu_selected


def test_what_a_pod_is_given_is_known_to_the_run() -> None:
    """What is silent is left to the cluster."""
    assert device({"memory": "1.5Gi"}).pod_memory_bytes == 3 * 2**29
    assert device({}).pod_memory_bytes is None
