"""What is fast, by family: one table. A family stands in it once the tests hold each of its entries against the plain
path, forward and gradients; any other computes with plain PyTorch, and its rows are padded.

A family is a `model_type` of Transformers. On a GPU a run checks before its first step what it takes, see
`training.self_check`; on a CPU the tests are the check.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from lora_trainer.model import attention, gates, liger, lora_kernel
from lora_trainer.model.device import Device
from lora_trainer.model.recompute import take_forward


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A faster way to compute some modules: `find` gives those that it suits on a device, none where it suits none."""

    name: str
    find: Callable[[Any, Device], list[Any]]
    install: Callable[[Any], None]
    remove: Callable[[Any], None] = take_forward

    def put(self, model: nn.Module, device: Device) -> None:
        """Let the model compute so."""
        for module in self.find(model, device):
            self.install(module)

    def take(self, model: nn.Module, device: Device) -> None:
        """Let it compute as its classes do again."""
        for module in self.find(model, device):
            self.remove(module)


def _with_kernel(model: Any, device: Device) -> list[Any]:
    """The model itself, where its rows are isolated and the device has a kernel for packs of its heads."""
    text = model.config.get_text_config()
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    isolated = model.config._attn_implementation in {attention.ROWS, attention.VARLEN}
    return [model] if isolated and attention.has_kernel(size, size, device.dtype, device.capability) else []


ADAPTER = Entry(
    name="fused-adapter",
    find=lambda model, _: lora_kernel.plain_modules(model),
    install=lora_kernel.install,
)
NORM = Entry(name="liger-rms-norm", find=lambda model, _: liger.norms(model), install=liger.install_norm)
ROTATION = Entry(name="liger-rope", find=lambda model, _: liger.rotating(model), install=liger.install_rotation)
GATE = Entry(name="liger-swiglu", find=lambda model, _: liger.gated_mlps(model), install=liger.install_gate)
CPU_GATE = Entry(
    name="recomputed-swiglu",
    find=lambda model, _: gates.on_cpu(model),
    install=lambda module: gates.install(module, gates.recomputed),
)
VARLEN = Entry(
    name="varlen",
    find=_with_kernel,
    install=lambda model: model.set_attn_implementation(attention.VARLEN),
    remove=lambda model: model.set_attn_implementation(attention.ROWS),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What a family uses. With `packs`, rows of a pack do not see each other where `attention.attend` computes them;
    without `windows` only masks say how far its layers see, and there are none over packs."""

    fast: tuple[Entry, ...] = (ADAPTER,)
    packs: bool = True
    windows: bool = True


_GATES = (GATE, CPU_GATE)
_LLAMA = Family(fast=(ADAPTER, NORM, ROTATION, *_GATES, VARLEN))
_WITHOUT_GATE = Family(fast=(ADAPTER, NORM, ROTATION, VARLEN))
_GATED = Family(fast=(ADAPTER, *_GATES, VARLEN))
FAMILIES: Mapping[str, Family] = {
    **dict.fromkeys(("llama", "mistral", "mistral3", "ministral", "qwen2", "qwen2_5_vl", "qwen3"), _LLAMA),
    **dict.fromkeys(("granite", "smollm3", "exaone4", "hunyuan_v1_dense"), _LLAMA),
    "qwen2_moe": replace(_LLAMA, windows=False),
    # Gated by GELU, or with experts in place of MLPs, or with dropout behind them.
    **dict.fromkeys(("gemma", "gemma3_text", "gemma3", "mixtral", "qwen3_moe"), _WITHOUT_GATE),
    **dict.fromkeys(("granitemoe", "olmoe", "seed_oss"), _WITHOUT_GATE),
    # Capped scores and sinks, which the kernel for packs does not compute.
    "gemma2": Family(fast=(ADAPTER, NORM, ROTATION)),
    "gpt_oss": Family(fast=(ADAPTER, NORM)),
    # Rotations that interleave, leave a part of each head alone, or are rounded otherwise.
    **dict.fromkeys(("olmo2", "olmo3", "ernie4_5"), Family(fast=(ADAPTER, NORM, *_GATES, VARLEN))),
    **dict.fromkeys(("phi3", "glm", "glm4"), Family(fast=(ADAPTER, NORM, VARLEN))),
    # Queries are wider than values, too.
    "deepseek_v3": Family(fast=(ADAPTER, NORM, *_GATES)),
    # Norms of other kinds.
    **dict.fromkeys(("cohere", "cohere2", "olmo"), _GATED),
    **dict.fromkeys(("phi", "starcoder2"), Family(fast=(ADAPTER, ROTATION, VARLEN))),
    "phimoe": Family(fast=(ADAPTER, ROTATION, VARLEN), windows=False),
    **dict.fromkeys(("gpt_neox", "opt"), Family(fast=(ADAPTER, VARLEN))),
    # Its matrices are no linear modules.
    "gpt2": Family(fast=(VARLEN,)),
    # Where rows lie does not reach attention, which is their own, or they have chunks that only masks say, convolutions
    # or states.
    **dict.fromkeys(("bloom", "mamba", "llama4_text", "lfm2"), Family(packs=False)),
    "stablelm": Family(fast=(ADAPTER, ROTATION, *_GATES), packs=False),
    "qwen3_next": Family(fast=(ADAPTER, *_GATES), packs=False),
}


def family_of(model: Any) -> Family:
    """What a model may use; nothing where its family is not in the table."""
    return FAMILIES.get(str(model.config.model_type), Family(fast=(), packs=False))


def isolate(model: Any, longest: int | None = None) -> bool:
    """Let a model compute attention so that rows of up to `longest` tokens, None for any, can be packed; whether they
    can. One that cannot computes as it did."""
    family = family_of(model)
    if not family.packs or not (family.windows or _sees_all(model, longest)) or not _is_causal(model):
        return False
    from transformers import AttentionInterface  # noqa: PLC0415 - Transformers takes seconds to import

    AttentionInterface.register(attention.ROWS, attention.attend)
    AttentionInterface.register(attention.VARLEN, attention.attend_at_once)
    model.set_attn_implementation(attention.ROWS)
    return True


def usable(model: Any, device: Device, *, packed: bool) -> tuple[Entry, ...]:
    """The entries of a model's family that suit some of its modules on the device, that for packs where rows are
    `packed`."""
    wanted = (entry for entry in family_of(model).fast if packed or entry is not VARLEN)
    return tuple(entry for entry in wanted if entry.find(model, device))


def compute_with(model: Any, taken: Iterable[Entry], device: Device) -> None:
    """Let a model compute with these entries, and no others of the table."""
    taken = tuple(taken)
    for entry in family_of(model).fast:
        entry.take(model, device)
    for entry in taken:
        entry.put(model, device)


def _sees_all(model: Any, longest: int | None) -> bool:
    """Whether no window of the model is shorter than its longest row."""
    text = model.config.get_text_config()
    window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    return window is None or (longest is not None and window >= longest)


def _is_causal(model: Any) -> bool:
    """Some configurations let a family's tokens see those after them."""
    return not getattr(model.config.get_text_config(), "use_bidirectional_attention", False)
