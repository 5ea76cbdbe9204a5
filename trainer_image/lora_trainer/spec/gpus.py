"""GPUs by name: memory, dense peak in 16 bits, memory bandwidth. Any other is named by its memory alone."""

import re
from dataclasses import dataclass, replace

from lora_trainer.spec.config import DeviceConfig
from lora_trainer.spec.fields import nearest
from lora_trainer.spec.shown import shown

MIB, GIB = 2**20, 2**30
_SIZE = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?) ?(GiB?|GB|MiB?)", re.IGNORECASE)
_UNITS = {"gi": ("GiB", GIB), "g": ("GB", 10**9), "mi": ("MiB", MIB)}
_LEAST, _MOST = GIB, 1024 * GIB
LABEL_SHARE = 0.92
"""Of the memory that a GPU is sold with: what its driver reports at least."""


class DeviceError(ValueError):
    """A device that nobody knows; the text is a sentence with value, rule and remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU. `memory_bytes` is what its driver reports; where only the size is known that it is sold with, this is
    `sold_bytes`, and `memory_bytes` what its driver reports at least. `flops` is the dense peak in 16 bits with fp32
    accumulation a second, `bandwidth` bytes a second; None where not known. `packs` says whether PyTorch has a kernel
    for packed rows (compute capability 8.0 and more), `bf16` whether it computes in bf16 natively.
    """

    name: str
    memory_bytes: int
    sold_bytes: int | None = None
    flops: float | None = None
    bandwidth: float | None = None
    packs: bool = True
    bf16: bool = True

    @property
    def most_bytes(self) -> int:
        """What it may have at most, as far as that is known: only what needs more surely does not fit."""
        return self.memory_bytes if self.sold_bytes is None else self.sold_bytes


def _gpu(name: str, mib: int, teraflops: float, gigabytes: float, *, ampere: bool = True) -> Gpu:
    return Gpu(
        name=name,
        memory_bytes=mib * MIB,
        flops=teraflops * 1e12,
        bandwidth=gigabytes * 1e9,
        packs=ampere,
        bf16=ampere,
    )


KNOWN = (
    _gpu("T4", 15_360, 65, 320, ampere=False),
    _gpu("L4", 23_034, 121, 300),
    _gpu("A10", 23_028, 125, 600),
    _gpu("RTX 4090", 24_564, 165.2, 1008),
    _gpu("A100 40", 40_960, 312, 1555),
    _gpu("A100 80", 81_920, 312, 2039),
    _gpu("L40S", 46_068, 362, 864),
    _gpu("H100", 81_559, 989.4, 3350),
    _gpu("H200", 143_771, 989.4, 4800),
    _gpu("B200", 183_359, 2250, 8000),
)
"""Memory as nvidia-smi shows it, MiB; peak and bandwidth of NVIDIA's data sheets, of the SXM form where there are
several, and without sparsity."""

RELATED = (
    _gpu("A10G", 23_028, 70, 600),
    _gpu("A30", 24_576, 165, 933),
    _gpu("L40", 46_068, 181.05, 864),
    _gpu("H100 PCIe", 81_559, 756, 2000),
    _gpu("H100 NVL", 95_830, 835, 3900),
    _gpu("GH200", 97_871, 989.4, 4000),
)
"""Found by their names, and left out of tables: each is much like one of those. Sources as there: NVIDIA's data sheets
of A10G (the form of AWS), A30, L40, H100 (PCIe: 1,513 with sparsity, NVL: 1,671) and GH200 with 96 GB of HBM3."""


_PRODUCTS = tuple(
    (pattern, next(gpu for gpu in (*KNOWN, *RELATED) if gpu.name == name))
    for pattern, name in (
        ("t4", "T4"),
        ("l4", "L4"),
        ("a10", "A10"),
        ("rtx-4090", "RTX 4090"),
        ("a100-(sxm4|pcie|pg509)-40gb", "A100 40"),
        ("a100-(sxm4-|pcie-)?80gb(-pcie)?", "A100 80"),
        ("l40s", "L40S"),
        ("h100-80gb-hbm3", "H100"),
        ("h200(-141gb-hbm3e)?", "H200"),
        ("b200", "B200"),
        ("a10g", "A10G"),
        ("a30", "A30"),
        ("l40", "L40"),
        ("h100-pcie", "H100 PCIe"),
        ("h100-nvl", "H100 NVL"),
        ("gh200-(480|120)gb", "GH200"),
    )
)
"""How drivers name the GPUs of the table, in lower case and with hyphens."""
_OTHERS = {
    "RTX 3090": 24,
    "RTX 3090 Ti": 24,
    "RTX 5090": 32,
    "RTX A4000": 16,
    "RTX A5000": 24,
    "RTX A6000": 48,
    "A40": 48,
}
"""GiB that GPUs are sold with of which the table has no speed, by NVIDIA's data sheets; all of one size."""
_SLICE = re.compile(r"mig-[1-9][0-9]?g\.([0-9]{1,4})gb(?![a-z0-9])")
_SHARED = ("-shared", ".shared")
"""How NVIDIA's device plugin marks what several pods take in turns."""
_NEAR = 0.08
"""Relative difference of memory between drivers: PyTorch sees some 4 % less than nvidia-smi shows."""


def find_gpu(text: str) -> Gpu:
    """The GPU of that name, label or slice, or one of that memory: whole GiB are what it is sold with, as in
    `resources.gpuMinMemoryGiB`, other memory (`22.5GiB`, `40GB`, `23034MiB`) what its driver reports; `Gi` and `Mi` are
    Kubernetes' units. Raises `DeviceError`."""
    wanted, size = _plain(text), _SIZE.fullmatch(text.strip())
    known = next((gpu for gpu in (*KNOWN, *RELATED) if _plain(gpu.name) == wanted), None) or _by_label(text.strip())
    if known is not None:
        return known
    if size is None:
        names = ", ".join(gpu.name for gpu in KNOWN)
        raise DeviceError(f"--gpu is {shown(text)}: must be one of {names}, or a memory as in 24GiB; {_meant(wanted)}")
    unit, factor = _UNITS[size[2].lower().removesuffix("b")]
    memory = int(float(size[1]) * factor)
    if not _LEAST <= memory <= _MOST:
        raise DeviceError(f"--gpu is {shown(text)}: must be from 1GiB to 1024GiB; name the memory of one GPU")
    name = f"{size[1]}{unit}"
    whole = factor == GIB and size[1].isdecimal()
    return sold_with(int(size[1]), name) if whole else Gpu(name=name, memory_bytes=memory)


def _by_label(text: str) -> Gpu | None:
    """By what manifests call it: the label of its nodes, or a slice's resource or profile."""
    profile = _SLICE.search(text.lower()) or _SLICE.fullmatch(f"mig-{text.lower()}")
    found = None if profile is None or text.lower().endswith(_SHARED) else slice_of(profile[0])
    return found or by_product(text)


def _meant(wanted: str) -> str:
    """What to type instead of a name that is no GPU's: the sizes of a GPU, a memory, or a name that is misspelt, whose
    digits are right."""
    if wanted.isdecimal() and 1 <= int(wanted) <= _MOST // GIB:
        return f"did you mean {int(wanted)}GiB?"
    other = next((name for name in _OTHERS if _plain(name).removeprefix("rtx") == wanted.removeprefix("rtx")), None)
    if other is not None:
        return f"did you mean {_OTHERS[other]}GiB, which an {other} is sold with?"
    plain = {_plain(gpu.name): gpu.name for gpu in KNOWN}
    near, digits = nearest(wanted, plain), re.sub(r"[^0-9]", "", wanted)
    alike = [plain[near]] if near and wanted[0] == near[0] and digits in near else []
    found = [name for key, name in plain.items() if wanted and key.startswith(wanted)] or alike
    return f"did you mean {' or '.join(found)}?" if found else "name its memory instead, as in 24GiB"


def _plain(name: str) -> str:
    """Without what people write differently: case, blanks, hyphens, the vendor, `A100-80GB` for `A100 80`."""
    short = re.sub(r"[\s_-]", "", name.lower()).removeprefix("nvidia").removeprefix("geforce").removeprefix("tesla")
    short = "rtx4090" if short == "4090" else short
    return re.sub(r"(?<=a10040)gi?b$|(?<=a10080)gi?b$", "", short)


def least_label(gib: int) -> int:
    """MiB that the driver of a GPU sold with so many GiB reports at least.

    Where memory lies on the board, ECC takes a sixteenth of it (a T4 of 16 GiB has 15,360 MiB, an L4 of 24 GiB 23,034),
    and older drivers kept a few hundred MiB more (15,079 and 22,731). The next smaller size is far below it.
    """
    return int(gib * 1024 * LABEL_SHARE)


def least_memory(gib: int) -> int:
    """Bytes of the smallest GPU that is sold with so many GiB."""
    return (least_label(gib) + 1) * MIB


def sold_with(gib: int, name: str) -> Gpu:
    """A GPU of which only the size is known that it is sold with."""
    return Gpu(name=name, memory_bytes=least_memory(gib), sold_bytes=gib * GIB)


def by_product(name: str) -> Gpu | None:
    """The GPU that a driver calls so (`NVIDIA A100-SXM4-40GB`), or GPU feature discovery, with hyphens for blanks; a
    slice of one has the memory that its name says. None for any other, and for one that is shared in time."""
    plain = _hyphened(name)
    found = slice_of(plain)
    if found is not None:
        return replace(found, name=name)
    return next((gpu for pattern, gpu in _PRODUCTS if re.search(rf"(^|-){pattern}$", plain)), None)


def slice_of(name: str) -> Gpu | None:
    """The slice of a GPU whose profile a resource or a product names, as in `nvidia.com/mig-3g.40gb`, with blanks as
    PyTorch writes it; None for any other, and for one that is shared in time."""
    plain = _hyphened(name)
    found = None if plain.endswith(_SHARED) else _SLICE.search(plain)
    if found is None or not 1 <= int(found[1]) <= _MOST // GIB:
        return None
    return sold_with(int(found[1]), name.rpartition("/")[2])


def _hyphened(name: str) -> str:
    """As labels have it: drivers write blanks."""
    return re.sub(r"[\s_]+", "-", name.strip().lower())


def found_gpu(name: str, memory_bytes: int, capability: tuple[int, int]) -> Gpu:
    """The GPU that a process finds. One that is known counts with the memory that the table has, so that a plan by its
    name says the same."""
    ampere = capability >= (8, 0)
    known = by_product(name)
    if known is None:
        return Gpu(name=name, memory_bytes=memory_bytes, packs=ampere, bf16=ampere)
    near = abs(known.memory_bytes - memory_bytes) <= _NEAR * known.memory_bytes
    return known if near else replace(known, memory_bytes=memory_bytes, sold_bytes=None)


def device_of(config: DeviceConfig) -> Gpu | None:
    """The GPU of which a run's configuration says how much memory it has; None where nothing tells it."""
    if config.gpu_memory_bytes is None:
        return None
    name = config.gpu or f"{config.gpu_memory_bytes / GIB:.1f} GiB"
    named = next((gpu for gpu in (*KNOWN, *RELATED) if gpu.name == name), None)
    known = by_product(name) or named or Gpu(name=name, memory_bytes=0)
    return replace(known, memory_bytes=config.gpu_memory_bytes, sold_bytes=config.gpu_sold_bytes)


def gib(size: float) -> str:
    """Bytes for people."""
    return f"{size / GIB:.1f} GiB"
