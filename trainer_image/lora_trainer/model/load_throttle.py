"""How many processes of a node read a base model on the CPU at a time.

Weights that a model holds as its files do are pages of these, which all processes of a node share. What is converted is
copied by each process that reads it: experts that the files have one by one and the model as a stack, and another type.
"""

import contextlib
import logging
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from lora_trainer.distributed.collectives import Ranks
from lora_trainer.storage.model_folder import weights_in
from lora_trainer.storage.tensor_files import read_entries

log = logging.getLogger(__name__)
CGROUP, MEMINFO = Path("/sys/fs/cgroup"), Path("/proc/meminfo")
_TYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
_ONE_EXPERT = re.compile(r"\.experts\.\d+\.")
_SHARE = 0.8
"""Of the free memory: libraries, the adapter and a checkpoint need the rest."""


def readers(folder: Path, dtype: torch.dtype, ranks: Ranks) -> int:
    """How many processes of each node may read the model in `folder` as `dtype` at a time, the same on all processes:
    as many as the node with least memory has room for. A collective."""
    copied = copied_bytes(weights_in(folder), dtype)
    most = max(1, int(_SHARE * free_memory() / copied)) if copied else ranks.local_world
    found = min(ranks.gather(min(most, ranks.local_world), int))
    if found < ranks.local_world:
        log.info("the base model is read by %d processes of a node at a time: each makes a copy in main memory", found)
    return found


@contextlib.contextmanager
def throttled(ranks: Ranks, at_once: int) -> Iterator[None]:
    """Entered by `at_once` processes of each node at a time. Within it nothing is sent; all processes come here."""
    turns, mine = math.ceil(ranks.local_world / at_once), ranks.local_rank // at_once
    for _ in range(mine):
        ranks.barrier()
    yield
    for _ in range(turns - 1 - mine):
        ranks.barrier()


def copied_bytes(files: Iterable[Path], dtype: torch.dtype) -> int:
    """Bytes of the weights in safetensors files that a model in `dtype` holds otherwise than they do."""
    return sum(
        entry.values * dtype.itemsize
        for file in files
        for entry in read_entries(file)
        if entry.dtype != _TYPES[dtype] or _ONE_EXPERT.search(entry.name)
    )


def free_memory(cgroup: Path = CGROUP, meminfo: Path = MEMINFO) -> int:
    """Bytes that this container may take more: of its limit, without the cache of files, or what the machine has."""
    machine = _available(meminfo)
    try:
        limit = (cgroup / "memory.max").read_text(encoding="ascii").strip()
        taken = dict(line.split() for line in (cgroup / "memory.stat").read_text(encoding="ascii").splitlines())
    except OSError:
        return machine
    return machine if limit == "max" else max(0, min(machine, int(limit) - int(taken["anon"]) - int(taken["shmem"])))


def _available(meminfo: Path) -> int:
    try:
        lines = [line.split() for line in meminfo.read_text(encoding="ascii").splitlines()]
    except OSError:
        # No Linux: all of the machine's.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return next(1024 * int(words[1]) for words in lines if words[0] == "MemAvailable:")
