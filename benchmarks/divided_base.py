"""Main memory that the processes of a node take to read a base model that is divided over their GPUs.

Each reads the whole model on the CPU before its layers come to the GPU. Pages of the model's files are shared by all
processes, and the kernel gives them back where memory lacks; what is copied from them exists once for each process.

    python benchmarks/divided_base.py [--processes N]

Makes models with random weights of some 300 MB in 16 bits, a dense one and a mixture, reads each in N processes as the
training does, and prints what these take: of the files' pages, and of their own. No GPU is needed: what happens before
the first byte reaches one is the same.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
import torch.multiprocessing as processes
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from lora_trainer.model.device import Device
from lora_trainer.model.loading import adapt, load_model
from lora_trainer.spec.config import LoraConfig, Quantization
from lora_trainer.storage.base import open_folder

CPU = Device(torch_device=torch.device("cpu"), name="cpu", dtype=torch.bfloat16)
MIB = 2**20
_SIZES: dict[str, Any] = {"vocab_size": 8192, "num_attention_heads": 8, "num_key_value_heads": 8}


def make(folder: Path, *, mixture: bool) -> int:
    """Write a model with random weights; their bytes."""
    config: Any
    if mixture:
        config = MixtralConfig(
            hidden_size=512, intermediate_size=1024, num_hidden_layers=11, num_local_experts=8, **_SIZES
        )
    else:
        config = LlamaConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=8, **_SIZES)
    model: Any = (MixtralForCausalLM if mixture else LlamaForCausalLM)(config)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="100MB")
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def taken() -> dict[str, int]:
    """Bytes of this process: `own` memory, `files` pages of files that it has mapped."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    return {"own": 1024 * int(fields["RssAnon"].split()[0]), "files": 1024 * int(fields["RssFile"].split()[0])}


def read(rank: int, folder: Path, meeting: Any, answers: Any) -> None:
    """What one process takes more, once the model is read and has its adapter, while all the others hold theirs."""
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    base = open_folder(folder)
    before = taken()
    adapted = adapt(load_model(base, Quantization.NONE, CPU), LoraConfig(rank=4), base, CPU, 1)
    for parameter in adapted.model.parameters():
        float(parameter.detach().float().sum())
    after = taken()
    meeting.wait()
    answers.put({kind: after[kind] - before[kind] for kind in after})


def main() -> int:
    """Measure both models."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--processes", type=int, default=4)
    count = parser.parse_args().processes
    context, library = processes.get_context("spawn"), cast("Any", processes)
    for name, mixture in (("dense", False), ("mixture", True)):
        with tempfile.TemporaryDirectory() as folder:
            size = make(Path(folder), mixture=mixture)
            answers, meeting = context.SimpleQueue(), context.Barrier(count)
            started = library.start_processes(
                read, (Path(folder), meeting, answers), nprocs=count, join=False, start_method="spawn"
            )
            found = [answers.get() for _ in range(count)]
            while not started.join():
                pass
        print(f"{name}: weights of {size / MIB:.0f} MiB, read by {count} processes")
        for kind, words in (("files", "pages of files, shared"), ("own", "memory of its own")):
            each = [one[kind] / MIB for one in found]
            print(f"  {words}: {min(each):.0f} to {max(each):.0f} MiB a process")
    return 0


if __name__ == "__main__":
    sys.exit(main())
