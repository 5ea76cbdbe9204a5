"""Main memory of a merge for which the base's files name weights otherwise than the model does.

    .venv/bin/python benchmarks/merge_memory.py

Makes a mixture whose experts are adapted, and a model with tied embeddings whose output embedding was trained apart,
both with random weights of some 300 MB in 16 bits. Each is merged in a process of its own, in the base's own type and
in fp32; printed is the most that the process takes of its own beyond its imports, beside what
`lora_trainer/plan/memory.py` counts for it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

from peft import LoraConfig, get_peft_model
from torch import bfloat16, set_num_threads
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from lora_trainer.plan.families import architecture_of
from lora_trainer.plan.memory import CPU_LIBRARIES, merge_memory
from lora_trainer.result.merge import merge_into
from lora_trainer.spec.config import MergePrecision, TrainConfig
from lora_trainer.spec.manifest import RunOptions, train_config

MIB = 2**20
_INTERVAL_S = 0.01
_HEADS: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 8}
_EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
ADAPTED: dict[str, dict[str, Any]] = {
    "experts of a mixture": {"targetParameters": _EXPERTS},
    "tied embeddings": {"modulesToSave": ["lm_head"]},
}


def make(name: str, folder: Path) -> None:
    """Write a base model and an adapter for it, both of random numbers."""
    config: Any
    if name == "tied embeddings":
        sizes: dict[str, Any] = {
            "vocab_size": 32768,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 8,
        }
        config = LlamaConfig(**sizes, **_HEADS, tie_word_embeddings=True)
        model: Any = LlamaForCausalLM(config)
    else:
        sizes = {"vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 11}
        config = MixtralConfig(**sizes, **_HEADS, num_local_experts=8)
        model = MixtralForCausalLM(config)
    model = model.to(bfloat16)
    model.save_pretrained(folder / "base", max_shard_size="100MB")
    fields = ADAPTED[name]
    adapted: Any = get_peft_model(
        model,
        LoraConfig(
            r=4,
            target_modules=["q_proj"],
            target_parameters=fields.get("targetParameters"),
            modules_to_save=fields.get("modulesToSave"),
        ),
    )
    adapted.save_pretrained(folder / "adapter")


def asked(name: str, precision: MergePrecision) -> TrainConfig:
    """The run that ends with this merge."""
    spec = {
        "model": {"uri": "hf://acme/base"},
        "dataset": {"uri": "hf://acme/chats"},
        "lora": {"targetModules": ["q_proj"], **ADAPTED[name]},
        "output": {"uri": "pvc://adapters/merged", "merge": "Merged", "mergePrecision": precision.value},
    }
    kind = {"apiVersion": "lora-operator.io/v1alpha1", "kind": "LoRAFineTune"}
    return train_config({**kind, "metadata": {"name": "merged"}, "spec": spec}, RunOptions(uid="u"))


def own_bytes() -> int:
    """Memory of this process that is no page of a file."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def merge(folder: Path, precision: MergePrecision) -> int:
    """Merge, and return the most bytes that this process had more meanwhile."""
    set_num_threads(1)
    done, before, most = threading.Event(), own_bytes(), [0]

    def watch() -> None:
        while not done.wait(_INTERVAL_S):
            most.append(max(most.pop(), own_bytes() - before))

    watching = threading.Thread(target=watch)
    watching.start()
    with tempfile.TemporaryDirectory() as target:
        merge_into(folder / "adapter", folder / "base", Path(target), precision)
    done.set()
    watching.join()
    return most[0]


def measured(folder: Path, precision: MergePrecision) -> int:
    """The same of a process of its own."""
    command = [sys.executable, __file__, "--merge", str(folder), precision.value]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return int(done.stdout.splitlines()[-1])


def main() -> int:
    """Measure both models in both precisions."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--merge", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.merge:
        print(merge(Path(options.merge[0]), MergePrecision(options.merge[1])))
        return 0
    print("| what is merged | mergePrecision | parameters | measured | counted |")
    print("|---|---|---|---|---|")
    for name in ADAPTED:
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            make(name, folder)
            shape = architecture_of(json.loads((folder / "base/config.json").read_text(encoding="utf-8")))
            for precision in MergePrecision:
                counted = merge_memory(asked(name, precision), shape.parameters, shape) - CPU_LIBRARIES
                taken = measured(folder, precision)
                sizes = f"{taken / MIB:,.0f} MiB | {counted / MIB:,.0f} MiB"
                print(f"| {name} | `{precision.value}` | {shape.parameters / 1e6:.0f} M | {sizes} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
