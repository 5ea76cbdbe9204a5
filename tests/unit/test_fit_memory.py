"""Memory and time: the formulas against numbers that are known, and which way each setting moves them."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.fit_models import GEMMA_2, GPT_OSS, LLAMA_2_7B, LLAMA_2_13B, MIXTRAL, MODELS, Config, llama

from lora_trainer.plan.adapter import plan_adapter
from lora_trainer.plan.families import architecture_of
from lora_trainer.plan.memory import Memory, Setting, communicators_of, gpu_memory, layer_bytes, main_memory
from lora_trainer.plan.speed import flops_per_token, speed
from lora_trainer.spec.config import DeviceConfig, Layers, LoraConfig, Optimizer, Quantization, Variant
from lora_trainer.spec.gpus import find_gpu

GB = 1e9
DEFAULT = Setting(quantization=Quantization.NONE, recompute=True, tokens=4096, row=2048)
QUERY_VALUE_8 = LoraConfig(rank=8, layers=Layers.QUERY_VALUE)
EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
PUBLISHED = Setting(quantization=Quantization.NONE, recompute=False, tokens=1304, row=1304)


def memory(config: Config, setting: Setting = DEFAULT, lora: LoraConfig = LoraConfig()) -> Memory:  # noqa: B008
    """Of a run."""
    shape = architecture_of(config)
    return gpu_memory(shape, plan_adapter(lora, shape), setting)


@pytest.mark.parametrize(("quantization", "wanted"), [(Quantization.NONE, 19.6), (Quantization.NF4, 9.3)])
def test_the_defaults_on_llama_3_8b_take_what_was_expected(quantization: Quantization, wanted: float) -> None:
    """4,096 tokens, recomputed. The expectation has one decimal, and no copy of the last norm's input."""
    found = memory(llama(), replace(DEFAULT, quantization=quantization)).total / GB
    assert found == pytest.approx(wanted, rel=0.013)


@pytest.mark.parametrize(
    ("config", "published"), [(LLAMA_2_7B, 21.33), (LLAMA_2_13B, 38.12)], ids=["Llama-2-7B", "Llama-2-13B"]
)
def test_a_published_run_in_bf16_is_met_within_two_per_cent(config: Config, published: float) -> None:
    """Query and value, rank 8, 1,304 tokens, nothing recomputed, the dropout of 0.05 that its program defaults to."""
    found = memory(config, replace(PUBLISHED, dropout=True), QUERY_VALUE_8).total / GB
    assert published * 0.98 <= found <= published


def test_a_layer_of_llama_keeps_what_the_formula_says() -> None:
    """8C + 4Q + 4KV + 6I + 4H + 8, and 4C + 2I + 14r with the adapter on all modules; in fp32 8C + 8Q + 8KV + 12I + 4H
    + 8, and 8C + 4I + 28r."""
    shape = architecture_of(llama())
    layer, ranks = shape.layers[0], plan_adapter(LoraConfig(), shape).ranks[0]
    hidden, key_value, mlp = 4096, 1024, 14336
    core = 8 * hidden + 4 * hidden + 4 * key_value + 6 * mlp + 4 * 32 + 8
    assert layer_bytes(layer, (0,) * 7, DEFAULT) == core
    assert layer_bytes(layer, ranks, DEFAULT) == core + 4 * hidden + 2 * mlp + 14 * 16
    dropped = core + 3 * (5 * hidden + hidden + mlp) + 14 * 16
    assert layer_bytes(layer, ranks, replace(DEFAULT, dropout=True)) == dropped
    wide, twice = replace(DEFAULT, fp32=True), core + 4 * hidden + 4 * key_value + 6 * mlp
    assert layer_bytes(layer, (0,) * 7, wide) == twice
    assert layer_bytes(layer, ranks, wide) == twice + 8 * hidden + 4 * mlp + 28 * 16


def test_weights_take_their_stored_bytes() -> None:
    """4 bits with double quantization for linear modules, 16 for embeddings, norms and output embeddings."""
    linear = 6_979_321_856
    assert memory(llama()).weights == 2 * 8_030_261_248
    assert memory(llama(), replace(DEFAULT, fp32=True)).weights == 4 * 8_030_261_248
    found = memory(llama(), replace(DEFAULT, quantization=Quantization.NF4)).weights
    assert found == pytest.approx(0.515869140625 * linear + 2 * (8_030_261_248 - linear))
    eight = memory(llama(), replace(DEFAULT, quantization=Quantization.INT8)).weights
    assert eight == linear + 2 * (8_030_261_248 - linear)


def test_trained_parameters_take_eighteen_bytes() -> None:
    """fp32 with gradient and two moments, and autocast's copy, of one layer where layers are recomputed; 8-bit moments
    take two and their scales."""
    found = memory(llama(), replace(DEFAULT, recompute=False))
    assert found.adapter + found.gradients + found.optimizer + found.copies == 18 * 41_943_040
    assert memory(llama()).copies == 2 * 41_943_040 / 32
    small = memory(llama(), replace(DEFAULT, optimizer=Optimizer.ADAMW_8BIT), LoraConfig(rank=1))
    # Of rank 1 only the sides of 14,336 and 4,096 have enough values.
    values = 2_621_440 - 32 * 2 * 1024
    assert small.optimizer == round(8 * 32 * 2 * 1024 + 2.03125 * values)


def test_few_logits_exist_at_once_unless_something_follows_them() -> None:
    """1,046 of 128,256 at 6 bytes; Gemma 2 caps them, and a head that is trained needs all."""
    rows = 2**27 // 128256
    loss = memory(llama(), replace(DEFAULT, recompute=False)).working
    assert loss == 6 * rows * 128256 + 4 * 4096 * 4096
    trained = memory(llama(), DEFAULT, LoraConfig(modules_to_save=("lm_head",))).working
    assert trained == 12 * 4096 * 128256 + 2 * 4096 * 128256 + 2 * 4096 * 4096
    assert memory(GEMMA_2).working == 14 * 4096 * 256000 + 2 * 4096 * 2304


def test_attention_without_a_kernel_repeats_keys_and_values_for_each_head() -> None:
    """On a T4, on a CPU, without packing; its output is then no one else's, so that the adapter behind keeps it."""
    shape = architecture_of(llama())
    layer, ranks = shape.layers[0], plan_adapter(LoraConfig(), shape).ranks[0]
    without = replace(DEFAULT, packs=False)
    assert layer_bytes(layer, (0,) * 7, without) - layer_bytes(layer, (0,) * 7, DEFAULT) == 4 * (4096 - 1024)
    assert layer_bytes(layer, ranks, without) - layer_bytes(layer, ranks, DEFAULT) == 4 * (4096 - 1024) + 2 * 4096


@pytest.mark.parametrize(("config", "size"), [(GEMMA_2, 8), (GPT_OSS, 6)], ids=["capped", "sinks"])
def test_scores_that_are_written_out_grow_with_the_row(config: Config, size: int) -> None:
    """A softmax in fp32 and rounded, and what caps them, for each head and each token that is seen; a mask."""
    layer = architecture_of(config).layers[0]
    ranks = (0,) * len(layer.linear)
    longer = layer_bytes(layer, ranks, replace(DEFAULT, row=4096)) - layer_bytes(layer, ranks, DEFAULT)
    assert longer == (size * layer.heads + 1) * 2048


def test_layers_are_divided_and_embeddings_are_not() -> None:
    """Three layers are whole at once: one computes, FSDP2 keeps what it was gathered into, and gathers the next."""
    shape = architecture_of(llama())
    layer = 2 * shape.layers[0].parameters
    found = memory(llama(), replace(DEFAULT, processes=4)).weights
    assert found == 32 * layer / 4 + 3 * layer + 2 * shape.whole


def test_packed_bytes_are_divided_and_their_scales_are_not() -> None:
    """Scales of 8 bits for 64 weights, and of these in fp32 for 256; they are no parameters."""
    shape = architecture_of(llama())
    one = shape.layers[0]
    scales = one.linear_weights * (1 / 64 + 4 / (64 * 256))
    rest = 2 * (one.parameters - one.linear_weights)
    layer = one.linear_weights / 2 + rest
    found = memory(llama(), replace(DEFAULT, quantization=Quantization.NF4, processes=4)).weights
    assert found == round(32 * (layer / 4 + scales) + 3 * (layer + scales) + 2 * shape.whole)


@pytest.mark.parametrize(
    ("gpus", "nodes", "divided", "communicators"),
    [(1, 1, 1, 0), (2, 1, 1, 1), (8, 1, 8, 1), (8, 2, 8, 2), (8, 2, 16, 1), (0, 2, 1, 0)],
)
def test_each_of_nccls_communicators_has_buffers(gpus: int, nodes: int, divided: int, communicators: int) -> None:
    """One of all processes, and one of a node's, where each node has the whole base."""
    found = communicators_of(DeviceConfig(gpus=gpus, nodes=nodes), divided)
    assert found == communicators
    more = memory(llama(), replace(DEFAULT, communicators=found)).constant - memory(llama(), DEFAULT).constant
    assert more == 700_000_000 * communicators


CHANGES: dict[str, dict[str, Any]] = {
    "tokens": {"tokens": 8192},
    "dropout": {"dropout": True},
    "dora": {"dora": True},
    "fp32": {"fp32": True},
    "no kernel": {"packs": False},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["Llama-3-8B", "GPT-2", "Phi-3-mini", "Qwen3-8B", "Qwen3-30B-A3B"])
def test_what_costs_memory_costs_some(name: str, change: str) -> None:
    """On every kind of layer that keeps its activations; recomputing them saves most."""
    config, kept = MODELS[name][0], replace(DEFAULT, recompute=False)
    changed = memory(config, replace(kept, **CHANGES[change])).total
    assert memory(config).total < memory(config, kept).total
    # Rows of GPT-2 have attention with dropout, and heads of Phi-3 have their own keys: there is nothing to repeat.
    least = 0 if change == "no kernel" and name in {"GPT-2", "Phi-3-mini"} else 1
    assert changed >= memory(config, kept).total + least


def test_a_pod_without_a_gpu_holds_everything_in_main_memory() -> None:
    """What SmolLM2-135M took on a CPU is within 5 %."""
    shape = architecture_of(MODELS["SmolLM2-135M"][0])
    setting = Setting(
        quantization=Quantization.NONE, recompute=False, tokens=1024, row=512, packs=False, cpu=True, fp32=True
    )
    adapter = plan_adapter(LoraConfig(), shape)
    for tokens, measured in ((1024, 3219), (768, 2929)):
        estimated = main_memory(shape, adapter, replace(setting, tokens=tokens, row=256)) / 2**20
        assert estimated == pytest.approx(measured, rel=0.05)
    quickstart = main_memory(shape, adapter, replace(setting, tokens=284, row=142)) / 2**30
    assert quickstart == pytest.approx(2.2, rel=0.1)
    assert main_memory(shape, adapter, replace(setting, cpu=False), processes=2) > 2 * 4 * GB


def test_a_token_costs_four_operations_a_weight_and_six_of_the_adapter() -> None:
    """And attention's by half of the row; recomputing costs the layers' forward pass again."""
    shape = architecture_of(llama())
    adapter = plan_adapter(LoraConfig(), shape)
    weights = 8_030_261_248 - 128256 * 4096 - 65 * 4096
    plain = 4 * weights + 6 * adapter.parameters + 6 * 2048 * 4096 * 32
    assert flops_per_token(shape, adapter, replace(DEFAULT, recompute=False)) == plain
    again = 2 * (weights - 128256 * 4096) + 2 * adapter.parameters + 2 * 2048 * 4096 * 32
    assert flops_per_token(shape, adapter, DEFAULT) == plain + again


def test_an_adapter_on_experts_costs_the_gradient_of_their_weights() -> None:
    """2 operations more for each weight that a token passes, and the adapter's product once a micro-batch."""
    shape = architecture_of(MIXTRAL)
    plain, with_experts = (
        flops_per_token(shape, plan_adapter(LoraConfig(target_parameters=names), shape), DEFAULT)
        for names in ((), EXPERTS)
    )
    weights = 32 * 3 * 4096 * 14336
    product = 2 * 16 * 8 * weights / 4096
    assert with_experts == plain + 2 * 2 * weights + 4 * product


def test_an_adapter_on_experts_takes_a_copy_of_their_weights_and_its_gradient() -> None:
    """PEFT adds it to all of them: kept in each layer, or made again in one."""
    experts, stack = 8 * 3 * 4096 * 14336 * 2, 8 * 2 * 4096 * 14336 * 2
    for setting, layers in ((replace(DEFAULT, tokens=512), 1), (replace(DEFAULT, tokens=512, recompute=False), 32)):
        plain, found = memory(MIXTRAL, setting), memory(MIXTRAL, setting, LoraConfig(target_parameters=EXPERTS))
        standing = sum((found.adapter, found.gradients, found.optimizer)) - 16 * 13_631_488
        assert standing == 16 * 209_715_200
        expected = layers * experts + stack / 2 + standing
        assert found.total - plain.total == pytest.approx(expected, rel=0.03)


def test_the_best_published_speed_is_met_by_the_share_of_the_peak() -> None:
    """12,473 tokens a second for Llama-3-8B, rank 16, rows of 4,096, on an H100; the share is an assumption for all."""
    shape = architecture_of(llama())
    setting = replace(DEFAULT, recompute=False, row=4096)
    found = speed(shape, plan_adapter(LoraConfig(), shape), setting, find_gpu("H100"))
    assert found is not None
    assert found.tokens_per_s == pytest.approx(12_473, rel=0.06)


def test_making_four_bits_sixteen_costs_little_with_many_tokens() -> None:
    """A fixed time for each micro-batch: a few per cent of 4,096 tokens, much of 110."""
    shape, gpu = architecture_of(llama()), find_gpu("H100")
    adapter = plan_adapter(LoraConfig(), shape)
    slower = []
    for tokens in (4096, 110):
        full = speed(shape, adapter, replace(DEFAULT, tokens=tokens), gpu)
        four = speed(shape, adapter, replace(DEFAULT, tokens=tokens, quantization=Quantization.NF4), gpu)
        assert full is not None
        assert four is not None
        slower.append(full.tokens_per_s / four.tokens_per_s)
    assert 1.01 < slower[0] < 1.05
    assert slower[1] > 1.5


def test_llm_int8_is_as_slow_as_was_published() -> None:
    """2.4 times as long as 16 bits, and so never the fastest of what fits."""
    shape = architecture_of(llama())
    full, eight = (
        speed(shape, plan_adapter(LoraConfig(), shape), replace(DEFAULT, quantization=kind), find_gpu("A100 80"))
        for kind in (Quantization.NONE, Quantization.INT8)
    )
    assert full is not None
    assert eight is not None
    assert full.tokens_per_s / eight.tokens_per_s == pytest.approx(2.4)


@given(
    name=st.sampled_from(sorted(MODELS)),
    rank=st.integers(1, 1024),
    variant=st.sampled_from(Variant),
    quantization=st.sampled_from([q for q in Quantization if q is not Quantization.AUTO]),
    flags=st.tuples(*[st.booleans()] * 6),
)
def test_more_tokens_and_more_rank_never_take_less(
    name: str, rank: int, variant: Variant, quantization: Quantization, flags: tuple[bool, ...]
) -> None:
    """Whatever the model and the rest of the setting; every part is a number of bytes."""
    recompute, packs, fp32, dropout, cpu, experts = flags
    tokens = 64 * rank
    setting = Setting(
        quantization=quantization,
        recompute=recompute,
        tokens=tokens,
        row=min(tokens, 2048),
        packs=packs,
        fp32=fp32,
        dropout=dropout,
        cpu=cpu,
        dora=variant is Variant.DORA,
    )
    config = MODELS[name][0]
    stacks = experts and any(layer.stacks for layer in architecture_of(config).layers)
    lora = LoraConfig(rank=rank, variant=variant, target_parameters=EXPERTS if stacks else ())
    found = memory(config, setting, lora).total
    assert 0 < found <= memory(config, replace(setting, tokens=tokens + 64), lora).total
    assert found <= memory(config, setting, replace(lora, rank=rank + 1)).total
