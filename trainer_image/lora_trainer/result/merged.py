"""The loss of a merged model, computed from its files, and what it has to be."""

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from lora_trainer.data.store import Examples
from lora_trainer.distributed.cpus import cpu_threads
from lora_trainer.model.apply import apply_adapter
from lora_trainer.model.device import Device
from lora_trainer.model.loading import Loaded, load_model
from lora_trainer.model.rope import frequencies_of
from lora_trainer.spec.config import Quantization
from lora_trainer.storage.base import Base
from lora_trainer.storage.manifest import MERGED_FOLDER, Form, Manifest
from lora_trainer.storage.model_folder import weights_in
from lora_trainer.storage.tensor_files import read_entries
from lora_trainer.train.batches import evaluation_limit
from lora_trainer.train.evaluate import evaluate
from lora_trainer.train.objective import objective_of

log = logging.getLogger(__name__)
FEW_TOKENS = 2048
"""What is evaluated on a CPU of a model that the run's GPU cannot hold without quantization."""
_USABLE = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where and on what merged models are measured: on the run's device with all its rows, or on the CPU with few."""

    device: Device
    examples: Examples
    whole: bool

    def loss(self, model: Base, manifest: Manifest, adapt: Callable[[Loaded, Device], None] | None = None) -> float:
        """The loss of `model` without quantization, `adapt` having been applied to it."""
        loaded = load_model(model, Quantization.NONE, self.device)
        if adapt is not None:
            adapt(loaded, self.device)
        limit = evaluation_limit(
            manifest.config.training.micro_batch_size,
            manifest.dataset.longest_tokens,
            frequencies_of(loaded.model),
            self.device.torch_device,
            trained=manifest.resolved.micro_batch_tokens,
        )
        return evaluate(
            loaded.model,
            loaded.head,
            self.examples,
            self.device,
            lambda rows: None,
            limit=limit,
            objective=objective_of(manifest.config),
        ).loss

    def expected(self, base: Base, adapter: Path, manifest: Manifest) -> float:
        """The loss that a merged model has to have: that of the unquantized base model with the adapter beside it."""
        if self.whole and manifest.config.quantization is Quantization.NONE:
            # Verified already, from the adapter's files.
            return manifest.measured.eval_loss_after

        def adapt(model: Loaded, device: Device) -> None:
            apply_adapter(model, adapter, manifest.config.lora, device)

        return self.loss(base, manifest, adapt)


def bench_for(base: Base, examples: Examples, device: Device) -> Bench:
    """The run's device where it holds the unquantized model. A GPU that does not leaves it to the CPU, on few rows."""
    if device.torch_device.type != "cuda" or _unquantized_bytes(base, device) <= _USABLE * _free_bytes(device):
        return Bench(device=device, examples=examples, whole=True)
    log.warning("the GPU cannot hold the unquantized model: it is checked on the CPU, on some of the rows")
    torch.set_num_threads(cpu_threads())
    cpu = Device(torch_device=torch.device("cpu"), name="cpu", dtype=torch.bfloat16)
    return Bench(device=cpu, examples=first_rows(examples, FEW_TOKENS), whole=False)


def first_rows(examples: Examples, tokens: int) -> Examples:
    """As many of the first rows as have no more than `tokens` in all, and at least one."""
    total, count = 0, 0
    for length in examples.lengths:
        total += int(length)
        if count and total > tokens:
            break
        count += 1
    return examples[:count]


def _unquantized_bytes(base: Base, device: Device) -> int:
    files = weights_in(base.folder)
    size = torch.empty(0, dtype=device.dtype).element_size()
    return sum(entry.values * size for file in files for entry in read_entries(file))


def _free_bytes(device: Device) -> int:
    return int(torch.cuda.mem_get_info(device.torch_device)[0])


def rounding(base: Base, device: Device) -> str:
    """The coarser of the types that the model's files and the computation have: fp32, or bf16 for 16 bits."""
    types = {entry.dtype for file in weights_in(base.folder) for entry in read_entries(file)}
    return "fp32" if types == {"F32"} and device.dtype == torch.float32 else "bf16"


def merged_model(folder: Path, form: Form, base: Base) -> Base:
    """The merged model in a result's folder."""
    return dataclasses.replace(base, folder=folder if form is Form.MERGED else folder / MERGED_FOLDER)
