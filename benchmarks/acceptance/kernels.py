"""Own and fused kernels against plain PyTorch: fast paths, the loss over the vocabulary, the optimizer."""

import copy
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.acceptance.bench import Bench
from benchmarks.acceptance.comparing import compared, wider
from benchmarks.acceptance.findings import Check, Outcome, judged, not_run
from benchmarks.acceptance.models import learnable_rows, random_base
from torch.nn.functional import cross_entropy

from lora_trainer.data.store import Examples
from lora_trainer.model.device import Device
from lora_trainer.model.fast import isolate, usable
from lora_trainer.model.loading import Adapted, adapt, load_model, set_training
from lora_trainer.model.lora_kernel import fuse
from lora_trainer.spec.config import LoraConfig, Quantization
from lora_trainer.train.batches import Batch, MicroBatchLimit, collate
from lora_trainer.train.loss import token_losses
from lora_trainer.train.self_check import MOST_TOKENS, checked


def checks(bench: Bench) -> Iterator[Check]:
    """All of the part."""
    for quantization in (Quantization.NONE, Quantization.NF4, Quantization.FP4):
        device = bench.device
        name = device.dtype_name if quantization is Quantization.NONE else quantization.value
        yield Check(name=f"fast paths, {name}", run=partial(_fast_paths, bench, quantization, device))
    fp32 = bench.computing_in(torch.float32)
    yield Check(name="fused adapter, fp32", run=partial(_fused_adapter, bench, fp32))
    yield Check(name="loss over the vocabulary", run=partial(_loss, bench))
    yield Check(name="fused AdamW", run=partial(_optimizer, bench))


def _adapted(
    bench: Bench, device: Device, quantization: Quantization = Quantization.NONE, *, stirred: bool = True
) -> tuple[Adapted, Batch]:
    """A small Llama whose adapter changes it, and a pack for it."""
    with tempfile.TemporaryDirectory() as folder:
        base = random_base(Path(folder), "llama", bench.sizes, device)
        found = adapt(load_model(base, quantization, device), LoraConfig(rank=8, alpha=16), base, device, 3)
    packs = isolate(found.model)
    torch.manual_seed(4)
    for name, parameter in found.model.named_parameters():
        if stirred and "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    set_training(found.model, on=True)
    rows = learnable_rows([max(4, length) for length in bench.lengths], bench.sizes["vocab_size"])
    return found, collate(rows, device.torch_device, packed=packs)


def _fast_paths(bench: Bench, quantization: Quantization, device: Device) -> Outcome:
    """What a run takes, by the check that it makes itself on a GPU."""
    adapted, batch = _adapted(bench, device, quantization, stirred=False)
    packed = batch.segments is not None
    entries = usable(adapted.model, device, packed=packed)
    if not entries:
        return not_run("nothing fast suits this type")
    lengths = [max(4, length) for length in bench.lengths]
    rows = Examples.of(learnable_rows(lengths, bench.sizes["vocab_size"]))
    limit = MicroBatchLimit(tokens=MOST_TOKENS, longest=max(lengths), packed=packed)
    found = checked(adapted, entries, rows, limit, device)
    said = "; ".join((", ".join(found.names) or "nothing taken", *found.left_out))
    return judged(not (found.left_out or found.unchecked), said)


def _fused_adapter(bench: Bench, device: Device) -> Outcome:
    """Losses and gradients of the adapter, fused, by PEFT, and by PEFT in fp64."""
    adapted, batch = _adapted(bench, device)
    plain = copy.deepcopy(adapted.model)
    right = copy.deepcopy(adapted.model).to(torch.float64)
    fused = fuse(adapted.model)
    results = (_results(model, batch, device) for model in (adapted.model, plain, right))
    found, usual, wanted = results
    return compared(found, usual, wanted, names=("losses", "gradient"), dtype=torch.float32, said=f"{fused} modules")


def _results(model: Any, batch: Batch, device: Device) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of the target tokens by plain PyTorch, and the gradients of all that is trained."""
    with device.autocast():
        logits = model(**batch.arguments, use_cache=False).logits.flatten(0, 1)[batch.target_positions]
    kept = logits if logits.dtype is torch.float64 else logits.float()
    return _with_gradient(model, cross_entropy(kept, batch.targets, reduction="none"))


def _with_gradient(model: Any, losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    torch.autograd.backward(losses.sum())
    return losses.detach(), torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


def _loss(bench: Bench) -> Outcome:
    """The loss whose logits never exist at once."""
    device = bench.device
    adapted, batch = _adapted(bench, device)
    plain = copy.deepcopy(adapted.model)
    right = copy.deepcopy(adapted.model).to(wider(device.dtype))
    found = _with_gradient(adapted.model, token_losses(adapted.model, adapted.head, batch, device))
    usual = _results(plain, batch, device)
    wanted = _results(right, batch, bench.computing_in(torch.float32))
    return compared(found, usual, wanted, names=("losses", "gradient"), dtype=device.dtype)


def _optimizer(bench: Bench) -> Outcome:
    """Five steps of PyTorch's fused AdamW in fp32, one parameter after the other, and in fp64."""
    shapes, device = ((64, 33), (7,), (300, 16)), bench.device.torch_device

    def stepped(dtype: torch.dtype, *, fused: bool) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        parameters = [torch.nn.Parameter(torch.randn(s, generator=generator).to(device, dtype)) for s in shapes]
        optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1, fused=fused, foreach=False)
        for _ in range(5):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(device, dtype)
            optimizer.step()
        return torch.cat([parameter.detach().flatten() for parameter in parameters])

    found, plain = (stepped(torch.float32, fused=fused) for fused in (True, False))
    return compared([found], [plain], [stepped(torch.float64, fused=False)], names=["parameters"], dtype=torch.float32)
