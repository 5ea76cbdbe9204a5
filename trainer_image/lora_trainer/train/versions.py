"""The versions that a run computes with."""

import importlib.metadata
import platform

from lora_trainer.spec.release import RELEASE
from lora_trainer.spec.summary import ResolvedRun

_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
_LIGER = "liger-kernel"


def versions(resolved: ResolvedRun) -> dict[str, str]:
    """Of this project, Python, and the libraries that compute; Liger's where a run takes a kernel of it."""
    liger = any(kernel.startswith("liger-") for kernel in resolved.kernels or ())
    names = (*_LIBRARIES, _LIGER) if liger else _LIBRARIES
    libraries = {library: importlib.metadata.version(library) for library in names}
    return {"lora-finetune-operator": RELEASE, "python": platform.python_version(), **libraries}
