"""A written adapter against the claim that it makes: digests, base model, and the loss, computed without PEFT."""

import dataclasses
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from lora_trainer.artifact import Manifest, check_digests, read_manifest
from lora_trainer.base import find_base
from lora_trainer.batches import evaluation_budget
from lora_trainer.contract.config import Quantization
from lora_trainer.contract.summary import Verification
from lora_trainer.device import Device, choose_device
from lora_trainer.errors import VerificationError
from lora_trainer.evaluate import evaluate
from lora_trainer.hub import Hub
from lora_trainer.model import Loaded, load_model
from lora_trainer.recipe import evaluation_rows
from lora_trainer.volumes import Volumes

log = logging.getLogger(__name__)

TOLERANCES = {"fp32": 1e-3, "bf16": 2e-2, "fp16": 2e-2}
"""Largest difference of losses, in nats per token, by compute type.

The sums run in another order than in training: that is about 1e-6 in fp32 and a few 1e-3 where products are rounded to
16 bits. An adapter of a wrong scale differs by more than either as soon as it learned anything that matters."""

_PREFIX = "base_model.model."


def verify(folder: Path, volumes: Volumes, hub: Hub, *, anywhere: bool = False) -> Verification:
    """Check the adapter in `folder`. Raises `VerificationError` where it is not what its manifest says.

    `anywhere` takes a CPU where the run had a GPU; within the run a GPU that is gone by now is a `GpuFaultError`.
    """
    manifest = read_manifest(folder)
    check_digests(folder, manifest)
    config = manifest.config
    wanted = dataclasses.replace(config.device, allow_cpu=config.device.allow_cpu or anywhere)
    device = choose_device(wanted, config.training.precision)
    base = find_base(_pinned(config.model.uri, manifest.base_revision), volumes, hub)
    if base.revision != manifest.base_revision:
        raise VerificationError(
            f"the base model is at {base.revision} now, the adapter was trained on {manifest.base_revision}: "
            "restore the model that was used"
        )
    examples, fingerprint = evaluation_rows(config, volumes, hub, base)
    if fingerprint != manifest.resolved.dataset_fingerprint:
        raise VerificationError(
            f"the data set {config.dataset.uri} has changed since the run ({fingerprint[:19]}… instead of "
            f"{manifest.resolved.dataset_fingerprint[:19]}…): restore the data that was used"
        )
    loaded = load_model(base, config.quantization, device)
    apply_adapter(loaded, folder, manifest, device)
    budget = evaluation_budget(config.training.micro_batch_size, manifest.dataset.longest_tokens)
    loss = evaluate(loaded.model, loaded.head, examples, device, lambda rows: None, budget=budget).loss
    # Verified by hand on another device, the run's own rounding counts, too.
    tolerance = max(TOLERANCES[device.dtype_name], TOLERANCES.get(manifest.resolved.compute_dtype, 0.0))
    return _judge(loss, manifest.measured.eval_loss_after, tolerance)


def _pinned(uri: str, revision: str) -> str:
    """The model's address at the commit that was used, whatever its branch points to by now."""
    return f"{uri.partition('@')[0]}@{revision}" if uri.startswith("hf://") else uri


def _judge(loss: float, claimed: float, tolerance: float) -> Verification:
    difference = abs(loss - claimed)
    log.info(
        "verified: loss %.6f, claimed %.6f, difference %.2e (tolerance %.0e)", loss, claimed, difference, tolerance
    )
    if not math.isfinite(loss) or difference > tolerance:
        raise VerificationError(
            f"the written adapter on the base model gives a loss of {loss:.4f}, the trained model gave {claimed:.4f}: "
            f"they differ by {difference:.4f}, more than {tolerance}; the adapter is not published, please report this"
        )
    return Verification(loss=loss, difference=difference, tolerance=tolerance)


def apply_adapter(loaded: Loaded, folder: Path, manifest: Manifest, device: Device) -> None:
    """Make the base model compute with W + (alpha / r) B A, from the files alone.

    In fp32 the product is added to the weights. 16-bit weights would round small updates away, and 4-bit weights cannot
    be added to: there the module's output gets (alpha / r) B A x, the same sum in another order.
    """
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    scale = _scale(config, manifest)
    tensors = load_file(folder / "adapter_model.safetensors", device=str(device.torch_device))
    modules = dict(loaded.model.named_modules())
    merge = manifest.config.quantization is Quantization.NONE and device.dtype == torch.float32
    pairs = _pairs(tensors)
    for name, (down, up) in pairs.items():
        module = modules.get(name)
        if module is None or name not in loaded.linear:
            raise VerificationError(f"the adapter has weights for {name}, which is no linear module of the base model")
        _check_shapes(name, down, up, loaded.linear[name], manifest.config.lora.rank)
        if merge:
            _merge(module, down, up, scale)
        else:
            _add(module, down, up, scale, device)
    trained = sum(down.numel() + up.numel() for down, up in pairs.values())
    if trained != manifest.resolved.trainable_parameters:
        raise VerificationError(
            f"the adapter holds {trained} parameters, {manifest.resolved.trainable_parameters} were trained"
        )


def _scale(config: Mapping[str, Any], manifest: Manifest) -> float:
    lora = manifest.config.lora
    if (config.get("r"), config.get("lora_alpha")) != (lora.rank, lora.alpha):
        raise VerificationError(
            f"adapter_config.json says rank {config.get('r')} and alpha {config.get('lora_alpha')}, the run asked for "
            f"{lora.rank} and {lora.alpha}"
        )
    return lora.alpha / lora.rank


def _pairs(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Module name to (A, B). Raises `VerificationError` for a tensor that is neither, or alone."""
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        name, found, kind = key.removeprefix(_PREFIX).partition(".lora_")
        if not found or kind not in ("A.weight", "B.weight"):
            raise VerificationError(f"the adapter holds {key}, which is neither lora_A nor lora_B")
        pairs.setdefault(name, {})[kind[0]] = tensor
    alone = [name for name, pair in pairs.items() if len(pair) != 2]
    if alone or not pairs:
        raise VerificationError(
            f"the adapter has no pair of lora_A and lora_B for {', '.join(alone[:3]) or 'anything'}"
        )
    return {name: (pair["A"], pair["B"]) for name, pair in pairs.items()}


def _check_shapes(name: str, down: torch.Tensor, up: torch.Tensor, size: tuple[int, int], rank: int) -> None:
    wanted = ((rank, size[0]), (size[1], rank))
    if (tuple(down.shape), tuple(up.shape)) != wanted:
        raise VerificationError(
            f"{name} has A {tuple(down.shape)} and B {tuple(up.shape)}, expected {wanted[0]} and {wanted[1]}"
        )


def _merge(module: nn.Module, down: torch.Tensor, up: torch.Tensor, scale: float) -> None:
    weight = module.get_parameter("weight")
    update = scale * (up.float() @ down.float())
    with torch.no_grad():
        # Conv1D keeps its weight transposed.
        weight.add_(update if isinstance(module, nn.Linear) else update.T)


def _add(module: nn.Module, down: torch.Tensor, up: torch.Tensor, scale: float, device: Device) -> None:
    down, up = down.to(device.dtype), up.to(device.dtype)

    def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        update = nn.functional.linear(nn.functional.linear(inputs[0].to(device.dtype), down), up)
        return output + (scale * update).to(output.dtype)

    module.register_forward_hook(hook)
