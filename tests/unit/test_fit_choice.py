"""What fits which GPU, what the run as it is written would do there, and the fastest of what fits."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.fit_models import LLAMA_2_13B, MIXTRAL, MODELS, Config, llama

from lora_trainer.plan.adapter import plan_adapter
from lora_trainer.plan.choice import CHECKPOINTING_MODES, Fit, Load, Option, choose, recomputes, setting_of
from lora_trainer.plan.families import architecture_of
from lora_trainer.plan.limits import LARGEST_TOKEN_BUDGET, TOKEN_BUDGET
from lora_trainer.plan.memory import Setting, gpu_memory
from lora_trainer.plan.planning import OnGpu, on_gpu, option_on
from lora_trainer.plan.speed import flops_per_token, speed
from lora_trainer.spec.config import (
    ActivationCheckpointing,
    DeviceConfig,
    Init,
    Layers,
    LoraConfig,
    Merge,
    Optimizer,
    OutputConfig,
    Packing,
    Precision,
    Quantization,
    TrainConfig,
    TrainingConfig,
    Variant,
)
from lora_trainer.spec.gpus import KNOWN, Gpu, find_gpu
from lora_trainer.spec.manifest import RunOptions, train_config

GIB = 2**30
H100 = find_gpu("H100")
FULL = ActivationCheckpointing.FULL


def run(**changes: Any) -> TrainConfig:
    """A run with all defaults, but for the changes."""
    manifest = {
        "apiVersion": "lora-operator.io/v1alpha1",
        "kind": "LoRAFineTune",
        "metadata": {"name": "tone"},
        "spec": {
            "model": {"uri": "hf://a/b"},
            "dataset": {"uri": "hf://a/c"},
            "output": {"uri": "pvc://adapters/tone"},
        },
    }
    return replace(train_config(manifest, RunOptions(uid="u")), **changes)


def on(gpu: Gpu, config: TrainConfig | None = None, model: Config | None = None) -> OnGpu:
    """All options of a run on a GPU."""
    shape, config = architecture_of(model or llama()), config or run()
    adapter = plan_adapter(config.lora, shape)
    return on_gpu(config, shape, adapter, gpu, (Quantization.NONE, Quantization.NF4))


def option(gpu: Gpu, config: TrainConfig, quantization: Quantization, model: Config | None = None) -> Option:
    """One option of a run that recomputes."""
    shape = architecture_of(model or llama())
    adapter = plan_adapter(config.lora, shape)
    return option_on(config, shape, adapter, gpu, quantization=quantization, checkpointing=FULL)


@pytest.mark.parametrize(
    ("gpu", "wanted"),
    [
        ("T4", (Quantization.NF4, True)),
        ("L4", (Quantization.NONE, True)),
        ("RTX 4090", (Quantization.NONE, True)),
        ("A100 40", (Quantization.NONE, False)),
        ("H100", (Quantization.NONE, False)),
    ],
)
def test_llama_3_8b_fits_each_gpu_in_some_way(gpu: str, wanted: tuple[Quantization, bool]) -> None:
    """A card of 24 GB holds it in bf16; NF4 comes where memory demands it, and not where it saves recomputing."""
    best = on(find_gpu(gpu)).default
    assert best.fit is Fit.FITS
    assert (best.quantization, best.recompute) == wanted


def test_the_run_as_it_is_written_is_among_the_options() -> None:
    """What it leaves open is chosen; what it names is kept, where it does not fit either."""
    found = on(H100).default
    assert (found.quantization, found.recompute, found.fit) == (Quantization.NONE, False, Fit.FITS)
    smaller = replace(found, tokens=4096, peak_bytes=0, spare_bytes=0, tokens_per_s=0.0)
    assert smaller in [replace(one, peak_bytes=0, spare_bytes=0, tokens_per_s=0.0) for one in on(H100).options]
    full = run(training=TrainingConfig(activation_checkpointing=ActivationCheckpointing.FULL))
    assert on(H100, full).default.recompute
    whole = replace(full, quantization=Quantization.NONE)
    assert (on(find_gpu("T4"), whole).default.fit, on(find_gpu("T4"), full).default.fit) == (Fit.TOO_LARGE, Fit.FITS)


def test_selective_recomputation_lies_between_none_and_full() -> None:
    """In memory and time, for every model; Auto takes it where those of attention fit alone."""
    for config, _ in MODELS.values():
        shape = architecture_of(config)
        adapter = plan_adapter(run().lora, shape)
        settings = [
            setting_of(run(), shape, H100, quantization=Quantization.NONE, checkpointing=checkpointing)
            for checkpointing in CHECKPOINTING_MODES
        ]
        taken = [gpu_memory(shape, adapter, setting).total for setting in settings]
        assert taken == sorted(taken, reverse=True)
        done = [flops_per_token(shape, adapter, setting) for setting in settings]
        assert done == sorted(done)
        assert len(set(done)) == len(done)
    found = choose(
        run(), architecture_of(llama()), plan_adapter(run().lora, architecture_of(llama())), find_gpu("30.0GiB")
    )
    assert found.setting.checkpointing is ActivationCheckpointing.SELECTIVE


def test_without_a_device_a_large_model_recomputes() -> None:
    """From a billion parameters on, on a GPU; as asked where it is asked for."""
    assert not recomputes(run(), architecture_of(MODELS["SmolLM2-135M"][0]).parameters, cpu=False)
    assert recomputes(run(), architecture_of(llama()).parameters, cpu=False)
    assert not recomputes(run(), architecture_of(llama()).parameters, cpu=True)
    full = run(training=TrainingConfig(activation_checkpointing=ActivationCheckpointing.FULL))
    assert recomputes(full, architecture_of(MODELS["SmolLM2-135M"][0]).parameters, cpu=True)


@pytest.mark.parametrize(
    ("training", "gpus", "tokens"),
    [
        (TrainingConfig(), 1, 4096),
        (TrainingConfig(max_sequence_length=8192), 1, 8192),
        (TrainingConfig(micro_batch_size=4), 1, 4 * 2048),
        (TrainingConfig(micro_batch_size=4, effective_batch_size=4), 4, 2048),
        (TrainingConfig(effective_batch_size=1), 1, 2048),
        (TrainingConfig(), 0, 2048),
        (TrainingConfig(max_sequence_length=512), 0, 768),
    ],
)
def test_a_micro_batch_has_the_trainers_budget(training: TrainingConfig, gpus: int, tokens: int) -> None:
    """4,096 tokens, 768 on a CPU; a longer row comes alone; never more than a step's rows of one process."""
    config = run(training=training, device=DeviceConfig(gpus=gpus))
    found = setting_of(
        config, architecture_of(llama()), H100 if gpus else None, quantization=Quantization.NONE, checkpointing=FULL
    )
    assert found.tokens == tokens


def test_a_setting_follows_the_run() -> None:
    """Each field that costs memory."""
    plain = setting_of(run(), architecture_of(llama()), H100, quantization=Quantization.NONE, checkpointing=FULL)
    assert (plain.packs, plain.fp32, plain.dropout, plain.dora) == (True, False, False, False)
    config = run(
        lora=LoraConfig(dropout=0.1, variant=Variant.DORA),
        training=TrainingConfig(
            precision=Precision.FP32, packing=Packing.DISABLED, optimizer=Optimizer.PAGED_ADAMW_8BIT
        ),
    )
    found = setting_of(config, architecture_of(llama()), H100, quantization=Quantization.NONE, checkpointing=FULL)
    assert (found.packs, found.fp32, found.dropout, found.dora) == (False, True, True, True)
    assert found.optimizer is Optimizer.ADAMW_8BIT
    assert not setting_of(
        run(), architecture_of(llama()), find_gpu("T4"), quantization=Quantization.NONE, checkpointing=FULL
    ).packs


@pytest.mark.parametrize(
    ("gpu", "config", "tokens"),
    [
        ("T4", run(), 2048),
        ("L4", run(), 4096),
        ("A100 80", run(), 8192),
        ("H200", run(), 16384),
        ("B200", run(training=TrainingConfig(effective_batch_size=4)), 4 * 2048),
        ("B200", run(training=TrainingConfig(micro_batch_size=1)), 2048),
        ("H200", run(training=TrainingConfig(max_sequence_length=32768)), 32768),
        ("B200", run(training=TrainingConfig(activation_checkpointing=FULL, effective_batch_size=64)), 16384),
    ],
)
def test_a_micro_batch_is_as_large_as_fits(gpu: str, config: TrainConfig, tokens: int) -> None:
    """Of Llama-3-8B, never more than a step's rows, and as many rows as the run asks for."""
    shape = architecture_of(llama())
    found = choose(config, shape, plan_adapter(config.lora, shape), find_gpu(gpu))
    assert (found.option.fit, found.setting.tokens) == (Fit.FITS, tokens)


@pytest.mark.parametrize(
    ("gpu", "row", "config"),
    [
        ("RTX 4090", 9000, {"quantization": Quantization.NONE}),
        ("L4", 6000, {}),
        ("T4", 9000, {"quantization": Quantization.NF4}),
    ],
)
def test_a_long_row_is_tried_alone_before_a_run_is_refused_or_quantized(
    gpu: str, row: int, config: dict[str, Any]
) -> None:
    """However its length lies between the halves of the largest micro-batch."""
    shape = architecture_of(llama())
    long = run(training=TrainingConfig(max_sequence_length=row), **config)
    found = choose(long, shape, plan_adapter(long.lora, shape), find_gpu(gpu))
    alone = config.get("quantization", Quantization.NONE)
    assert (found.option.fit, found.setting.tokens, found.setting.quantization) == (Fit.FITS, row, alone)


def test_a_divided_base_gets_no_larger_micro_batch_than_without_a_plan() -> None:
    """Its processes cannot halve it together; a number of rows that is asked for counts."""
    shape = architecture_of(LLAMA_2_13B)
    device = DeviceConfig(gpus=8)

    def tokens(**training: Any) -> int:
        config = run(training=TrainingConfig(effective_batch_size=64, **training), device=device)
        found = choose(config, shape, plan_adapter(config.lora, shape), find_gpu("T4"))
        assert found.setting.processes == 8
        return found.setting.tokens

    assert tokens() == TOKEN_BUDGET
    assert tokens(micro_batch_size=4) == 4 * 2048


@pytest.mark.parametrize("gpu", KNOWN, ids=lambda gpu: gpu.name)
@pytest.mark.parametrize("quantization", [Quantization.NONE, Quantization.NF4])
def test_more_tokens_than_the_largest_micro_batch_would_save_no_hundredth(gpu: Gpu, quantization: Quantization) -> None:
    """By the model's time, which the bound rests on; half of it costs more than that on some GPU."""
    shape = architecture_of(llama())
    adapter = plan_adapter(run().lora, shape)

    def tokens_per_s(tokens: int) -> float:
        setting = Setting(quantization=quantization, recompute=False, tokens=tokens, row=2048)
        found = speed(shape, adapter, setting, gpu)
        assert found is not None
        return found.tokens_per_s

    assert tokens_per_s(2 * LARGEST_TOKEN_BUDGET) / tokens_per_s(LARGEST_TOKEN_BUDGET) < 1.01
    if gpu.name == "B200" and quantization is Quantization.NF4:
        assert tokens_per_s(LARGEST_TOKEN_BUDGET // 2) / tokens_per_s(LARGEST_TOKEN_BUDGET // 4) > 1.01


def test_what_the_trainer_halves_is_no_refusal() -> None:
    """NF4 without recomputation on 24 GiB: not 4,096 tokens, but a row alone."""
    kept = next(o for o in on(find_gpu("24.0GiB")).options if o.quantization is Quantization.NF4 and not o.recompute)
    assert kept.fit is Fit.HALVED
    assert kept.tokens == 2048
    assert kept.spare_bytes < 0


@pytest.mark.parametrize(
    ("gpu", "config", "model", "quantization", "refusal"),
    [
        ("T4", run(training=TrainingConfig(precision=Precision.BF16)), llama(), Quantization.NF4, "no native bf16"),
        ("H100", run(), MIXTRAL, Quantization.NF4, "experts of a mixture"),
        ("H100", run(lora=LoraConfig(init=Init.PISSA)), llama(), Quantization.NF4, "lora.init is PiSSA"),
    ],
)
def test_what_the_trainer_refuses_is_no_option(
    gpu: str, config: TrainConfig, model: Config, quantization: Quantization, refusal: str
) -> None:
    """With its reason."""
    found = option(find_gpu(gpu), config, quantization, model)
    assert found.fit is Fit.REFUSED
    assert refusal in found.refusal


def test_a_base_that_fits_no_gpu_is_divided_over_those_of_the_run() -> None:
    """16 GB of weights on four T4; on one card that holds it whole, it stays whole."""
    alone = option(find_gpu("T4"), run(), Quantization.NONE)
    four = option(find_gpu("T4"), run(device=DeviceConfig(gpus=4)), Quantization.NONE)
    assert (alone.divided, alone.fit) == (False, Fit.TOO_LARGE)
    assert (four.divided, four.fit) == (True, Fit.FITS)
    assert four.tokens_per_s is not None
    assert not option(H100, run(device=DeviceConfig(gpus=4)), Quantization.NONE).divided


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, (Quantization.NONE, True)),
        ({"output": OutputConfig(uri="pvc://a/b", merge=Merge.MERGED)}, (Quantization.NF4, False)),
        ({"lora": LoraConfig(init=Init.PISSA)}, (Quantization.NONE, False)),
        (
            {"lora": LoraConfig(layers=Layers.ATTENTION, target_parameters=("mlp.down_proj.weight",))},
            (Quantization.NF4, False),
        ),
        ({"device": DeviceConfig(gpus=1)}, (Quantization.NF4, False)),
    ],
    ids=["an adapter", "a merged model", "PiSSA", "parameters", "one GPU"],
)
def test_a_base_is_divided_before_it_is_quantized(changes: dict[str, Any], wanted: tuple[Quantization, bool]) -> None:
    """Where the trainer can: not with a merge, PiSSA or parameters outside of linear modules."""
    config = run(**{"device": DeviceConfig(gpus=4), **changes})
    shape = architecture_of(llama())
    found = choose(config, shape, plan_adapter(config.lora, shape), find_gpu("T4"))
    assert (found.setting.quantization, found.option.divided) == wanted


@pytest.mark.parametrize(
    ("gpus", "changes", "wanted"),
    [
        (2, {}, (Quantization.NF4, 2, Fit.FITS)),
        (8, {}, (Quantization.NONE, 8, Fit.FITS)),
        (2, {"quantization": Quantization.FP4}, (Quantization.FP4, 2, Fit.FITS)),
        (2, {"quantization": Quantization.INT8}, (Quantization.INT8, 1, Fit.TOO_LARGE)),
        (2, {"lora": LoraConfig(variant=Variant.DORA)}, (Quantization.NF4, 1, Fit.TOO_LARGE)),
    ],
)
def test_a_base_in_4_bits_is_divided_where_nothing_else_fits(
    gpus: int, changes: dict[str, Any], wanted: tuple[Quantization, int, Fit]
) -> None:
    """70 billion parameters on GPUs of 48 GB; LLM.int8() and DoRA go with a whole base alone."""
    shape = architecture_of(
        llama(hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64)
    )
    config = run(**{"device": DeviceConfig(gpus=gpus), **changes})
    found = choose(config, shape, plan_adapter(config.lora, shape), find_gpu("L40S")).option
    assert (found.quantization, found.processes, found.fit) == wanted


def test_a_base_that_fits_whole_is_not_divided_for_speed() -> None:
    """Divided over eight L4 it could keep activations; how fast they reach each other, nothing tells."""
    shape, config = architecture_of(llama()), run(device=DeviceConfig(gpus=8))
    adapter = plan_adapter(config.lora, shape)
    found = choose(config, shape, adapter, find_gpu("L4"))
    assert (found.option.divided, found.setting.recompute) == (False, True)
    divided = gpu_memory(shape, adapter, replace(found.setting, recompute=False, tokens=2048, processes=8))
    assert divided.total < 0.9 * find_gpu("L4").memory_bytes


@pytest.mark.parametrize(
    ("config", "model"),
    [
        (run(lora=LoraConfig(init=Init.PISSA)), llama()),
        (run(lora=LoraConfig(init=Init.OLORA)), llama()),
        (run(lora=LoraConfig(modules_to_save=("down_proj",))), llama()),
        (run(), MIXTRAL),
        (run(), llama(model_type="mamba")),
    ],
    ids=["PiSSA", "OLoRA", "a module trained whole", "a mixture", "Mamba"],
)
def test_auto_quantizes_nothing_that_the_trainer_would_refuse(config: TrainConfig, model: Config) -> None:
    """However little memory there is: then it does not fit."""
    shape = architecture_of(model)
    found = choose(config, shape, plan_adapter(config.lora, shape), find_gpu("8.0GiB"))
    assert found.setting.quantization is Quantization.NONE
    assert found.option.fit is not Fit.FITS


def test_rows_that_are_known_to_be_short_take_less() -> None:
    """The longest row is the least of a micro-batch; all of its tokens may be learned, few as they are in the mean."""
    shape, config = architecture_of(llama(final_logit_softcapping=30)), run()
    adapter = plan_adapter(config.lora, shape)
    plain = choose(config, shape, adapter, H100)
    few = choose(config, shape, adapter, H100, load=Load(longest=300, target_share=0.2))
    assert few == choose(config, shape, adapter, H100, load=Load(longest=300))
    short = choose(config, shape, adapter, H100, load=Load(longest=10))
    assert short.memory.total < plain.memory.total
    tight = choose(config, shape, adapter, find_gpu("L4"), load=Load(longest=300, target_share=0.2))
    assert 300 <= tight.setting.tokens < 4096
    assert not tight.setting.recompute
    assert choose(config, shape, adapter, H100, load=Load(tokens=2048)).setting.tokens == 2048


def test_a_guess_never_says_that_a_run_does_not_fit_where_it_may() -> None:
    """An unknown family of that size on 16 GiB: unsure, where Llama does not fit."""
    zebra = llama(model_type="zebra")
    gpu = find_gpu("16.0GiB")
    assert option(gpu, run(), Quantization.NONE).fit is Fit.TOO_LARGE
    assert option(gpu, run(), Quantization.NONE, zebra).fit is Fit.UNSURE
    assert option(find_gpu("4.0GiB"), run(), Quantization.NONE, zebra).fit is Fit.TOO_LARGE
    assert option(find_gpu("22.0GiB"), run(), Quantization.NONE).fit is Fit.FITS
    assert option(find_gpu("22.0GiB"), run(), Quantization.NONE, zebra).fit is Fit.UNSURE


@given(
    name=st.sampled_from(sorted(MODELS)),
    memory=st.tuples(st.integers(GIB, 200 * GIB), st.integers(0, 100 * GIB)),
    known=st.sampled_from([None, *KNOWN]),
    rank=st.integers(1, 512),
    shaped=st.tuples(st.integers(8, 32768), st.sampled_from([1, 1, 2, 8])),
)
def test_more_memory_never_makes_a_slower_choice(
    name: str, memory: tuple[int, int], known: Gpu | None, rank: int, shaped: tuple[int, int]
) -> None:
    """On the same device, of known speed or not: what fitted still fits. Nothing is quantized then that was not, nor
    divided, and where the base is held alike, nothing is slower."""
    shape, (longest, gpus) = architecture_of(MODELS[name][0]), shaped
    training = TrainingConfig(max_sequence_length=longest)
    config = run(lora=LoraConfig(rank=rank), training=training, device=DeviceConfig(gpus=gpus))
    adapter = plan_adapter(config.lora, shape)
    small = replace(known or find_gpu("1.0GiB"), memory_bytes=memory[0])
    few = choose(config, shape, adapter, small)
    more = choose(config, shape, adapter, replace(small, memory_bytes=sum(memory)))
    if few.option.fit is not Fit.FITS:
        return
    assert more.option.fit is Fit.FITS
    held = [(one.setting.quantization is not Quantization.NONE, one.option.divided) for one in (few, more)]
    assert held[1] <= held[0]
    if held[1] == held[0]:
        assert (more.option.tokens_per_s or 0) >= (few.option.tokens_per_s or 0)
