"""Whether a pod can use the RDMA that its run asks for. Where it cannot, NCCL takes TCP, ten times slower, and says so
only with NCCL_DEBUG=INFO; or it fails when it locks its buffers."""

import ctypes
import logging
import resource
from collections.abc import Mapping
from pathlib import Path

from lora_trainer.errors import MORE_LOCKED_MEMORY
from lora_trainer.spec.config import DeviceConfig

log = logging.getLogger(__name__)
DEVICES = Path("/dev/infiniband")
LIBRARY = "libibverbs.so.1"
_OF_RDMA = "NCCL_IB_"
_OFF = "NCCL_IB_DISABLE"


def warn_of_rdma(device: DeviceConfig, environment: Mapping[str, str]) -> None:
    """Log why this pod cannot use RDMA that a run with GPUs on several nodes asks for."""
    why_not = obstacle(environment) if device.nodes > 1 and device.gpus > 0 else None
    if why_not is not None:
        log.warning("RDMA between the nodes: %s", why_not)


def obstacle(environment: Mapping[str, str]) -> str | None:
    """What keeps this process from RDMA, and the remedy; None where nothing is seen, or nobody asks for it.

    Device plugins put a device there whatever the name of its resource, so a run asks by that or by a variable.
    """
    asked = [name for name in sorted(environment) if name.startswith(_OF_RDMA)]
    given = any(DEVICES.glob("uverbs*"))
    if environment.get(_OFF, "0") != "0" or not (asked or given):
        return None
    if not given:
        return (
            f"{asked[0]} is set, but the pod has no device in {DEVICES}, so that NCCL uses TCP: request one in "
            f"resources.extendedResources, or remove {asked[0]}"
        )
    try:
        ctypes.CDLL(LIBRARY)
    except OSError as error:
        return (
            f"{LIBRARY} cannot be loaded ({error}), so that NCCL uses TCP: use the release's trainer image, or install "
            "libibverbs1 and ibverbs-providers in yours"
        )
    most_bytes, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if most_bytes == resource.RLIM_INFINITY:
        return None
    return (
        f"a process may lock {most_bytes // 1024} KiB of memory, which may not suffice for NCCL: {MORE_LOCKED_MEMORY}"
    )
