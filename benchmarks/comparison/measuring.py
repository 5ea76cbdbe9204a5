"""What is measured of each training, by the same code."""

import gc
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from benchmarks.comparison.job import Job, Row, rows
from benchmarks.comparison.settings import EFFECTIVE

from lora_trainer.data.store import Examples
from lora_trainer.data.tokens import Example
from lora_trainer.model.device import Device, choose_device
from lora_trainer.spec.config import DeviceConfig, Precision
from lora_trainer.train.batches import MicroBatchLimit
from lora_trainer.train.evaluate import evaluate

HELD_OUT = {"short": 32, "full": 4}
"""Rows."""


def device_of(job: Job) -> Device:
    """The GPU in 16 bits, or the CPU in fp32, with so many threads."""
    device = choose_device(DeviceConfig(gpus=1 if job.device == "cuda" else 0), Precision.AUTO)
    torch.set_num_threads(job.threads)
    # Off in our trainer alone: the others have the library's choice.
    torch.backends.cuda.enable_cudnn_sdp(enabled=job.part != "ours")
    return device


def wait(device: torch.device) -> None:
    """Until all that was asked of a GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def let_go(device: Device) -> None:
    """Free what a training has left: trainers and models hold each other."""
    gc.collect()
    device.give_back()


@dataclass(slots=True)
class Clock:
    """Seconds and CPU seconds from the first to the last `stamp`."""

    device: torch.device
    stamps: list[tuple[float, float]] = field(default_factory=list)

    def stamp(self) -> None:
        """Now."""
        wait(self.device)
        self.stamps.append((time.perf_counter(), time.process_time()))

    @property
    def spent(self) -> tuple[float, float]:
        """Both."""
        (began, began_cpu), (ended, ended_cpu) = self.stamps[0], self.stamps[-1]
        return ended - began, ended_cpu - began_cpu

    @property
    def cost(self) -> float:
        """By which settings are compared: seconds on a GPU; on a CPU those of CPU time, which others do not lengthen
        much that use the machine too."""
        return self.spent[self.device.type == "cpu"]


def examples(found: Sequence[Row]) -> Examples:
    """The rows as the trainer keeps them."""
    return Examples.of(Example(input_ids=row.input_ids, labels=row.labels, truncated=False) for row in found)


def peak_mib(device: Device) -> float:
    """Most memory so far: of the process on a CPU, else allocated on the GPU."""
    if device.torch_device.type == "cuda":
        return device.peak_memory_bytes() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def result(job: Job, clock: Clock, peak: float, model: Any) -> dict[str, float]:
    """The numbers of one training; speed counts real tokens, padding not."""
    tokens = sum(len(row.input_ids) for row in rows(job, job.steps * EFFECTIVE, job.seed))
    seconds, cpu = clock.spent
    return {
        "speed": tokens / seconds,
        "seconds": seconds,
        "cpu": cpu,
        "peak": peak,
        "loss": held_out_loss(job, model),
    }


def held_out_loss(job: Job, model: Any) -> float:
    """Of anybody's model, by our evaluation."""
    gc.collect()
    held_out = examples(rows(job, HELD_OUT[job.workload], 1_000_000))
    limit = MicroBatchLimit.of(None, job.length, tokens=1024)
    head = model.get_output_embeddings()
    return evaluate(model, head, held_out, device_of(job), lambda count: None, limit=limit).loss
