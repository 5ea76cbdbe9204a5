"""`spec.resources` of a manifest as far as the training sees it: how many GPUs, and what is known of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lora_trainer.spec.config import DeviceConfig
from lora_trainer.spec.fields import Reader
from lora_trainer.spec.gpus import Gpu, by_product, least_memory, slice_of, sold_with
from lora_trainer.spec.quantity import size_of
from lora_trainer.spec.reading import check_between
from lora_trainer.spec.resource import Resources

GPU_RESOURCE = "nvidia.com/gpu"
"""Where neither the manifest nor the cluster's settings name another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSetting:
    """What a cluster's administrator says of a GPU: `name` is its product, as the label `nvidia.com/gpu.product` has
    it, or the resource's name under which nodes offer it; `memory_gib` is what it is sold with, `price` of an hour."""

    name: str
    memory_gib: int
    price: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A GPU that the run may get, and what it costs an hour."""

    gpu: Gpu
    price: float | None = None


def read_device(
    section: Reader,
    asked: Resources,
    settings: Sequence[GpuSetting] = (),
    *,
    selected: str | None = None,
    resource: str = GPU_RESOURCE,
    allow_cpu: bool = False,
) -> DeviceConfig:
    """What each of the run's pods is given by what it `asked` for; what does not go together is added to the section's
    problems. `resource` is that of GPUs where the section names none.

    The GPU's memory is that of the slice which the resource's name means; else of the smallest product that the run
    takes, or of the one whose nodes are `selected`; else what it asks for at least, or the setting of the resource.
    """
    gpus, least, products, named = asked.gpus, asked.gpu_min_memory_gib, asked.gpu_products, asked.gpu_resource_name
    resource = named or resource
    right = not any(problem.path.startswith(f"{section.path}.") for problem in section.problems)
    if right and named is None:
        # What does not go with a name does not either where the cluster gives it.
        check_between(replace(asked, gpu_resource_name=resource), section)
    if selected and gpus:
        _check_selected(section, products, selected)
        products = (selected,)
    if gpus and least is not None:
        _check_obtainable(section, least, products)
    found = _smallest(least, products, resource, settings) if gpus else None
    return DeviceConfig(
        gpus=gpus,
        nodes=asked.nodes,
        allow_cpu=allow_cpu,
        gpu=found.gpu.name if found else _unknown(products, named, settings) if gpus else None,
        gpu_memory_bytes=found.gpu.memory_bytes if found else None,
        gpu_sold_bytes=found.gpu.sold_bytes if found else None,
        gpu_price=found.price if found else None,
        pod_memory_bytes=size_of(asked.memory or ""),
        gpu_selected=bool(selected and gpus),
    )


def _check_selected(section: Reader, products: Sequence[str], selected: str) -> None:
    """Complain of products without the one whose nodes are selected: no node has the labels of both."""
    if products and selected not in products:
        rule = (
            f"must hold {selected}, to which scheduling.nodeSelector (nvidia.com/gpu.product) restricts the nodes: "
            "remove one of the two, or name the same"
        )
        section.complain("gpuProducts", list(products), rule)


def _check_obtainable(section: Reader, least: int, products: Sequence[str]) -> None:
    """Complain of more memory than any of the products has: pods would wait for it forever."""
    known = [by_product(product) for product in products]
    if known and all(gpu is not None and gpu.memory_bytes < least_memory(least) for gpu in known):
        rule = f"must be at most what one of {', '.join(products)} has: lower it, or name larger gpuProducts"
        section.complain("gpuMinMemoryGiB", least, rule)


def _smallest(
    least: int | None, products: Sequence[str], resource: str, settings: Sequence[GpuSetting]
) -> _Found | None:
    """The GPU with the least memory that the run may get; None where nothing tells its memory."""
    of_resource = _named(resource, settings)
    if slice_of(resource) is not None:
        # Whatever GPU it is a slice of.
        return of_resource
    if products:
        named = [_named(product, settings) for product in products]
        known = [found for found in named if found is not None]
        enough = [found for found in known if least is None or found.gpu.memory_bytes >= least_memory(least)]
        # A product of which nothing is known may have less memory than all others.
        if enough and len(known) == len(products):
            smallest = min(enough, key=lambda found: found.gpu.memory_bytes)
            return smallest if of_resource is None else _priced(smallest, of_resource)
    # A setting by the resource's name speaks of all GPUs of a cluster: what it lacks of the least, others must have.
    if least is not None and (of_resource is None or of_resource.gpu.memory_bytes < least_memory(least)):
        return _Found(gpu=sold_with(least, f"{least} GiB"))
    return of_resource


def _unknown(products: Sequence[str], named: str | None, settings: Sequence[GpuSetting]) -> str | None:
    """What the run names, a product or a resource of its own, that tells no memory."""
    names = [*products, *([named] if named and named != GPU_RESOURCE else [])]
    return next((name for name in names if _named(name, settings) is None), None)


def _priced(found: _Found, of_resource: _Found) -> _Found:
    """With the price of all GPUs under the resource's name, unless these are of another size."""
    least, most = of_resource.gpu.memory_bytes, of_resource.gpu.most_bytes
    alike = least <= found.gpu.most_bytes and found.gpu.memory_bytes <= most
    return replace(found, price=of_resource.price) if found.price is None and alike else found


def _named(name: str, settings: Sequence[GpuSetting]) -> _Found | None:
    """By the administrator's settings, which know better, or by what the name itself says."""
    setting = next((setting for setting in settings if setting.name.lower() == name.lower()), None)
    known = by_product(name) or slice_of(name)
    if setting is None:
        return None if known is None else _Found(gpu=known)
    sold = sold_with(setting.memory_gib, name)
    if known is not None and sold.memory_bytes <= known.memory_bytes <= sold.most_bytes:
        sold = replace(sold, memory_bytes=known.memory_bytes, sold_bytes=known.sold_bytes)
    return _Found(gpu=sold, price=setting.price)
