"""PiSSA and OLoRA: the start values that are taken out of the base weights, and the plain adapter that they come to.

Both start with the main directions of a weight W in the adapter, B0 and A0, and the rest in the base: W - s B0 A0, s
being the adapter's scale. After training the model computes with W - s B0 A0 + s B A. An adapter for the pristine base
must therefore be s (B A - B0 A0), whose rank is at most twice that of the training.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lora_trainer.distributed.collectives import ALONE, Ranks
from lora_trainer.distributed.tensors import on_all
from lora_trainer.model.adapter import ADAPTER

PREFIX = "base_model.model."
"""Before each name in an adapter's file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Start values of one module, fp32: `lora_a` A0 (rank, inputs), `lora_b` B0 (outputs, rank), and the scale s."""

    lora_a: torch.Tensor
    lora_b: torch.Tensor
    scale: float


@torch.no_grad()
def take_directions(
    model: Any, init: str, given: Mapping[str, Start] | None = None, ranks: Ranks = ALONE
) -> dict[str, Start]:
    """Move the main directions of each adapted weight of a fresh PEFT model from the base into the adapter.

    They follow from weights and seed of PyTorch. Another machine, or another number of threads, may find others by a
    rounding, or with the signs of a pair turned. So the first process of a run that is resumed hands in those that were
    `given`, and the processes beside it take its: the base gets the same values bit for bit, as the same expression is
    evaluated. A collective.
    """
    if not ranks.is_main:
        return take_directions(model, init, _of_the_first({}, ranks))
    starts: dict[str, Start] = {}
    for name, layer in _layers(model):
        if given is not None:
            _take_given(layer, given[name])
        elif init == "olora":
            layer.olora_init(ADAPTER)
        else:
            layer.pissa_init(ADAPTER, init)
        starts[name] = Start(
            lora_a=layer.lora_A[ADAPTER].weight.detach().clone(),
            lora_b=layer.lora_B[ADAPTER].weight.detach().clone(),
            scale=float(layer.scaling[ADAPTER]),
        )
    _of_the_first(starts, ranks)
    return starts


def _of_the_first(starts: Mapping[str, Start], ranks: Ranks) -> dict[str, Start]:
    """The start values that the first process has, on all, on the CPU."""
    parts = {name: (start.lora_a, start.lora_b, start.scale) for name, start in starts.items()}
    found = on_all(parts, ranks, torch.device("cpu"))
    return {name: Start(lora_a=lora_a, lora_b=lora_b, scale=scale) for name, (lora_a, lora_b, scale) in found.items()}


def _layers(model: Any) -> Iterator[tuple[str, Any]]:
    """The adapted linear modules of a PEFT model, by their names in the base model."""
    from peft.tuners.lora.layer import Linear  # noqa: PLC0415 - PEFT takes seconds to import

    yield from ((name, layer) for name, layer in model.base_model.model.named_modules() if isinstance(layer, Linear))


def _take_given(layer: Any, start: Start) -> None:
    base: nn.Module = layer.get_base_layer()
    weight = base.get_parameter("weight")
    lora_a, lora_b = start.lora_a.to(weight.device), start.lora_b.to(weight.device)
    layer.lora_A[ADAPTER].weight.data = lora_a.clone()
    layer.lora_B[ADAPTER].weight.data = lora_b.clone()
    whole = weight.float().T if layer.fan_in_fan_out else weight.float()
    rest = (whole - start.scale * lora_b @ lora_a).to(weight.dtype)
    weight.data = rest.T if layer.fan_in_fan_out else rest


def plain_tensors(state: Mapping[str, torch.Tensor], starts: Mapping[str, Start]) -> dict[str, torch.Tensor]:
    """The tensors of an adapter's file for the pristine base; `state` are those of the training, by PEFT's names.

    All modules get the same rank, twice the largest of the training, and the scale is in the factors: servers that
    know one rank and one scale for a whole adapter take it.
    """
    rank = written_rank(starts)
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    for name, start in starts.items():
        key_a, key_b = f"{PREFIX}{name}.lora_A.weight", f"{PREFIX}{name}.lora_B.weight"
        lora_a = torch.cat([tensors[key_a].double(), start.lora_a.cpu().double()])
        lora_b = start.scale * torch.cat([tensors[key_b].double(), -start.lora_b.cpu().double()], dim=1)
        tensors[key_a], tensors[key_b] = _balanced(lora_a, lora_b, rank)
    return tensors


def written_rank(starts: Mapping[str, Start]) -> int:
    """Rank of the plain adapter: twice the largest of the training."""
    return 2 * max(start.lora_a.shape[0] for start in starts.values())


def _balanced(lora_a: torch.Tensor, lora_b: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same product from factors of equal size, fp32, filled up with zeros to `rank`.

    B A and B0 A0 are nearly the same, and large beside their difference. Factors of the difference alone stay exact
    where a server rounds them to 16 bits.
    """
    left, left_rest = torch.linalg.qr(lora_b)
    right, right_rest = torch.linalg.qr(lora_a.T)
    u, sizes, v = torch.linalg.svd(left_rest @ right_rest.T)
    found = sizes.shape[0]
    root = sizes.sqrt()
    new_a, new_b = torch.zeros(rank, lora_a.shape[1]), torch.zeros(lora_b.shape[0], rank)
    new_b[:, :found] = (left @ u[:, :found]) * root
    new_a[:found] = root[:, None] * (v[:found] @ right.T)
    return new_a, new_b


def plain_settings(starts: Mapping[str, Start]) -> dict[str, Any]:
    """What `adapter_config.json` says of the plain adapter instead of the training's settings."""
    rank = written_rank(starts)
    return {
        "r": rank,
        "lora_alpha": rank,
        "use_rslora": False,
        "init_lora_weights": True,
        "rank_pattern": {},
        "alpha_pattern": {},
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """An adapter apart from its model, in main memory: `tensors` and `settings` as PEFT's files have them, beside the
    `starts` of the training that are no longer in its base."""

    tensors: Mapping[str, torch.Tensor]
    settings: Mapping[str, Any]
    starts: Mapping[str, Start]


def copy_adapter(model: Any, starts: Mapping[str, Start]) -> Adapter:
    """A copy of the adapter that a PEFT model has now."""
    from peft import get_peft_model_state_dict  # noqa: PLC0415 - PEFT takes seconds to import

    # The embeddings belong to the adapter only where they are trained whole, which PEFT knows without asking the Hub.
    state = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    settings = {**model.peft_config[ADAPTER].to_dict(), "inference_mode": True}
    return Adapter(
        tensors={name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()},
        # In the order of a set, equal runs would write other files.
        settings={name: sorted(value) if isinstance(value, set) else value for name, value in settings.items()},
        starts={
            name: Start(lora_a=start.lora_a.cpu(), lora_b=start.lora_b.cpu(), scale=start.scale)
            for name, start in starts.items()
        },
    )


def save_adapter(adapter: Adapter, folder: Path) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`, for the pristine base whatever the start was."""
    from safetensors.torch import save_file  # noqa: PLC0415 - only here

    tensors, settings = dict(adapter.tensors), dict(adapter.settings)
    if adapter.starts:
        tensors, settings = plain_tensors(tensors, adapter.starts), settings | plain_settings(adapter.starts)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
