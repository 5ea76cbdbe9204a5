"""One real training step without a GPU and without weights: how many bytes live at its peak.

Transformers' model, PEFT's adapter put on by the trainer, its attention, recomputation, loss and optimizer compute on
fake tensors, which have shapes and storages and no numbers (`torch._subclasses.FakeTensorMode`), while a mode counts
every storage from its first use to its end. The device is a CPU made to do what a GPU does, see `memory_as_gpu`. No
formula of the fit model is used: they are held against this.

Shortcuts, so that a GPU may differ: kernels' own workspaces are not seen (attention's backward pass, cuBLAS), nor the
allocator's rounding and fragments, nor CUDA's context. A sliding window shorter than the row is a mask in PyTorch's
attention for CPUs; for packs the kernel takes it as a number.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import bitsandbytes
import numpy as np
import torch
import transformers
from benchmarks.memory_as_gpu import AsGpu, settings_of_gpu
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.pytorch_utils import Conv1D

from lora_trainer.data.tokens import IGNORED, Example
from lora_trainer.distributed.collectives import Ranks
from lora_trainer.model import attention
from lora_trainer.model.classes import auto_class
from lora_trainer.model.device import Device
from lora_trainer.model.linear import linear_modules
from lora_trainer.model.loading import Adapted, Loaded, adapt, set_input_casts, set_training
from lora_trainer.model.lora_kernel import fuse
from lora_trainer.model.quantize import quantization_settings
from lora_trainer.spec.config import ActivationCheckpointing, LoraConfig, Quantization, TrainingConfig
from lora_trainer.storage.base import Base
from lora_trainer.train import loss, step
from lora_trainer.train.batches import Batch, MicroBatchLimit, collate
from lora_trainer.train.objective import SFT
from lora_trainer.train.optimizers import make_optimizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """How a step computes. `rows` are the lengths of a micro-batch's rows, `targets` the share of tokens that is
    learned; with `selective` MLPs alone are recomputed; `packs` says that one kernel takes all rows of a pack, as a GPU
    from Ampere on has for 16 bits; `fused` that adapted modules compute in one piece in 16 bits, too, which a run knows
    only on its device."""

    rows: tuple[int, ...]
    lora: LoraConfig = LoraConfig()  # noqa: RUF009 - frozen
    training: TrainingConfig = TrainingConfig()  # noqa: RUF009 - frozen
    quantization: Quantization = Quantization.NONE
    recompute: bool = True
    selective: bool = False
    packs: bool = True
    fp32: bool = False
    target_share: float = 1.0
    fused: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and computations."""
        return torch.float32 if self.fp32 else torch.bfloat16


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """Bytes: of what lives throughout (weights, adapter, gradients, optimizer), of what the forward pass left for the
    backward pass, and at the peaks of the forward pass, of the loss, of the backward pass and of an evaluation."""

    standing: int
    kept: int
    forward: int
    loss: int
    backward: int
    evaluation: int

    @property
    def peak(self) -> int:
        """Of all."""
        return max(self.forward, self.loss, self.backward, self.evaluation)


_PERIODS = {"gemma2": 2, "gemma3_text": 6, "gpt_oss": 2}
"""After how many layers a model's layers repeat: of these some see a window alone."""


class Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of all storages that operations gave and nobody let go of; `peak` is the most at any moment."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """PyTorch's protocol: `func`, and what it gave counted."""
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, torch.Tensor):
                self.count(leaf)
        return found

    def count(self, tensor: torch.Tensor) -> None:
        """A tensor's storage, once, until it goes."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key, storage.nbytes()).atexit = False

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def simulate_deep(config: Mapping[str, Any], how: Step) -> Simulated:
    """The same of a deep model, from two shallow ones: each layer more adds as many bytes as the one before.

    Not for modules that are trained whole: the moment of their gradient is the peak of a shallow model, and not of a
    deep one. Nor where two layers have their peak at another moment than more of them: Falcon-7B's in NF4 with DoRA,
    recomputed, would be 10 % too low.
    """
    key = next(name for name in ("num_hidden_layers", "n_layer") if name in config)
    period = _PERIODS.get(config["model_type"], 1)
    few, more = (simulate({**config, key: layers}, how) for layers in (max(2, period), max(2, period) + period))
    further = (int(config[key]) - max(2, period)) / period

    def deep(name: str) -> int:
        one, other = int(getattr(few, name)), int(getattr(more, name))
        return round(one + further * (other - one))

    return Simulated(**{one.name: deep(one.name) for one in fields(Simulated)})


def simulate(config: Mapping[str, Any], how: Step) -> Simulated:
    """One step of the model that a `config.json` describes."""
    targets = max(1, round(sum(how.rows) * how.target_share) - len(how.rows))
    examples = _examples(how, targets)
    device = Device(torch_device=torch.device("cpu"), name="cpu", dtype=how.dtype)
    batches = {packed: collate(examples, device.torch_device, packed=packed) for packed in (False, True)}
    with (
        FakeTensorMode(allow_non_fake_inputs=True) as fake,
        settings_of_gpu(),
        AsGpu(),
    ):
        adapted = _adapted(config, how, device)
        # A model that computes its attention by itself is given padded rows.
        packed = adapted.model.config._attn_implementation == attention.VARLEN
        batch = _without_numbers(batches[packed], fake)
        parameters = [parameter for parameter in adapted.model.parameters() if parameter.requires_grad]
        optimizer = make_optimizer(parameters, how.training, device)
        for parameter in parameters:
            # Those of an earlier micro-batch of the same step.
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        with Living() as living:
            for tensor in _standing(adapted.model, optimizer):
                living.count(tensor)
            standing = living.now
            kept, peaks = _train(adapted, batch, examples, how, device=device, living=living)
            living.peak = living.now
            _evaluate(adapted, batch, how, device)
        return Simulated(
            standing=standing,
            kept=kept - standing,
            forward=peaks[0],
            loss=peaks[1],
            backward=peaks[2],
            evaluation=living.peak,
        )


def _without_numbers(batch: Batch, fake: FakeTensorMode) -> Batch:
    segments = batch.segments
    if segments is not None:
        segments = replace(segments, cu_seqlens=fake.from_tensor(segments.cu_seqlens))
    tensors: dict[str, Any] = {
        one.name: fake.from_tensor(value)
        for one in fields(batch)
        if isinstance(value := getattr(batch, one.name), torch.Tensor)
    }
    return replace(batch, segments=segments, **tensors)


def _adapted(config: Mapping[str, Any], how: Step, device: Device) -> Adapted:
    """As `loading.load_model` and `loading.adapt` leave the model, without weights."""
    library: Any = transformers
    configuration = library.AutoConfig.for_model(**config)
    model = auto_class(configuration, "simulated").from_config(configuration, dtype=how.dtype)
    head = model.get_output_embeddings()
    _quantize(model, head, how.quantization, device)
    model.requires_grad_(False)
    model.config.use_cache = False
    loaded = Loaded(model=model, head=head, linear=linear_modules(model, head), quantization=how.quantization)
    base = Base(folder=Path(), name="simulated", revision="sha256:0", model_type=config["model_type"])
    checkpointing = ActivationCheckpointing.of(recompute=how.recompute, selective=how.selective)
    # All is on one device already, and modules of fake tensors cannot be moved.
    with mock.patch.object(nn.Module, "to", lambda module, *_args, **_named: module):
        adapted = adapt(loaded, how.lora, base, device, 1, checkpointing=checkpointing)
    library.AttentionInterface.register(attention.VARLEN, attention.attend_at_once)
    adapted.model.set_attn_implementation(attention.VARLEN)
    if how.fused or how.fp32:
        fuse(adapted.model)
    set_training(adapted.model, on=True)
    loss._LAST[adapted.head] = _is_last(adapted)
    return adapted


def _is_last(adapted: Adapted) -> bool:
    """Whether nothing follows the output embedding; the trainer compares numbers, which there are none of."""
    outputs: list[torch.Tensor] = []
    handle = adapted.head.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = adapted.model(input_ids=torch.zeros(1, 2, dtype=torch.int64), use_cache=False).logits
    handle.remove()
    return bool(logits.untyped_storage()._cdata == outputs[0].untyped_storage()._cdata)


def _quantize(model: nn.Module, head: nn.Module, quantization: Quantization, device: Device) -> None:
    """In place of the linear modules those of bitsandbytes, with the bytes that these store."""
    if quantization is Quantization.NONE:
        return
    quantization_settings(quantization, device)
    small = _in_8_bits if quantization is Quantization.INT8 else partial(_in_4_bits, kind=quantization.value.lower())
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            full = _as_linear(child)
            if full is not None and child is not head:
                setattr(parent, name, small(full, device))
    vars(model)["is_loaded_in_8bit" if quantization is Quantization.INT8 else "is_loaded_in_4bit"] = True


def _as_linear(module: nn.Module) -> nn.Linear | None:
    """A linear module; of `Conv1D`, which keeps its weight transposed, what Transformers quantizes in its place."""
    if isinstance(module, nn.Linear):
        return module
    if not isinstance(module, Conv1D):
        return None
    inputs, outputs = module.weight.shape
    full = nn.Linear(inputs, outputs, bias=False, dtype=module.weight.dtype)
    full.weight = nn.Parameter(module.weight.data.T, requires_grad=False)
    full.bias = module.bias
    return full


def _in_4_bits(full: nn.Linear, device: Device, kind: str) -> nn.Module:
    """Not by its constructor: a parameter of a class of its own cannot be fake."""
    library: Any = bitsandbytes
    small = _like(full, library.nn.Linear4bit)
    packed, state = library.functional.quantize_4bit(
        full.weight.data, blocksize=64, compress_statistics=True, quant_type=kind
    )
    weight: Any = nn.Parameter(packed, requires_grad=False)
    weight.quant_state, weight.compress_statistics, weight.quant_type = state, True, kind
    small.weight, small.quant_state = weight, state
    small.compute_dtype, small.compute_type_is_set, small.support_avx512bf16_for_cpu = device.dtype, True, False
    found: nn.Module = small
    return found


def _in_8_bits(full: nn.Linear, _device: Device) -> nn.Module:
    """As above. Without outliers, whose number depends on the input."""
    library: Any = bitsandbytes
    small = _like(full, library.nn.Linear8bitLt)
    packed, scales, _ = library.functional.int8_vectorwise_quant(full.weight.data.to(torch.float16))
    weight: Any = nn.Parameter(packed, requires_grad=False)
    weight.CB, weight.SCB = packed, scales
    small.weight, small.index = weight, None
    small.state = library.MatmulLtState()
    small.state.threshold, small.state.has_fp16_weights = 0.0, False
    found: nn.Module = small
    return found


def _like(full: nn.Linear, kind: Any) -> Any:
    small = kind.__new__(kind)
    nn.Module.__init__(small)
    small.in_features, small.out_features, small.bias = full.in_features, full.out_features, full.bias
    return small


def _examples(how: Step, targets: int) -> list[Example]:
    """Rows whose last tokens are learned: as many in all as asked for."""
    share, examples = targets / max(1, sum(how.rows) - len(how.rows)), []
    for length in how.rows:
        labels = np.full(length, IGNORED, dtype=np.int64)
        labels[length - max(1, round((length - 1) * share)) :] = 1
        examples.append(Example(input_ids=np.ones(length, dtype=np.int64), labels=labels, truncated=False))
    return examples


def _standing(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    """Weights, adapter, its gradients, the optimizer's state, and what quantized weights are read with."""
    for parameter in model.parameters():
        yield parameter.data
        if parameter.grad is not None:
            yield parameter.grad
        yield from _statistics(getattr(parameter, "quant_state", None))
    yield from model.buffers()
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, torch.Tensor))


def _statistics(state: Any) -> Iterator[torch.Tensor]:
    if state is None:
        return
    yield from (value for value in vars(state).values() if isinstance(value, torch.Tensor))
    yield from _statistics(state.state2)


def _train(
    adapted: Adapted, batch: Batch, examples: Sequence[Example], how: Step, *, device: Device, living: Living
) -> tuple[int, list[int]]:
    """The trainer's own step. Bytes that live when the backward pass begins, and the peaks of its three parts."""
    after: list[int] = []
    peaks: list[int] = []
    limit = MicroBatchLimit(tokens=sum(how.rows), longest=max(how.rows), packed=batch.segments is not None)

    def end(*_: object) -> None:
        peaks.append(living.peak)
        living.peak = living.now

    def watched(*args: Any) -> torch.Tensor:
        found = loss.token_losses(*args)
        after.append(living.now)
        end()
        return found

    handle = adapted.model.register_forward_hook(end)
    set_input_casts(adapted.model, on=device.dtype == torch.float32)
    with (
        mock.patch.object(step, "collate", return_value=batch),
        mock.patch.object(step, "token_losses", watched),
        mock.patch.object(attention, "has_kernel", return_value=how.packs),
    ):
        step.run_step(
            adapted,
            examples,
            objective=SFT,
            weights={"loss": len(batch.targets)},
            limit=limit,
            device=device,
            scaler=torch.amp.GradScaler("cpu", enabled=False),
            ranks=Ranks(),
        )
    end()
    set_input_casts(adapted.model, on=True)
    handle.remove()
    return after[0], peaks


def _evaluate(adapted: Adapted, batch: Batch, how: Step, device: Device) -> None:
    set_training(adapted.model, on=False)
    with torch.no_grad(), mock.patch.object(attention, "has_kernel", return_value=how.packs):
        loss.token_losses(adapted.model, adapted.head, batch, device)
