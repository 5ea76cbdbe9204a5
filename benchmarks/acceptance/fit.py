"""The fit model against the allocator, over shapes, ranks, lengths and recomputation: `benchmarks/memory.py`."""

import itertools
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from benchmarks import memory
from benchmarks.acceptance.bench import Bench
from benchmarks.acceptance.findings import Check, Outcome, judged, not_run
from benchmarks.acceptance.shapes import LLAMA_3_2_1B, LLAMA_3_8B
from benchmarks.memory_simulation import Step

from lora_trainer.spec.config import LoraConfig, Quantization

_TOO_LOW, _TOO_HIGH = -0.03, 0.15
"""Errors of an estimate that are let pass: one that is too low promises a fit that is none, one that is too high only
wastes memory."""
_FULL, _SELECTIVE, _NONE = (True, False), (True, True), (False, False)
_SETTINGS = (
    (1024, 16, _FULL),
    (4096, 16, _FULL),
    (4096, 16, _SELECTIVE),
    (4096, 256, _FULL),
    (8192, 16, _FULL),
    (1024, 16, _NONE),
    (4096, 64, _NONE),
)
"""Tokens of a micro-batch, rank, whether activations are recomputed and those of MLPs alone."""


def checks(bench: Bench) -> Iterator[Check]:
    """The small shape first: a small GPU has no room for the other."""
    if bench.tiny:
        yield Check(name="two layers of a tiny shape", run=partial(_counted, bench))
        return
    shapes = {"Llama-3.2-1B": LLAMA_3_2_1B, "Llama-3-8B": LLAMA_3_8B}
    quantizations = (Quantization.NONE, Quantization.NF4)
    for setting, (name, shape), quantization in itertools.product(_SETTINGS, shapes.items(), quantizations):
        tokens, rank, (recompute, selective) = setting
        lora = LoraConfig(rank=rank, alpha=2 * rank)
        how = Step(rows=(tokens,), lora=lora, quantization=quantization, recompute=recompute, selective=selective)
        said = ", MLPs" if selective else "" if recompute else ", kept"
        words = f"{name[6:]}, {quantization.value}, {tokens}, r={rank}{said}"
        yield Check(name=words, run=partial(_measured, bench, shape, how))


def _counted(bench: Bench) -> Outcome:
    """What layers keep, by saved tensors."""
    shape = {**bench.sizes, "model_type": "llama", "attention_bias": False}
    found, estimated = memory.counted(shape, Step(rows=(97,), fp32=True), bench.device)
    return _judged(found, estimated, "bytes for a token and layer")


def _measured(bench: Bench, shape: Mapping[str, Any], how: Step) -> Outcome:
    if not bench.on_gpu:
        return not_run("a CPU has no allocator that counts; --tiny counts saved tensors")
    found = memory.measured(shape, how, bench.device)
    return not_run("does not fit this GPU") if found is None else _judged(*found, "bytes")


def _judged(found: float, estimated: float, unit: str) -> Outcome:
    error = estimated / found - 1
    said = f"{found:,.0f} {unit}, estimated {estimated:,.0f} ({error:+.1%})"
    return judged(_TOO_LOW <= error <= _TOO_HIGH, said, measured=found, estimated=estimated, error=error)
