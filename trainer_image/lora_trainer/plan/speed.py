"""Floating-point operations of a token, and seconds of a million of them at a share of a device's peak."""

from dataclasses import dataclass

from lora_trainer.plan.adapter import Adapter, adapted_stacks
from lora_trainer.plan.architecture import ModelArchitecture
from lora_trainer.plan.memory import Setting
from lora_trainer.spec.config import Quantization
from lora_trainer.spec.gpus import Gpu

SHARE = 0.4
"""Of the dense peak, counting all operations that are done: what well-run trainings reach, 12,473 tokens a second for
Llama-3-8B on an H100 among them. An assumption, and not a measurement of this trainer."""
_READ_AND_WRITTEN = 0.516 + 2
"""Bytes a weight that making 16 bits of 4 moves."""
_INT8_TIMES = 2.4
"""So many times as long as in 16 bits LLM.int8() trains: 52.3 s a step instead of 21.8 for Llama-13B on an A100
(h2oai/h2ogpt issue 128, bitsandbytes of 2023). Its kernels of today have 1.6 to 1.85 times the throughput, and with
outliers, at few tokens, still 0.6 of bf16's on an RTX 4090 and 0.3 on an H100 (bitsandbytes 0.45,
benchmarking/README.md): nobody has published a training with them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Tokens a second of one GPU, and the operations of a token that it does."""

    tokens_per_s: float
    flops_per_token: float


def flops_per_token(shape: ModelArchitecture, adapter: Adapter, setting: Setting) -> float:
    """Of forward and backward pass: 4N + 6P + 6 t Q L, N parameters that multiply a token, P of the adapter, t tokens
    of a row, Q width of all queries, L layers; recomputed, the layers' forward pass once more, or that of their MLPs.

    A frozen matrix has no gradient of its own, hence 4 and not 6; half of causal attention is masked and not computed.
    A stack that is adapted has one, and its adapter is added to all of it, once for all tokens.
    """
    attention = 2 * setting.row * sum(layer.query for layer in shape.layers)
    stacks = list(adapted_stacks(shape, adapter))
    modules = adapter.parameters - sum(sum(stack.factors) for stack in stacks)
    added = sum(2 * stack.rank * stack.weights for stack in stacks) / setting.tokens
    of_stacks = sum(2 * stack.passed * stack.inputs * stack.outputs for stack in stacks)
    forward = 2 * shape.multiplied + 2 * modules + attention + added
    backward = 2 * shape.multiplied + 4 * modules + 2 * attention + of_stacks + 2 * added
    again = forward - 2 * shape.vocabulary * shape.hidden if setting.recompute else 0
    if setting.selective:
        again = 2 * sum(layer.mlp_weights + layer.active for layer in shape.layers) + 2 * adapter.in_mlp(shape) + added
    return float(forward + backward + again)


def speed(shape: ModelArchitecture, adapter: Adapter, setting: Setting, gpu: Gpu) -> Speed | None:
    """Of one GPU; None where its peak is not known. A pass over a micro-batch takes at least as long as reading the
    weights it computes with (roofline, doi 10.1145/1498765.1498785). 4-bit weights are made 16-bit before, at the
    memory's bandwidth, however few its tokens are."""
    if gpu.flops is None or gpu.bandwidth is None:
        return None
    flops = flops_per_token(shape, adapter, setting)
    # fp32 has no tensor cores: an eighth of the peak in 16 bits is the largest share that data sheets have.
    peak = gpu.flops / 8 if setting.fp32 else gpu.flops
    passes = 2.0
    if setting.recompute:
        passes += shape.mlp_share if setting.selective else 1
    seconds = max(flops / (peak * SHARE), passes * setting.size * shape.linear_weights / gpu.bandwidth / setting.tokens)
    if setting.quantization is Quantization.INT8:
        seconds *= _INT8_TIMES
    elif setting.is_4bit:
        seconds += passes * _READ_AND_WRITTEN * shape.linear_weights / gpu.bandwidth / setting.tokens
    return Speed(tokens_per_s=1 / seconds, flops_per_token=flops)
