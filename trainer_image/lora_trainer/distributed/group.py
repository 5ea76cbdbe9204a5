"""Several processes that train one adapter: one for each GPU, joined as torchrun's environment says.

There is no `DistributedDataParallel`: only the adapter has gradients, some ten million numbers, which one flat
all-reduce after the last micro-batch sums in a few milliseconds. Its overlap with the backward pass would gain less
than its buckets and hooks cost, and its mean over processes would be wrong here: the loss of each process is divided by
the target tokens of the whole step, over all processes, so that gradients are to be summed. So one process, several,
and accumulation all give the same losses, up to the order in which numbers are added.

Small things are sent over gloo on the CPU also where gradients go over NCCL: gloo notices at once that a process is
gone, NCCL may wait for it until the time is over. A step asks for `any` before its gradients are summed, so processes
meet on the CPU first.

Values are sent as JSON, and never as pickles, as PyTorch's own collectives of objects send them: whatever reaches node
0's port takes part as a process, and a pickle is code.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from lora_trainer.distributed.collectives import Ranks
from lora_trainer.distributed.deadline import connecting
from lora_trainer.distributed.parent import STORE
from lora_trainer.errors import PeerFailedError, explain
from lora_trainer.spec import codec

T = TypeVar("T")
BUCKET_NUMBERS = 2**26
"""Most numbers that are copied together for an all-reduce, which bounds its memory: 256 MiB in fp32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group(Ranks):
    """Two or more processes."""

    def rounds(self, micro_batches: int) -> int:
        """With `fsdp` every process makes as many passes as the busiest."""
        if not self.fsdp:
            return micro_batches
        most = torch.tensor(micro_batches)
        with _peers():
            dist.all_reduce(most, dist.ReduceOp.MAX)
        return int(most)

    def sum(self, value: float) -> float:
        """See `Ranks`."""
        total = torch.tensor(value, dtype=torch.float64)
        with _peers():
            dist.all_reduce(total)
        return float(total)

    def any(self, flag: bool) -> bool:
        """See `Ranks`."""
        said = torch.tensor(int(flag))
        with _peers():
            dist.all_reduce(said, dist.ReduceOp.MAX)
        return bool(said)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """See `Ranks`. A parameter that has a gradient nowhere keeps none."""
        everything = list(parameters)
        # On the CPU, as all small things: nothing waits for the GPUs here.
        present = torch.tensor([int(parameter.grad is not None) for parameter in everything])
        with _peers():
            dist.all_reduce(present, dist.ReduceOp.MAX)
        somewhere = [parameter for parameter, found in zip(everything, present.tolist(), strict=True) if found]
        for bucket in _buckets(somewhere):
            summed = torch.cat([_gradient(parameter) for parameter in bucket])
            with _peers():
                dist.all_reduce(summed)
            parts = torch.split(summed, [parameter.numel() for parameter in bucket])
            for parameter, part in zip(bucket, parts, strict=True):
                parameter.grad = part.view_as(parameter).clone()

    def broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        """See `Ranks`."""
        with _peers():
            dist.broadcast(tensor, src=0)
        return tensor

    def broadcast_value(self, value: T, kind: Any) -> T:
        """See `Ranks`."""
        sent = _as_bytes(value) if self.is_main else _room(0)
        size = torch.tensor(len(sent))
        with _peers():
            dist.broadcast(size, src=0)
            received = sent if self.is_main else _room(int(size))
            dist.broadcast(received, src=0)
        return value if self.is_main else _from_bytes(received, kind)

    def gather(self, value: T, kind: Any) -> list[T]:
        """See `Ranks`."""
        sent = _as_bytes(value)
        sizes = [torch.tensor(0) for _ in range(self.world)]
        with _peers():
            dist.all_gather(sizes, torch.tensor(len(sent)))
            most = int(max(sizes))
            received = [_room(most) for _ in range(self.world)]
            dist.all_gather(received, torch.cat([sent, _room(most - len(sent))]))
        return [_from_bytes(data[: int(size)], kind) for data, size in zip(received, sizes, strict=True)]

    def barrier(self) -> None:
        """See `Ranks`."""
        self.any(flag=False)


def local_rank() -> int:
    """This process's number on its node."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextlib.contextmanager
def join(device: torch.device, timeout_s: float) -> Iterator[Ranks]:
    """Join the processes that torchrun started; the group of one where it started none.

    A collective that waits longer than `timeout_s` fails. Raises `PeerFailedError`; see `connecting`, too.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks()
        return
    on_gpu = device.type == "cuda"
    with _peers(), connecting(timeout_s):
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            init_method=f"file://{os.environ[STORE]}" if STORE in os.environ else "env://",
            rank=int(os.environ["RANK"]),
            world_size=world,
            timeout=timedelta(seconds=timeout_s),
            device_id=device if on_gpu else None,
        )
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    ranks = Group(rank=dist.get_rank(), world=world, local_rank=local_rank(), local_world=here, timeout_s=timeout_s)
    # After an error the process ends without taking leave: the others would be waited for.
    yield ranks
    ranks.barrier()
    dist.destroy_process_group()


def _room(size: int) -> torch.Tensor:
    return torch.zeros(size, dtype=torch.uint8)


def _as_bytes(value: object) -> torch.Tensor:
    return torch.frombuffer(bytearray(json.dumps(codec.encode(value)).encode()), dtype=torch.uint8)


def _from_bytes(data: torch.Tensor, kind: Any) -> Any:
    return codec.decode(kind, json.loads(data.numpy().tobytes()))


@contextlib.contextmanager
def _peers() -> Iterator[None]:
    """Turn the errors of a collective into one that says that the cause is elsewhere."""
    try:
        yield
    except RuntimeError as error:
        known = explain(error)
        if isinstance(known, PeerFailedError):
            raise known from error
        raise


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Neighbours of one type and device, up to `BUCKET_NUMBERS` together; at least one."""
    for _, same in groupby(parameters, key=lambda parameter: (parameter.dtype, parameter.device)):
        bucket: list[nn.Parameter] = []
        for parameter in same:
            if bucket and sum(one.numel() for one in bucket) + parameter.numel() > BUCKET_NUMBERS:
                yield bucket
                bucket = []
            bucket.append(parameter)
        yield bucket


def _gradient(parameter: nn.Parameter) -> torch.Tensor:
    return torch.zeros_like(parameter).flatten() if parameter.grad is None else parameter.grad.flatten()
