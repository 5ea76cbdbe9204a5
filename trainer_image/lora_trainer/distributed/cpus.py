"""How many CPUs this process may use."""

import math
import os
from pathlib import Path

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def cpu_threads(quota_file: Path = CPU_MAX) -> int:
    """CPUs of the process's affinity, or of the container's quota where that is less; under torchrun its share of them.

    With more threads than quota, every step waits for the kernel to hand out the next period.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, node_cpus(quota_file) // processes)


def node_cpus(quota_file: Path = CPU_MAX) -> int:
    """The same of all processes of this node together."""
    # Linux alone tells it; a laptop with another system runs nothing beside.
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = quota_file.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return available
    return available if quota == "max" else min(available, math.ceil(int(quota) / int(period)))
