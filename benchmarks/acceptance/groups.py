"""Two GPUs: sums over NCCL, and trainings with the base whole on each and divided by FSDP2, against one GPU alone.

On a CPU, tiny: two processes over gloo.
"""

import dataclasses
import multiprocessing
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from benchmarks.acceptance.bench import Bench
from benchmarks.acceptance.findings import Check, Figure, Outcome, State, judged, not_run
from benchmarks.acceptance.models import Recipe, Taken, random_base, training_of

from lora_trainer.distributed.collectives import ALONE, Ranks
from lora_trainer.distributed.group import join, local_rank
from lora_trainer.errors import one_sentence
from lora_trainer.model.loading import adapt, load_model
from lora_trainer.model.sharding import mesh_over, on_cpu, shard
from lora_trainer.spec.config import LoraConfig, Quantization
from lora_trainer.storage.base import Base
from lora_trainer.train.self_check import take_fast
from lora_trainer.train.stopping import Stop

_WORLD, _WAIT_S = 2, 240.0
_SAME = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Most relative difference of losses: sums go in another order."""
_STEPS = 4
Results = Mapping[str, Figure]


def checks(bench: Bench) -> Iterator[Check]:
    """All in one start of the processes."""
    if bench.on_gpu and torch.cuda.device_count() < _WORLD:
        yield Check(name="NCCL and FSDP2", run=lambda: not_run("there is one GPU; two are needed"))
        return
    if not (bench.on_gpu or bench.tiny):
        yield Check(name="NCCL and FSDP2", run=lambda: not_run("the device is a CPU"))
        return
    results: list[Results] = []
    name = "NCCL" if bench.on_gpu else "gloo"
    yield Check(name=f"sums over {name}", run=partial(_sums, bench, results))
    yield Check(name="two processes as one", run=partial(_losses, bench, results, "whole"))
    yield Check(name="FSDP2 as one", run=partial(_losses, bench, results, "divided"))
    yield Check(name="FSDP2 of NF4 as one", run=partial(_losses, bench, results, "packed"))


def _sums(bench: Bench, results: list[Results]) -> Outcome:
    results += _together(bench)
    seconds = max(float(result["sum_seconds"]) for result in results)
    speed = float(results[0]["sum_bytes"]) / seconds
    right = all(result["sum"] == "right" for result in results)
    return judged(right, f"{speed / 1e9:.2f} GB/s of gradients", bytes_per_second=speed)


def _losses(bench: Bench, results: list[Results], way: str) -> Outcome:
    if not results:
        return Outcome(state=State.NOT_RUN, said="the processes have not started")
    apart = max(float(result[f"{way}_apart"]) for result in results)
    held = 1.0 if way == "whole" else float(results[0][f"{way}_share"])
    right = apart <= _SAME[bench.device.dtype] and held <= (1.0 if way == "whole" else 0.51)
    said = f"losses {apart:.1e} apart, each holds {held:.0%} of the layers"
    figures: dict[str, Figure] = {"apart": apart, "held": held}
    if way != "whole":
        figures["kernels"] = results[0][f"{way}_kernels"]
    return judged(right, said, **figures)


def program(bench: Bench, folder: Path) -> Results:
    """What each process does and finds."""
    device = bench.device
    if bench.on_gpu:
        torch.cuda.set_device(local_rank())
        device = dataclasses.replace(device, torch_device=torch.device("cuda", local_rank()))
    base = Base(folder=folder, name="random", revision="sha256:0", model_type="llama")
    bench = dataclasses.replace(bench, device=device)
    alone, all_bytes, _ = _trained(bench, base, ALONE, divided=False)
    packed_alone, packed_bytes, _ = _trained(bench, base, ALONE, divided=False, quantization=Quantization.NF4)
    with join(device.torch_device, _WAIT_S) as ranks:
        found = _summed(device.torch_device, ranks, 2**12 if bench.tiny else 2**26)
        whole, _, _ = _trained(bench, base, ranks, divided=False)
        divided, held, kernels = _trained(bench, base, ranks, divided=True)
        packed, held_packed, of_packed = _trained(bench, base, ranks, divided=True, quantization=Quantization.NF4)
        share, packed_share = (ranks.sum(one) / ranks.world for one in (held / all_bytes, held_packed / packed_bytes))
    return {
        **found,
        "whole_apart": _apart(whole, alone),
        "divided_apart": _apart(divided, alone),
        "divided_share": share,
        "divided_kernels": ", ".join(kernels),
        "packed_apart": _apart(packed, packed_alone),
        "packed_share": packed_share,
        "packed_kernels": ", ".join(of_packed),
    }


def _apart(found: list[float], wanted: list[float]) -> float:
    return max(abs(one / other - 1) for one, other in zip(found, wanted, strict=True))


def _summed(device: torch.device, ranks: Ranks, numbers: int) -> dict[str, Figure]:
    """Gradients as a step sums them; the second time, when the connection stands."""
    seconds, right = 0.0, True
    for _ in range(2):
        parameter = torch.nn.Parameter(torch.zeros(numbers, device=device))
        parameter.grad = torch.full_like(parameter, float(ranks.rank + 1))
        ranks.barrier()
        started = time.perf_counter()
        ranks.sum_gradients([parameter])
        right = right and bool((parameter.grad == ranks.world * (ranks.world + 1) / 2).all())
        seconds = time.perf_counter() - started
    return {"sum": "right" if right else "wrong", "sum_seconds": seconds, "sum_bytes": 4 * numbers}


def _trained(
    bench: Bench, base: Base, ranks: Ranks, *, divided: bool, quantization: Quantization = Quantization.NONE
) -> tuple[list[float], int, tuple[str, ...]]:
    """Losses of a short training, the bytes of the layers' weights that this process holds, and the fast paths that
    were taken, as in a run."""
    device, lora = bench.device, LoraConfig(rank=8, alpha=16)
    where = on_cpu(device) if divided else device
    loaded = load_model(base, quantization, where, packs_later=divided)
    adapted = adapt(loaded, lora, base, where, 3, ranks=ranks)
    if divided:
        shard(adapted.model, device, mesh_over(device, ranks, ranks.world))
        ranks = dataclasses.replace(ranks, fsdp=True)
    recipe, taken = Recipe(), Taken()
    recipe = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, max_steps=_STEPS))
    training = training_of(adapted, recipe, device, bench, taken, stop=Stop(), ranks=ranks)
    limit, rows = training.limit, training.examples
    kernels = take_fast(adapted, rows, limit, device, ranks)
    training.run()
    layers = [p for name, p in adapted.model.named_parameters() if ".layers." in name and not p.requires_grad]
    return taken.losses, sum(map(_own, layers)), kernels.names


def _own(parameter: Any) -> int:
    own = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return int(own.numel() * own.element_size())


def _together(bench: Bench) -> list[Results]:
    """What `program` finds in each of two processes. Raises `RuntimeError` with what one of them raised."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    started = []
    with tempfile.TemporaryDirectory() as folder:
        random_base(Path(folder), "llama", bench.sizes, bench.device)
        for rank in range(_WORLD):
            ours, theirs = context.Pipe()
            process = context.Process(target=_run, args=(theirs, rank, port, bench, Path(folder)))
            process.start()
            theirs.close()
            started.append((process, ours))
        try:
            return [_answer(ours) for _, ours in started]
        finally:
            for process, _ in started:
                process.kill()
                process.join()


def _run(answer: Connection, rank: int, port: int, bench: Bench, folder: Path) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": _WORLD, "LOCAL_WORLD_SIZE": _WORLD, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    if not bench.on_gpu:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        torch.set_num_threads(1)
    try:
        answer.send(program(bench, folder))
    except Exception as error:  # whatever it is, the other process waits for an answer
        answer.send(one_sentence(error)[:300])


def _answer(answer: Connection) -> Results:
    if not answer.poll(_WAIT_S):
        raise RuntimeError(f"no answer within {_WAIT_S:.0f} s")
    found: Results | str = answer.recv()
    if isinstance(found, str):
        raise RuntimeError(found)
    return found
