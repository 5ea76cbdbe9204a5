"""Rotary frequencies that follow the length of a row, as LongRoPE's and dynamic NTK's do.

Transformers chooses them for all rows of a batch, by the batch's last position
(`modeling_rope_utils.dynamic_rope_update`): beside a longer row, a row would be computed with frequencies that it has
nowhere else.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Frequencies:
    """The lengths, in tokens, above which a model has other frequencies: one set more above each of `switches`
    (LongRoPE), a set for each length above `grow` (dynamic NTK). With neither, all lengths have the same."""

    switches: tuple[int, ...] = ()
    grow: int | None = None

    def at(self, length: int) -> tuple[int, int]:
        """Equal for two lengths that have the same frequencies; never less for the longer one."""
        switched = sum(int(length > switch) for switch in self.switches)
        return switched, 0 if self.grow is None else max(length, self.grow)


STEADY = Frequencies()
"""Those of most models: the same for all lengths."""


def frequencies_of(model: Any) -> Frequencies:
    """Those of a model's language part, by its configuration."""
    config = model.config.get_text_config()
    most = getattr(config, "max_position_embeddings", None)
    switches, grow = set(), None
    for parameters in _parameters(config):
        kind = _kind(parameters)
        if kind == "longrope":
            before = getattr(config, "original_max_position_embeddings", None) or most
            switches.add(parameters.get("original_max_position_embeddings") or before)
        elif "dynamic" in kind:
            grow = most
    return Frequencies(switches=tuple(sorted(int(switch) for switch in switches if switch)), grow=grow)


def _parameters(config: Any) -> Iterator[Mapping[str, Any]]:
    """Those of all layers, or of each type of layers where these differ."""
    found = getattr(config, "rope_parameters", None) or {}
    if _kind(found):
        yield found
    else:
        yield from (each for each in found.values() if isinstance(each, Mapping))


def _kind(parameters: Mapping[str, Any]) -> str:
    return str(parameters.get("rope_type") or parameters.get("type") or "")


def forget_lengths(model: nn.Module) -> None:
    """Let every batch have the frequencies of its own length: Transformers' dynamic NTK goes on with those of the
    longest batch so far, until one comes that is short."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        by_prefix = {f"{layers}_": kind for layers, kind in kinds.items()} if isinstance(kinds, dict) else {"": kinds}
        if prefixes := [prefix for prefix, kind in by_prefix.items() if "dynamic" in str(kind)]:
            module.register_forward_pre_hook(_forgetting(prefixes))


def _forgetting(prefixes: list[str]) -> Any:
    def forget(module: Any, _inputs: object) -> None:
        for prefix in prefixes:
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
            setattr(module, f"{prefix}inv_freq", getattr(module, f"{prefix}original_inv_freq"))

    return forget
