"""Liger's kernels under Triton's interpreter, on a CPU: what the tests of them ask, answered as JSON.

A process of its own with TRITON_INTERPRET=1, since the switch is read where kernels are defined. The interpreter knows
none of libdevice's functions (`tl.math` has the one that these kernels call) and leaves floats as Python has them.
"""

import functools
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import triton.language as tl
from liger_kernel.ops import rms_norm
from tests.trainer.families import adapted_family, numbers, rows_of
from torch.nn.functional import silu
from transformers import LlamaConfig
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding, apply_rotary_pos_emb
from triton.runtime import interpreter

from lora_trainer.model import liger
from lora_trainer.model.device import Device
from lora_trainer.model.fast import FAMILIES, GATE, NORM, ROTATION, Entry, isolate
from lora_trainer.spec.config import ActivationCheckpointing

TYPES = {"fp32": torch.float32, "fp16": torch.float16}
"""The interpreter computes with numpy, which has no bf16."""
LIGER = (NORM, ROTATION, GATE)
CPU = Device(torch_device=torch.device("cpu"), name="cpu", dtype=torch.float32)


def family(kind: str, checkpointing: ActivationCheckpointing = ActivationCheckpointing.NONE) -> dict[str, Any]:
    """How far losses and gradients with each entry are from those without, how often each of the kernels runs, and
    whether the model is what it was without the entry."""
    with tempfile.TemporaryDirectory() as folder:
        model = adapted_family(Path(folder), kind, CPU, checkpointing)
    packed = isolate(model.model)
    plain = numbers(model, rows_of(model), CPU, packed=packed)
    found: dict[str, Any] = {}
    for entry in LIGER:
        if entry in FAMILIES[kind].fast:
            found[entry.name] = _with(entry, lambda: numbers(model, rows_of(model), CPU, packed=packed), model, plain)
    return found


def _with(
    entry: Entry, compute: Callable[[], Sequence[torch.Tensor]], model: Any, plain: Sequence[torch.Tensor]
) -> dict[str, Any]:
    name = {NORM: "norm", ROTATION: "rotate", GATE: "gate"}[entry]
    calls: list[int] = []
    original = getattr(liger, name)

    def counted(*given: Any) -> Any:
        calls.append(1)
        return original(*given)

    with mock.patch.object(liger, name, counted):
        entry.put(model.model, CPU)
        found = compute()
        modules = len(entry.find(model.model, CPU))
        entry.take(model.model, CPU)
    removed = all(map(torch.equal, plain, compute()))
    return {"apart": _apart(found, plain), "calls": len(calls), "modules": modules, "removed": removed}


def _apart(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    """The largest relative difference."""
    return max(float((a - b).norm() / b.norm().clamp(min=1e-30)) for a, b in zip(found, wanted, strict=True))


def shapes(dtype: torch.dtype) -> dict[str, float]:
    """How far each kernel on odd shapes is from plain PyTorch in fp64, beyond how far that is in this type."""
    found: dict[str, float] = {}

    def tried(name: str, fast: Callable[..., Any], plain: Callable[..., Any], *given: torch.Tensor) -> None:
        right = _results(plain, [one.double() for one in given])
        ours, usual = (_results(compute, [one.to(dtype) for one in given]) for compute in (fast, plain))
        found[name] = _apart([one.double() for one in ours], right) - 1.5 * _apart(
            [one.double() for one in usual], right
        )

    torch.manual_seed(1)
    for kind in (LlamaRMSNorm, Gemma2RMSNorm):
        for shape in ((1, 1, 64), (2, 5, 33), (1, 7, 3, 20)):
            module: Any = kind(shape[-1]).requires_grad_(requires_grad=False)
            torch.nn.init.normal_(module.weight, mean=0.7, std=0.3)

            def by_class(x: torch.Tensor, module: Any = module) -> Any:
                return module.to(x.dtype)(x)

            def by_liger(x: torch.Tensor, module: Any = module) -> Any:
                return liger.norm(module.to(x.dtype), x)

            tried(f"{kind.__name__} {shape}", by_liger, by_class, 3 * torch.randn(shape))
    for heads, shared, head, tokens, count in ((4, 2, 8, 7, 1), (3, 1, 12, 5, 2), (1, 1, 6, 1, 1)):
        config: Any = LlamaConfig(num_attention_heads=heads, head_dim=head, hidden_size=24)
        given = [torch.randn(count, n, tokens, head) for n in (heads, shared)]
        angles = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(tokens)[None])
        turn: Any = apply_rotary_pos_emb

        def turned(q: torch.Tensor, k: torch.Tensor, by: Any, angles: Any = angles) -> Any:
            return by(q, k, *(one.to(q.dtype) for one in angles))

        sizes = f"{heads} and {shared} heads of {head}, {count} x {tokens}"
        tried(sizes, functools.partial(turned, by=liger.rotate), functools.partial(turned, by=turn), *given)
    for width, count, tokens in ((33, 1, 7), (130, 2, 3), (1, 1, 1)):
        pair = [torch.randn(count, tokens, width) for _ in range(2)]
        # The backward pass writes over what it is given.
        tried(
            f"{width} wide, {count} x {tokens}", lambda g, u: liger.gate(1 * g, 1 * u), lambda g, u: silu(g) * u, *pair
        )
    return found


def _results(compute: Callable[..., Any], given: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What is computed, and the gradients of what it is given."""
    leaves = [one.detach().requires_grad_() for one in given]
    results = compute(*leaves)
    results = results if isinstance(results, tuple) else (results,)
    random = torch.Generator().manual_seed(0)
    weights = [(torch.randn(one.shape, generator=random) / 8).half().to(one.dtype) for one in results]
    return [*(one.detach() for one in results), *torch.autograd.grad(results, leaves, weights)]


def as_compiled(convert: Callable[[Any], Any], argument: Any) -> Any:
    """What the interpreter makes of a kernel's argument: a number in fp32 of a float, as Triton's compiler does."""
    if not isinstance(argument, float):
        return convert(argument)
    return tl.tensor(interpreter.TensorHandle(np.array([argument], dtype=np.float32), tl.float32), tl.float32)


def main() -> None:
    """All answers, or those of these families."""
    torch.set_num_threads(1)
    rms_norm.rsqrt = lambda x: tl.math.rsqrt(x)  # noqa: PLW0108 - looked up when the interpreter has replaced it
    interpreter._implicit_cvt = functools.partial(as_compiled, interpreter._implicit_cvt)
    liger.DEVICES.add("cpu")
    kinds = sys.argv[1:] or [kind for kind, family in FAMILIES.items() if {*LIGER} & {*family.fast}]
    modes = (ActivationCheckpointing.SELECTIVE, ActivationCheckpointing.FULL)
    answers = {
        "families": {kind: family(kind) for kind in kinds},
        "manners": {checkpointing.value: family("llama", checkpointing) for checkpointing in modes},
        "shapes": {name: shapes(dtype) for name, dtype in TYPES.items()},
    }
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
