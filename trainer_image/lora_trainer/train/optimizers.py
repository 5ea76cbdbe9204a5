"""The optimizer that was asked for."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lora_trainer.model.device import Device
from lora_trainer.spec.config import Optimizer, TrainingConfig

BETAS = (0.9, 0.999)
EPSILON = 1e-8
_PAGED = frozenset({"state1", "state2"})
"""What bitsandbytes pages, of parameters that are large enough."""


def make_optimizer(parameters: Sequence[nn.Parameter], config: TrainingConfig, device: Device) -> torch.optim.Optimizer:
    """AdamW with decoupled weight decay (arXiv 1711.05101) over the trained parameters.

    PyTorch's fused one, or that of bitsandbytes with 8-bit state (arXiv 2110.02861), which keeps tensors of fewer than
    4,096 values in fp32. The paged one moves state to main memory where the GPU's does not suffice; a CPU has nothing
    to page, and gets the other. Matrices decay, vectors do not: DoRA's magnitudes, norms and biases are no distances
    from the base model, and towards 0 they would take it along.
    """
    settings: dict[str, Any] = {"lr": config.learning_rate, "betas": BETAS, "eps": EPSILON}
    decays = ((True, config.weight_decay), (False, 0.0))
    groups = [
        {"params": found, "weight_decay": decay}
        for is_matrix, decay in decays
        if (found := [parameter for parameter in parameters if (parameter.dim() >= 2) is is_matrix])
    ]
    if config.optimizer is Optimizer.ADAMW:
        return torch.optim.AdamW(groups, fused=True, **settings)
    from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit  # noqa: PLC0415 - takes seconds to import

    paged = config.optimizer is Optimizer.PAGED_ADAMW_8BIT and device.torch_device.type != "cpu"
    kind: Any = PagedAdamW8bit if paged else AdamW8bit
    optimizer: torch.optim.Optimizer = kind(groups, **settings)
    return optimizer


def load_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Give an optimizer the state that its `state_dict` was. Its weight decay stays its own: a run that goes on from
    another may have another."""
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    if getattr(optimizer, "is_paged", False):
        _load_paged(optimizer, state)
    else:
        optimizer.load_state_dict(dict(state))
    for group, decay in zip(optimizer.param_groups, decays, strict=True):
        group["weight_decay"] = decay


def _load_paged(paged: Any, state: Mapping[str, Any]) -> None:
    """bitsandbytes would move the state to the GPU whole, where it stays; what was read from a file is no page yet."""
    paged.load_state_dict(dict(state), move_to_device=False)
    for parameter, values in paged.state.items():
        for name in _PAGED & values.keys():
            values[name] = paged.get_state_buffer(parameter, dtype=values[name].dtype).copy_(values[name])
