"""An adapter's files on the pristine base model, without PEFT: other code reads what a training wrote than wrote it.

With an adapter, W of a linear module becomes W + s B A. DoRA then gives each row of it the length that it learned:
m (W + s B A) / |W + s B A| (arXiv 2402.09353, equation 5). A mixture's experts are one parameter with a matrix for each
of them; B and A hold a pair for each, too. Modules that were trained whole replace the base's.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from lora_trainer.errors import VerificationError
from lora_trainer.model.device import Device
from lora_trainer.model.loading import Loaded, answer_in
from lora_trainer.model.quantize import full_weight
from lora_trainer.model.targets import rank_and_scale
from lora_trainer.plan.adapter import matches
from lora_trainer.spec.config import LoraConfig, Quantization, Variant

_PREFIX = "base_model.model."
_KINDS = {"A.weight": "lora_a", "B.weight": "lora_b", "magnitude_vector": "magnitude"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """A, B and for DoRA the magnitudes of one adapted weight, in fp32; `target` is the full name of its module or
    parameter, `rank` and `scale` are those of the file."""

    target: str
    rank: int
    scale: float
    lora_a: torch.Tensor
    lora_b: torch.Tensor
    magnitude: torch.Tensor | None

    def of_experts(self, experts: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A as (experts, rank, inputs) and B as (outputs, rank, experts), which the file flattens into matrices.

        Raises `VerificationError` where they hold another rank.
        """
        lora_a = self.lora_a.reshape(experts, -1, self.lora_a.shape[1])
        lora_b = self.lora_b.reshape(self.lora_b.shape[0], -1, experts)
        if (lora_a.shape[1], lora_b.shape[1]) != (self.rank, self.rank):
            raise VerificationError(
                f"{self.target} has {lora_a.shape[1]} and {lora_b.shape[1]} rows and columns, not {self.rank}"
            )
        return lora_a, lora_b


def apply_adapter(loaded: Loaded, folder: Path, lora: LoraConfig, device: Device) -> int:
    """Make the base model compute with the adapter in `folder`; the number of parameters that were trained for it.

    In fp32 the product is added to the weights. 16-bit weights would round small updates away, and quantized weights
    cannot be added to: there the module's output gets s B A x, the same sum in another order. Raises
    `VerificationError` where the files are not what `lora` asks for.
    """
    updates, whole = read_updates(loaded, folder, lora, device.torch_device)
    trained = _replace(loaded, whole, lora)
    merge = loaded.quantization is Quantization.NONE and device.dtype == torch.float32
    for update in updates:
        if update.target in loaded.linear:
            module = loaded.model.get_submodule(update.target)
            if merge:
                _merge(module, update)
            else:
                _add(module, update, device)
        else:
            _add_to_parameter(loaded.model, update)
        trained += _trained(update, rank_and_scale(lora, update.target)[0])
    return trained


def read_updates(
    loaded: Loaded, folder: Path, lora: LoraConfig, where: torch.device
) -> tuple[list[Update], dict[str, torch.Tensor]]:
    """What the adapter in `folder` does to the base model: its updates, and whole tensors by their names in the model.

    Raises `VerificationError` where the files are not what `lora` asks for.
    """
    document = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "adapter_model.safetensors", device=str(where))
    parts, whole = _sort(tensors, loaded, lora)
    expected = _expected(lora, list(parts))
    updates = [_update(target, *expected[target], pair) for target, pair in parts.items()]
    for update in updates:
        _check_said(document, update, lora)
        if update.target in loaded.linear:
            _check_shapes(update, loaded.linear[update.target])
    return updates, whole


def _sort(
    tensors: Mapping[str, torch.Tensor], loaded: Loaded, lora: LoraConfig
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """The parts of updates by their targets, and whole tensors by their names in the model. Raises `VerificationError`
    for what is neither."""
    parts: dict[str, dict[str, torch.Tensor]] = {}
    whole: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        name, found, kind = key.removeprefix(_PREFIX).partition(".lora_")
        if found and kind not in _KINDS:
            raise VerificationError(f"the adapter holds {key}, which is not part of an adapter")
        if found:
            parts.setdefault(name, {})[_KINDS[kind]] = tensor
        else:
            whole[name] = tensor
    alone = [name for name, pair in parts.items() if not {"lora_a", "lora_b"} <= set(pair)]
    if alone or not parts:
        raise VerificationError(
            f"the adapter has no pair of lora_A and lora_B for {', '.join(alone[:3]) or 'anything'}"
        )
    odd = [name for name, pair in parts.items() if ("magnitude" in pair) != (lora.variant is Variant.DORA)]
    if odd:
        raise VerificationError(f"{odd[0]} has {'no ' * (lora.variant is Variant.DORA)}magnitudes of DoRA")
    return {_target(name, loaded, lora): pair for name, pair in parts.items()}, whole


def _target(name: str, loaded: Loaded, lora: LoraConfig) -> str:
    target = name if name in loaded.linear else _parameter(name, loaded.model, lora)
    if target is None:
        raise VerificationError(f"the adapter has weights for {name}, which is not a linear module of the base model")
    return target


def _update(target: str, rank: int, scale: float, pair: Mapping[str, torch.Tensor]) -> Update:
    return Update(
        target=target,
        rank=rank,
        scale=scale,
        lora_a=pair["lora_a"].float(),
        lora_b=pair["lora_b"].float(),
        magnitude=pair["magnitude"].float() if "magnitude" in pair else None,
    )


def _parameter(name: str, model: nn.Module, lora: LoraConfig) -> str | None:
    """The parameter of a module that an update belongs to. PEFT wraps a module once for each of its parameters that is
    adapted, in their order, so that the last is outermost and the first has the most `base_layer` in its name."""
    module = name.replace(".base_layer", "")
    adapted = [
        full
        for full, _ in model.named_parameters()
        if full.rpartition(".")[0] == module and any(matches(full, ending) for ending in lora.target_parameters)
    ]
    index = len(adapted) - 1 - name.count(".base_layer")
    return adapted[index] if 0 <= index < len(adapted) else None


def _expected(lora: LoraConfig, targets: list[str]) -> dict[str, tuple[int, float]]:
    """Rank and scale of each module in the file. PiSSA and OLoRA are written as plain adapters of twice the largest
    rank, with the scale in the factors."""
    found = {target: rank_and_scale(lora, target) for target in targets}
    if not lora.init.changes_base:
        return found
    largest = 2 * max(rank for rank, _ in found.values())
    return dict.fromkeys(targets, (largest, 1.0))


def _check_said(document: Mapping[str, Any], update: Update, lora: LoraConfig) -> None:
    """`adapter_config.json` must say what the run asked for, read as PEFT reads it."""
    target, rank, scale = update.target, update.rank, update.scale
    said_rank = _said(document.get("rank_pattern"), target, document.get("r"))
    alpha = _said(document.get("alpha_pattern"), target, document.get("lora_alpha"))
    said_scale = alpha / (math.sqrt(said_rank) if document.get("use_rslora") else said_rank)
    if said_rank != rank or not math.isclose(said_scale, scale, rel_tol=1e-6):
        raise VerificationError(
            f"adapter_config.json says rank {said_rank} and alpha {alpha} for {target}, a scale of {said_scale:g}; "
            f"the run asked for rank {rank} and a scale of {scale:g}"
        )
    if bool(document.get("use_dora")) != (lora.variant is Variant.DORA):
        raise VerificationError(
            f"adapter_config.json says use_dora {document.get('use_dora')}, the run asked for {lora.variant.value}"
        )


def _said(patterns: Mapping[str, Any] | None, target: str, default: Any) -> Any:
    found = (value for key, value in (patterns or {}).items() if re.fullmatch(rf"(.*\.)?({key})", target))
    return next(found, default)


def _check_shapes(update: Update, size: tuple[int, int]) -> None:
    wanted = ((update.rank, size[0]), (size[1], update.rank))
    if (tuple(update.lora_a.shape), tuple(update.lora_b.shape)) != wanted:
        raise VerificationError(
            f"{update.target} has A {tuple(update.lora_a.shape)} and B {tuple(update.lora_b.shape)}, expected "
            f"{wanted[0]} "
            f"and {wanted[1]}"
        )


def _trained(update: Update, trained_rank: int) -> int:
    """Parameters that the training had for this update, which it may have written with another rank."""
    size = update.lora_a.numel() + update.lora_b.numel()
    return size * trained_rank // update.rank + (0 if update.magnitude is None else update.magnitude.numel())


def _replace(loaded: Loaded, whole: Mapping[str, torch.Tensor], lora: LoraConfig) -> int:
    """Put modules that were trained whole into the model, in fp32 as they were trained; their size, tied ones once."""
    model = loaded.model
    parameters = dict(model.named_parameters(remove_duplicate=False))
    types = {name: parameter.dtype for name, parameter in parameters.items()}
    replaced: dict[int, int] = {}
    for name, tensor in whole.items():
        if name not in parameters or parameters[name].shape != tensor.shape or not lora.modules_to_save:
            raise VerificationError(f"the adapter holds {name}, which the base model has not, or was not trained whole")
        module = model.get_submodule(name.rpartition(".")[0])
        if module is not loaded.head:
            answer_in(module, types[name])
        parameters[name].data = tensor.float()
        replaced[id(parameters[name])] = tensor.numel()
    return sum(replaced.values())


@torch.no_grad()
def _merge(module: nn.Module, update: Update) -> None:
    merged = full_weight(module) + update.scale * (update.lora_b @ update.lora_a)
    if update.magnitude is not None:
        merged = (update.magnitude / merged.norm(dim=1))[:, None] * merged
    # Layers may share a weight with others whose adapters are their own. Conv1D keeps its weight transposed.
    weight = merged if isinstance(module, nn.Linear) else merged.T.contiguous()
    module.register_parameter("weight", nn.Parameter(weight, requires_grad=False))


def _add(module: nn.Module, update: Update, device: Device) -> None:
    scale = update.scale
    lora_a, lora_b = update.lora_a.to(device.dtype), update.lora_b.to(device.dtype)
    lengths = None
    if update.magnitude is not None:
        lengths = update.magnitude / (full_weight(module) + scale * (update.lora_b @ update.lora_a)).norm(dim=1)
    bias: Any = getattr(module, "bias", None)

    def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        # Not where the module was when it was read: a model that is divided moves afterwards.
        here = inputs[0].device
        reduced = nn.functional.linear(inputs[0].to(device.dtype), lora_a.to(here))
        change = scale * nn.functional.linear(reduced, lora_b.to(here))
        if lengths is None:
            return output + change.to(output.dtype)
        plain = output if bias is None else output - bias
        longer: torch.Tensor = (lengths.to(here) * (plain.float() + change.float())).to(output.dtype)
        return longer if bias is None else longer + bias

    module.register_forward_hook(hook)


@torch.no_grad()
def _add_to_parameter(model: nn.Module, update: Update) -> None:
    """Add the product, for the experts of a mixture expert by expert; the parameter is (experts, outputs, inputs), or
    transposed where its module says so."""
    module = model.get_submodule(update.target.rpartition(".")[0])
    parameter = model.get_parameter(update.target)
    lora_a, lora_b = update.of_experts(parameter.shape[0] if parameter.dim() == 3 else 1)
    change = update.scale * torch.einsum("ore,eri->eoi", lora_b, lora_a)
    if parameter.dim() == 3 and getattr(module, "is_transposed", False):
        change = change.transpose(1, 2)
    parameter.copy_((parameter.float() + change.reshape(parameter.shape)).to(parameter.dtype))
