"""GPUs by name: memory, dense peak in 16 bits, memory bandwidth. Any other is named by its memory alone."""

import re
from dataclasses import dataclass

from lora_trainer.contract.fields import nearest
from lora_trainer.contract.fit.reading import shown

MIB, GIB = 2**20, 2**30
_SIZE = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?) ?(GiB|GB|MiB)", re.IGNORECASE)
_UNITS = {"gib": ("GiB", GIB), "gb": ("GB", 10**9), "mib": ("MiB", MIB)}
_LEAST, _MOST = GIB, 1024 * GIB


class DeviceError(ValueError):
    """A device that nobody knows; the text is a sentence with value, rule and remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU. `memory_bytes` is what its driver reports, `flops` the dense peak in 16 bits with fp32 accumulation a
    second, `bandwidth` bytes a second; None where not known. `packs` says whether PyTorch has a kernel for packed rows
    (compute capability 8.0 and more), `bf16` whether it computes in bf16 natively.
    """

    name: str
    memory_bytes: int
    flops: float | None = None
    bandwidth: float | None = None
    packs: bool = True
    bf16: bool = True


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


def find_gpu(text: str) -> Gpu:
    """The GPU of that name, or one of that memory (`24GiB`, `40GB`, `23034MiB`). Raises `DeviceError`."""
    wanted = _plain(text)
    for gpu in KNOWN:
        if _plain(gpu.name) == wanted:
            return gpu
    names = ", ".join(gpu.name for gpu in KNOWN)
    size = _SIZE.fullmatch(text.strip())
    if size is None:
        near = nearest(wanted, [_plain(gpu.name) for gpu in KNOWN])
        found = next((gpu.name for gpu in KNOWN if _plain(gpu.name) == near), None)
        hint = f"did you mean {found}?" if found else "name its memory instead, as in 24GiB"
        raise DeviceError(f"--gpu is {shown(text)}: must be one of {names}, or a memory as in 24GiB; {hint}")
    unit, factor = _UNITS[size[2].lower()]
    memory = int(float(size[1]) * factor)
    if not _LEAST <= memory <= _MOST:
        raise DeviceError(f"--gpu is {shown(text)}: must be from 1GiB to 1024GiB; name the memory of one GPU")
    return Gpu(name=f"{size[1]}{unit}", memory_bytes=memory)


def _plain(name: str) -> str:
    """Without what people write differently: case, blanks, hyphens, the vendor, `A100-80GB` for `A100 80`."""
    short = re.sub(r"[\s_-]", "", name.lower()).removeprefix("nvidia").removeprefix("geforce").removeprefix("tesla")
    short = "rtx4090" if short == "4090" else short
    return re.sub(r"(?<=a10040)gi?b$|(?<=a10080)gi?b$", "", short)
