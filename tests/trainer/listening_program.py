"""A stand-in for the stage `train` under torchrun: processes join, and the first one writes to the file LISTENING which
addresses torchrun and they listen on, as the kernel writes them, without the loopback's."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from lora_trainer.distributed.group import join

_LOOPBACK = {"0100007F", "00000000000000000000000001000000"}
_LISTEN = "0A"


def _family() -> Iterator[Path]:
    """torchrun, and the processes that it started."""
    yield Path(f"/proc/{os.getppid()}")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = (process / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1]
        except OSError:
            continue
        if parent == str(os.getppid()):
            yield process


def _sockets(process: Path) -> Iterator[str]:
    for descriptor in (process / "fd").iterdir():
        try:
            target = descriptor.readlink().name
        except OSError:
            continue
        if target.startswith("socket:"):
            yield target.removeprefix("socket:[").removesuffix("]")


def _listening() -> list[str]:
    own = {socket for process in _family() for socket in _sockets(process)}
    lines = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text(encoding="utf-8").splitlines()[1:]
    ]
    addresses = [fields[1] for fields in lines if fields[3] == _LISTEN and fields[9] in own]
    return [address for address in addresses if address.partition(":")[0] not in _LOOPBACK]


if __name__ == "__main__":
    with join(torch.device("cpu"), 60.0) as ranks:
        total = ranks.sum(1.0)
        if ranks.is_main:
            Path(os.environ["LISTENING"]).write_text(f"{total:.0f} {_listening()}", encoding="utf-8")
        ranks.barrier()
