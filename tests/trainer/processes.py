"""Several processes at once, as torchrun would start them, without importing PyTorch in each of them anew."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from tests.ports import free_port

# On a busy machine the imports that are not preloaded take a minute. Longer is a hang.
WAIT_S = 600
_PRELOAD = [
    "torch",
    "peft",
    "transformers.models.llama.modeling_llama",
    "torch.distributed.fsdp",
    "lora_trainer.train.loop",
]


class ProgramError(Exception):
    """What a process raised, as text."""


def together(world: int, program: Callable[..., Any], *arguments: Any, nodes: int = 1) -> list[Any]:
    """What `program(*arguments)` returns in each of `world` processes, by rank; an exception as `ProgramError`.

    They are told that they are on so many nodes.
    """
    here = world // nodes
    port = free_port()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    started = []
    for rank in range(world):
        # That of this test: the server has the one in which the first test of this process needed it.
        environment: dict[str, Any] = {**os.environ, "RANK": rank, "LOCAL_RANK": rank % here, "WORLD_SIZE": world}
        environment |= {"LOCAL_WORLD_SIZE": here, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment["GLOO_SOCKET_IFNAME"] = "lo"
        ours, theirs = context.Pipe()
        process = context.Process(target=_run, args=(theirs, environment, program, arguments))
        process.start()
        theirs.close()
        started.append((process, ours))
    try:
        return [_result(ours) for _, ours in started]
    finally:
        for process, _ in started:
            process.kill()
            process.join()


def _run(
    answer: Connection, environment: dict[str, Any], program: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ.clear()
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)
    try:
        answer.send(program(*arguments))
    except BaseException as error:
        answer.send(ProgramError(f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))


def _result(answer: Connection) -> Any:
    if not answer.poll(WAIT_S):
        return ProgramError(f"no answer within {WAIT_S} s")
    try:
        return answer.recv()
    except EOFError:
        return ProgramError("the process ended without an answer")
