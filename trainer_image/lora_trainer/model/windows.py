"""What limits or mixes the tokens that a model's attention sees, and does not come to attention: windows and chunks
that only masks say, of which there are none over packs, and convolutions.

Logits would not show it: the rows that a model is tried with are shorter than most windows, and beyond a window of
thousands of tokens they change by little.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

_MARK = torch.int8
"""The type of what stands for a mask. No model makes its own so."""


def has_effect(model: Any, longest: int | None) -> bool:
    """Whether a window of the model is shorter than its longest row, None for rows of any length."""
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    return isinstance(window, int) and (longest is None or window < longest)


def has_chunks(model: Any) -> bool:
    """Whether tokens attend within chunks of fixed positions (Llama 4), which only the model's own masks say."""
    return getattr(model.config.get_text_config(), "attention_chunk_size", None) is not None


def has_memory(model: Any) -> bool:
    """Whether rows could see each other in a way that a few tokens or weights near 0 do not show: by convolutions, as
    in all recurrent layers."""
    return any(isinstance(module, nn.Conv1d) for module in model.modules())


def register(name: str, attend: Callable[..., Any]) -> list[str]:
    """Let Transformers know `attend` by a name under which a list is made of the layers that have a window from a mask
    alone."""
    from transformers import AttentionInterface, AttentionMaskInterface  # noqa: PLC0415 - takes seconds to import

    found: list[str] = []

    def noting(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **others: Any,
    ) -> Any:
        marked = attention_mask is not None and attention_mask.dtype == _MARK
        if marked and others.get("sliding_window") is None:
            found.append(type(module).__name__)
        return attend(module, query, key, value, None if marked else attention_mask, **others)

    AttentionInterface.register(name, noting)
    AttentionMaskInterface.register(name, _mark)
    return found


def _mark(
    *, batch_size: int, q_length: int, kv_length: int, device: Any, local_size: int | None = None, **_: Any
) -> torch.Tensor | None:
    """In place of a mask with a window; what is causal alone needs none."""
    if local_size is None:
        return None
    return torch.zeros((batch_size, 1, q_length, kv_length), dtype=_MARK, device=device)
