"""What tests run in several processes at once."""

import os
import signal
from typing import Any

import torch

from lora_trainer.device import Device
from lora_trainer.group import join

CPU = Device(torch_device=torch.device("cpu"), name="cpu", dtype=torch.float32)
WAIT_S = 60.0


def tell_each_other() -> dict[str, Any]:
    """Every collective once; gradients that all, one and none of the processes have."""
    with join(CPU, WAIT_S) as ranks:
        everywhere, somewhere, nowhere = (torch.nn.Parameter(torch.zeros(2, 3)) for _ in range(3))
        everywhere.grad = torch.full((2, 3), float(ranks.rank + 1))
        if ranks.rank == 1:
            somewhere.grad = torch.full((2, 3), 5.0)
        ranks.sum_gradients([everywhere, somewhere, nowhere])
        return {
            "place": (ranks.rank, ranks.world, ranks.local_rank, ranks.is_main),
            "sum": ranks.sum(ranks.rank + 0.5),
            "any": (ranks.any(ranks.rank == 1), ranks.any(False)),
            "broadcast": ranks.broadcast(torch.full((2,), ranks.rank + 7)).tolist(),
            "object": ranks.broadcast_object([torch.tensor(ranks.rank)])[0].item(),
            "gather": ranks.gather(f"rank {ranks.rank}"),
            "rounds": ranks.rounds(ranks.rank + 2),
            "gradients": [None if p.grad is None else p.grad.tolist() for p in (everywhere, somewhere, nowhere)],
        }


def lose_a_process(how: str) -> str:
    """Rank 1 ends in the middle, by a signal or by an error of its own; the others wait for it in a collective."""
    with join(CPU, WAIT_S) as ranks:
        ranks.barrier()
        if ranks.rank == 1:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("its own fault")
        ranks.sum(1.0)
    return "unreachable"
