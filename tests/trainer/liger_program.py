"""Liger's kernels under Triton's interpreter, on a CPU: what the tests of them ask, answered as JSON.

A process of its own with TRITON_INTERPRET=1, since the switch is read where kernels are defined. The interpreter knows
none of libdevice's functions (`tl.math` has the one that these kernels call) and leaves floats as Python has them.
"""

import contextlib
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import triton.language as tl
from liger_kernel.ops import rms_norm
from transformers import GlmConfig, LlamaConfig, LlamaForCausalLM
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.glm.modeling_glm import GlmAttention
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding
from triton.runtime import interpreter

from lora_trainer.contract.config import ActivationCheckpointing, LoraConfig
from lora_trainer.data.tokens import Example
from lora_trainer.model import liger
from lora_trainer.model.attention import choose_attention
from lora_trainer.model.device import Device
from lora_trainer.model.fast_path import FastPath
from lora_trainer.model.fast_paths import LIGER_RMS_NORM, LIGER_ROPE, LIGER_SWIGLU, Trial, prove
from lora_trainer.model.linear import linear_modules
from lora_trainer.model.loading import Adapted, Loaded, adapt, set_training
from lora_trainer.places.base import Base
from lora_trainer.training.batches import collate
from lora_trainer.training.loss import token_losses

TYPES = {"fp32": torch.float32, "fp16": torch.float16}
"""The interpreter computes with numpy, which has no bf16."""
PATHS = {path.name: path for path in (LIGER_RMS_NORM, LIGER_ROPE, LIGER_SWIGLU)}
SIZES: dict[str, Any] = {"hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1}


class More(LlamaMLP):
    """More than a gate between three matrices."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Twice what it should be."""
        found: torch.Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return 2 * found


def device(dtype: torch.dtype) -> Device:
    """The CPU."""
    return Device(torch_device=torch.device("cpu"), name="cpu", dtype=dtype)


def norm(kind: Any, width: int, dtype: torch.dtype) -> Any:
    """A frozen norm whose weights are none of 1 and 0."""
    module = kind(width).to(dtype).requires_grad_(False)
    torch.nn.init.normal_(module.weight, mean=0.7, std=0.3)
    return module


def attention(dtype: torch.dtype, *, heads: int, shared: int, head: int, kind: Any = LlamaAttention) -> Any:
    """Attention of so many heads."""
    sizes: Any = {"num_attention_heads": heads, "num_key_value_heads": shared, "head_dim": head, "hidden_size": 24}
    config: Any = GlmConfig if kind is GlmAttention else LlamaConfig
    made = config(**sizes)
    return kind(made, 0).to(dtype).requires_grad_(False)


def rotated(module: Any, tokens: int, rows: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Queries, keys, cosines and sines of a pack of several rows, whose positions begin anew, as attention has them."""
    config = module.config
    positions = torch.cat([torch.arange(tokens - tokens // 3), torch.arange(tokens // 3)])[None]
    heads = [
        torch.randn(rows, tokens, n, config.head_dim) for n in (config.num_attention_heads, config.num_key_value_heads)
    ]
    cosines, sines = LlamaRotaryEmbedding(config)(torch.zeros(1, dtype=dtype), positions)
    return *(one.to(dtype).transpose(1, 2) for one in heads), cosines, sines


def refusals(dtype: torch.dtype) -> dict[str, str | None]:
    """Of each kernel on odd shapes: why it is left out."""
    found: dict[str, str | None] = {}

    def tried(name: str, path: FastPath, module: Any, *seen: torch.Tensor) -> None:
        torch.manual_seed(1)
        found[f"{path.name} {name}"] = Trial(path=path, module=module, seen=seen, device=device(dtype)).refusal()

    for kind in (LlamaRMSNorm, Gemma2RMSNorm):
        for shape in ((1, 1, 64), (2, 5, 33), (1, 7, 3, 20)):
            x = 3 * torch.randn(shape).to(dtype)
            tried(f"{kind.__name__} {shape}", LIGER_RMS_NORM, norm(kind, shape[-1], dtype), x)
    for heads, shared, head, tokens, rows in ((4, 2, 8, 7, 1), (3, 1, 12, 5, 2), (1, 1, 6, 1, 1)):
        module = attention(dtype, heads=heads, shared=shared, head=head)
        seen = rotated(module, tokens, rows, dtype)
        tried(f"{heads} and {shared} heads of {head}, {rows} x {tokens}", LIGER_ROPE, module, *seen)
    mlp: Any = LlamaMLP
    for hidden, width, rows, tokens in ((8, 33, 1, 7), (16, 130, 2, 3), (4, 1, 1, 1)):
        config: Any = LlamaConfig(hidden_size=hidden, intermediate_size=width, num_attention_heads=1)
        module = mlp(config).to(dtype).requires_grad_(False)
        tried(
            f"{hidden} to {width}, {rows} x {tokens}", LIGER_SWIGLU, module, torch.randn(rows, tokens, hidden).to(dtype)
        )
    return found


def others() -> dict[str, str | None]:
    """Of modules that only look alike, and of a kernel that is wrong by 1 %."""
    x, fp32 = torch.randn(1, 4, 24), torch.float32
    glm = attention(fp32, heads=4, shared=2, head=8, kind=GlmAttention)
    queries = rotated(attention(fp32, heads=4, shared=2, head=8), 5, 1, fp32)
    kinds: tuple[Any, ...] = (More, LlamaMLP)
    config: Any = LlamaConfig(hidden_size=24, intermediate_size=20, num_attention_heads=1)
    more, gated = (kind(config).requires_grad_(False) for kind in kinds)

    def tried(path: FastPath, module: Any, *seen: torch.Tensor) -> str | None:
        return Trial(path=path, module=module, seen=seen, device=device(fp32)).refusal()

    found = {"interleaved": tried(LIGER_ROPE, glm, *queries), "more": tried(LIGER_SWIGLU, more, x)}
    right = liger.gate
    with mock.patch.object(liger, "gate", lambda *given: 1.01 * right(*given)):
        found["wrong"] = tried(LIGER_SWIGLU, gated, x)
    with mock.patch.object(liger, "_epsilon", return_value=0.5):
        found["another epsilon"] = tried(LIGER_RMS_NORM, norm(LlamaRMSNorm, 24, fp32), x)
    return found


def adapted(dtype: torch.dtype, checkpointing: ActivationCheckpointing) -> Adapted:
    """A tiny Llama with an adapter."""
    torch.manual_seed(0)
    config: Any = LlamaConfig(vocab_size=64, intermediate_size=50, initializer_range=0.2, head_dim=12, **SIZES)
    kind: Any = LlamaForCausalLM
    model = kind(config).to(dtype).requires_grad_(False)
    model.config.use_cache = False
    loaded = Loaded(model=model, head=model.lm_head, linear=linear_modules(model, model.lm_head))
    base = Base(folder=Path(), name="random", revision="sha256:0", model_type="llama")
    found = adapt(loaded, LoraConfig(rank=3, alpha=6), base, device(dtype), 1, checkpointing=checkpointing)
    for name, parameter in found.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return found


def computed(model: Adapted, batch: Any, dtype: torch.dtype) -> list[torch.Tensor]:
    """Losses, and the gradients of all that is trained."""
    set_training(model.model, on=True)
    losses = token_losses(model.model, model.head, batch, device(dtype))
    torch.autograd.backward(losses.sum())
    gradients = []
    for parameter in model.model.parameters():
        if parameter.requires_grad and parameter.grad is not None:
            gradients.append(parameter.grad)
            parameter.grad = None
    return [losses.detach(), *gradients]


def whole(checkpointing: ActivationCheckpointing) -> dict[str, Any]:
    """A model that proves each path on a pack, takes them all, computes with them and lets go of them again."""
    model = adapted(torch.float32, checkpointing)
    packs = choose_attention(model.model, device(torch.float32)).packs
    random = np.random.default_rng(1)
    ids = [random.integers(3, 64, size=length) for length in (9, 4)]
    rows = [Example(input_ids=one, labels=one, truncated=False) for one in ids]
    batch = collate(rows, torch.device("cpu"), packed=packs)
    plain = computed(model, batch, torch.float32)
    verdicts = {
        name: prove(path, model.model, model.head, batch.arguments, device(torch.float32), timed=False)
        for name, path in PATHS.items()
    }
    calls: list[str] = []
    found: dict[str, Any] = {
        "refusals": {name: verdict.refusal for name, verdict in verdicts.items()},
        "modules": {name: len(verdict.modules) for name, verdict in verdicts.items()},
        "as before": _same(plain, computed(model, batch, torch.float32)) == 0.0,
    }

    def counted(name: str) -> Callable[..., Any]:
        original = getattr(liger, name)

        def call(*given: Any) -> Any:
            calls.append(name)
            return original(*given)

        return call

    with contextlib.ExitStack() as stack:
        for name in ("norm", "rotate", "gate"):
            stack.enter_context(mock.patch.object(liger, name, counted(name)))
        for verdict in verdicts.values():
            for module in verdict.modules:
                verdict.path.install(module)
        found["difference"] = _same(plain, computed(model, batch, torch.float32))
        found["calls"] = {name: calls.count(name) for name in ("norm", "rotate", "gate")}
    for verdict in verdicts.values():
        for module in verdict.modules:
            verdict.path.remove(module)
    found["removed"] = _same(plain, computed(model, batch, torch.float32)) == 0.0
    return found


def _same(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """The largest relative difference."""
    return max(float((a - b).norm() / a.norm()) for a, b in zip(one, other, strict=True))


def as_compiled(convert: Callable[[Any], Any], argument: Any) -> Any:
    """What the interpreter makes of a kernel's argument: a number in fp32 of a float, as Triton's compiler does."""
    if not isinstance(argument, float):
        return convert(argument)
    return tl.tensor(interpreter.TensorHandle(np.array([argument], dtype=np.float32), tl.float32), tl.float32)


def main() -> None:
    """All answers."""
    rms_norm.rsqrt = lambda x: tl.math.rsqrt(x)  # noqa: PLW0108 - looked up when the interpreter has replaced it
    interpreter._implicit_cvt = functools.partial(as_compiled, interpreter._implicit_cvt)
    liger.DEVICES.add("cpu")
    manners = (ActivationCheckpointing.NONE, ActivationCheckpointing.SELECTIVE, ActivationCheckpointing.FULL)
    answers = {
        "refusals": {name: refusals(dtype) for name, dtype in TYPES.items()},
        "others": others(),
        "whole": {manner.value: whole(manner) for manner in manners},
    }
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
