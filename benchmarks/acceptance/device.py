"""The device and what it is given to work with: name, capability, driver, memory, packages, and a compiler."""

import importlib.util
import inspect
import sysconfig
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from benchmarks.acceptance.bench import Bench
from benchmarks.acceptance.findings import Check, Figure, Outcome, State, judged, not_run

from lora_trainer.model.device_check import driver_version

_PACKAGES = ("torch", "triton", "transformers", "peft", "bitsandbytes", "liger-kernel")
_LEAST_TORCH = "2.11"
"""The first whose attention over packs takes a window."""
_OF_PACKS = ("scale", "window_size")
"""What `model.attention` gives it."""
_EXTENSION = """
#include <Python.h>
#include <stdlib.h>
static PyObject *answer(PyObject *self, PyObject *none) { return PyLong_FromLong(labs(-42)); }
static PyMethodDef methods[] = {{"answer", answer, METH_NOARGS, ""}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "accepted", "", -1, methods};
PyMODINIT_FUNC PyInit_accepted(void) { return PyModule_Create(&module); }
"""


def checks(bench: Bench) -> Iterator[Check]:
    """All of the part."""
    yield Check(name="packages", run=_packages)
    yield Check(name="PyTorch", run=_torch)
    yield Check(name="GPU", run=lambda: _gpu(bench))
    yield Check(name="extension by Triton's compiler", run=_extension)
    yield Check(name="Triton kernel", run=lambda: _kernel(bench))


def _packages() -> Outcome:
    found: dict[str, Figure] = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    found["cuda"] = torch.version.cuda or "none"
    return Outcome(state=State.MEASURED, said=", ".join(f"{k} {v}" for k, v in found.items()), figures=found)


def _torch() -> Outcome:
    """By what its function takes, for builds from source have versions of their own."""
    taken: set[str] = set()
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415 - absent in an older one
    except ImportError:
        pass
    else:
        taken = {*inspect.signature(varlen_attn).parameters}
    lacking = ", ".join(name for name in _OF_PACKS if name not in taken)
    said = (
        f"torch {torch.__version__} is older than {_LEAST_TORCH}: its varlen_attn, which packs need, does not take "
        f"{lacking}; install torch {_LEAST_TORCH} or later (docs/install.md)"
    )
    return judged(not lacking, said if lacking else f"{_LEAST_TORCH} or later, as packs need")


def _gpu(bench: Bench) -> Outcome:
    if not bench.on_gpu:
        return not_run("the device is a CPU")
    device = bench.device
    free, total = torch.cuda.mem_get_info(device.torch_device)
    capability = ".".join(map(str, device.capability or ()))
    driver = driver_version() or "unknown"
    said = (
        f"{device.name}, compute capability {capability}, driver {driver}, {total / 2**30:.1f} GiB of which "
        f"{free / 2**30:.1f} are free, {device.dtype_name}, {torch.cuda.device_count()} in all"
    )
    figures: dict[str, Figure] = {
        "name": device.name,
        "capability": capability,
        "driver": driver,
        "total_bytes": total,
        "free_bytes": free,
        "count": torch.cuda.device_count(),
    }
    return Outcome(state=State.PASSED, said=said, figures=figures)


def _extension() -> Outcome:
    """Built and called, as Triton does with what starts its kernels and asks the driver. Needs no GPU."""
    if importlib.util.find_spec("triton") is None:
        return not_run("the package triton is absent")
    from triton.runtime import build  # noqa: PLC0415 - absent on some machines

    compiler: Any = build
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "accepted.c"
        source.write_text(_EXTENSION, encoding="utf-8")
        built = compiler._build("accepted", str(source), folder, [], [], [], [])
        found = compiler._load_module_from_path("accepted", built)
        return judged(found.answer() == 42, f"with the headers in {sysconfig.get_path('include')}")


def _kernel(bench: Bench) -> Outcome:
    """A kernel that is compiled for this device and adds."""
    if not bench.on_gpu:
        return not_run("the device is a CPU")
    if importlib.util.find_spec("triton") is None:
        return not_run("the package triton is absent")
    from benchmarks.acceptance.triton_kernel import add  # noqa: PLC0415 - absent on some machines

    left = torch.arange(1000, device=bench.device.torch_device, dtype=torch.float32)
    return judged(bool(torch.equal(add(left, 2 * left), 3 * left)), "compiled, and adds 1,000 numbers")
