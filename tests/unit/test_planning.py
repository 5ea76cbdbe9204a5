"""The plan of a run: its reason, its alternatives, what would make it fit, and the configuration that it settles."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.fit_models import GEMMA_2, LLAMA_2_13B, MIXTRAL, MODELS, PHI_MOE, Config, llama
from tests.unit.test_fit_choice import run

from lora_trainer.plan.adapter import plan_adapter
from lora_trainer.plan.architecture import GUESSED
from lora_trainer.plan.choice import refusal
from lora_trainer.plan.families import architecture_of, counted
from lora_trainer.plan.limits import FIT_SHARE, TOKEN_BUDGET
from lora_trainer.plan.memory import Setting, gpu_memory
from lora_trainer.plan.planning import plan_of, room_bytes, settled
from lora_trainer.spec.config import (
    ActivationCheckpointing,
    DeviceConfig,
    Init,
    LoraConfig,
    Planned,
    Precision,
    Quantization,
    TrainConfig,
    TrainingConfig,
)
from lora_trainer.spec.gpus import KNOWN, Gpu, find_gpu, gib, least_memory
from lora_trainer.spec.run_plan import RunPlan

GIB = 2**30
FULL = TrainingConfig(activation_checkpointing=ActivationCheckpointing.FULL)
LONG = TrainingConfig(max_sequence_length=65536)
KEPT = TrainingConfig(activation_checkpointing=ActivationCheckpointing.NONE)


def plan(gpu: str | None, config: TrainConfig | None = None, model: Config | None = None, **known: Any) -> RunPlan:
    """The plan of a run on a GPU, or without one that is known."""
    config, shape = config or run(), architecture_of(model or llama())
    return plan_of(config, shape, plan_adapter(config.lora, shape), gpu=find_gpu(gpu) if gpu else None, **known)


WHY = [
    ("L4", run(), "the whole base with recomputed activations and 4,096 tokens", "; the whole base fits"),
    ("A100 40", run(), "the whole base with kept activations and 2,048 tokens", "; the whole base fits"),
    ("T4", run(), "NF4 with recomputed MLPs and 2,048 tokens", " GiB at least"),
    ("H200", run(), "the whole base with kept activations and 16,384 tokens", "; the whole base fits"),
    ("H100", run(lora=LoraConfig(init=Init.PISSA)), "the whole base with kept", "; this run cannot be quantized"),
    ("H100", run(quantization=Quantization.FP4), "FP4 with kept", "; quantization is FP4, as the run asks"),
    ("T4", run(device=DeviceConfig(gpus=4)), "the whole base, divided over 4 GPUs, with", "; the whole base fits"),
]


@pytest.mark.parametrize(
    ("gpu", "gpus", "nodes", "over"), [("T4", 4, 2, 4), ("T4", 2, 4, 8), ("T4", 1, 8, 8), ("H100", 4, 2, None)]
)
def test_a_base_is_divided_within_a_node_where_one_holds_it(gpu: str, gpus: int, nodes: int, over: int | None) -> None:
    """26 GB of weights: four T4 hold them, two do not."""
    config = run(device=DeviceConfig(gpus=gpus, nodes=nodes))
    found = plan(gpu, config, LLAMA_2_13B)
    assert found.fits
    assert (found.sharded, found.sharded_over) == (over is not None, over)
    assert over is None or f"divided over {over} GPUs" in found.reason


def test_a_divided_mixture_is_read_through_a_copy_of_its_experts() -> None:
    """One at a time in each pod; what is not divided is read straight to the GPU, and other weights stay in files."""
    mixture = plan("A100 80", run(device=DeviceConfig(gpus=8)), MIXTRAL)
    dense = plan("T4", run(device=DeviceConfig(gpus=8)))
    assert mixture.sharded
    assert mixture.pod_memory_bytes - 2 * architecture_of(MIXTRAL).experts == pytest.approx(8 * 4e9, rel=0.1)
    assert dense.sharded
    assert dense.pod_memory_bytes == pytest.approx(8 * 4e9, rel=0.1)
    whole = plan("B200", run(device=DeviceConfig(gpus=8)), MIXTRAL)
    assert not whole.sharded
    assert whole.pod_memory_bytes == pytest.approx(8 * 4e9, rel=0.1)


@pytest.mark.parametrize(("gpu", "config", "way", "why"), WHY, ids=[f"{gpu} {way}" for gpu, _, way, _ in WHY])
def test_a_plan_says_why(gpu: str, config: TrainConfig, way: str, why: str) -> None:
    """What is taken, with how much of what there is, and what decided."""
    found = plan(gpu, config)
    assert found.fits
    assert found.reason.startswith(way)
    assert found.reason.endswith(why)
    assert f"{found.peak_bytes / GIB:.1f} GiB of the" in found.reason


def test_the_parts_of_a_plan_are_all_of_its_memory() -> None:
    """So that a table of them adds up."""
    found = plan("L4", tokens=10_000_000)
    parts = found.weight_bytes + found.adapter_bytes + found.activation_bytes + found.other_bytes
    assert parts == found.peak_bytes
    assert (found.trainable_parameters, found.adapter_file_bytes) == (41_943_040, 4 * 41_943_040)
    assert (found.device, found.device_bytes) == ("L4", find_gpu("L4").memory_bytes)
    assert found.tokens_per_second is not None
    assert found.seconds == round(10_000_000 / found.tokens_per_second)


def test_a_plans_time_follows_epochs_steps_and_gpus() -> None:
    """Where the tokens are known; steps need the tokens of a row, and prices the operator's setting."""
    one = plan("L4", tokens=1_000_000).seconds
    assert one is not None
    twice = plan("L4", run(training=TrainingConfig(epochs=2.0)), tokens=1_000_000).seconds
    assert twice == pytest.approx(2 * one, abs=1)
    steps = run(training=TrainingConfig(epochs=None, max_steps=100))
    assert plan("L4", steps, tokens=1_000_000).seconds is None
    hundred = plan("L4", steps, tokens=1_000_000, rows=3200).seconds
    assert hundred == pytest.approx(one / 2, abs=1)
    assert plan("24GiB", tokens=1_000_000).seconds is None
    assert plan("L4").seconds is None
    priced = DeviceConfig(gpus=2, nodes=2, gpu="L4", gpu_memory_bytes=find_gpu("L4").memory_bytes, gpu_price=1.5)
    found = plan(None, run(device=priced), tokens=100_000_000)
    assert found.seconds is not None
    assert found.price == round(4 * 1.5 * found.seconds / 3600, 2)
    assert found.price_per_hour == 6.0
    assert plan("L4", tokens=1_000_000).price is None
    # Of what speed is not known, an hour's price is.
    named = DeviceConfig(gpus=2, gpu="nvidia.com/gpu", gpu_memory_bytes=22 * GIB, gpu_price=1.5)
    found = plan(None, run(device=named), tokens=100_000_000)
    assert (found.price, found.price_per_hour) == (None, 3.0)


def test_alternatives_are_the_other_quantizations_that_the_trainer_would_take() -> None:
    """Each in the fastest way that fits; none that it would refuse."""
    found = plan("L4")
    assert [(one.change, one.fits) for one in found.alternatives] == [
        ("quantization: NF4", True),
        ("quantization: INT8", True),
    ]
    assert found.alternatives[0].peak_bytes == plan("L4", run(quantization=Quantization.NF4)).peak_bytes
    asked = plan("H100", run(quantization=Quantization.FP4))
    assert [one.change.removeprefix("quantization: ") for one in asked.alternatives] == ["None", "NF4", "INT8"]
    assert plan("H200", None, MIXTRAL).alternatives == ()


def test_between_nine_tenths_and_all_of_the_memory_a_run_is_tried() -> None:
    """The tenth is for fragments: an estimate does not know how large they become."""
    needed = plan("8GiB").peak_bytes
    shape, config = architecture_of(llama()), run()
    adapter = plan_adapter(config.lora, shape)
    fits = [
        plan_of(config, shape, adapter, gpu=Gpu(name="x", memory_bytes=round(needed / share))).fits
        for share in (0.89, 0.91, 0.99, 1.01)
    ]
    assert fits == [True, None, None, False]


@pytest.mark.parametrize(("least", "sold", "fits"), [(0.92, 1.001, None), (0.92, 0.999, False), (1.12, 1.2, True)])
def test_a_size_refuses_only_what_is_larger(least: float, sold: float, fits: bool | None) -> None:
    """Where a run names the size that a GPU is sold with, the driver has some of it, or none: who knows."""
    needed = plan("8GiB").peak_bytes
    sized = DeviceConfig(gpu="9 GiB", gpu_memory_bytes=round(needed * least), gpu_sold_bytes=round(needed * sold))
    found = plan(None, run(device=sized))
    assert found.fits is fits
    assert ("and a GPU of 9 GiB has at most" in found.reason) is (fits is False)


@pytest.mark.parametrize("model", [llama(final_logit_softcapping=30), llama()], ids=["all logits at once", "some"])
def test_few_learned_tokens_are_no_reason_to_reckon_with_little_and_one_not_to_refuse(model: Config) -> None:
    """A micro-batch may be one of answers alone: so an estimate is never too low. And another one may be of prompts."""
    known: dict[str, Any] = {"tokens": 100_000, "rows": 1000, "target_share": 0.1, "longest": 2000}
    every = plan("8GiB", None, model)
    few = plan("8GiB", None, model, **known | {"longest": None})
    assert few.peak_bytes == every.peak_bytes
    shape, config = architecture_of(model), run()
    adapter = plan_adapter(config.lora, shape)
    row = plan("8GiB", None, model, **known)
    taken = Setting(quantization=row.quantization, recompute=True, tokens=row.micro_batch_tokens, row=2000)
    least = gpu_memory(shape, adapter, replace(taken, target_share=0.1 * 100 / 2000)).total
    assert least < row.peak_bytes
    for memory, fits in ((least - 1, False), (least, None), (row.peak_bytes - 1, None)):
        assert plan_of(config, shape, adapter, gpu=Gpu(name="x", memory_bytes=memory), **known).fits is fits


def test_a_guess_is_never_a_reason_to_refuse() -> None:
    """It says by how much it may be off, and takes least."""
    found = plan("4GiB", None, llama(model_type="zebra"))
    assert (found.fits, found.spread) == (None, 0.3)
    assert "takes least" in found.reason
    assert "give or take 30%" in found.reason
    assert found.quantization is Quantization.NF4


def test_a_mixture_whose_weights_alone_are_more_than_the_device_does_not_fit() -> None:
    """They are counted, and only the rest of the estimate is uncertain: Mixtral's 93 GB on an H100."""
    found = plan("H100", None, MIXTRAL)
    assert found.weight_bytes > find_gpu("H100").memory_bytes
    assert (found.fits, found.spread) == (False, 0.15)
    assert found.reason.startswith("the run needs at least 88.9 GiB of a GPU's memory, and H100 has 79.6 GiB: it would")
    assert plan("H200", None, MIXTRAL).fits is True
    assert plan("94GiB", None, MIXTRAL).fits is None


def test_what_files_hold_and_nothing_explains_is_no_reason_to_refuse() -> None:
    """Of a model that sees, or that foretells several tokens, Transformers may leave it in the files."""
    lora = LoraConfig(layers=None, target_modules=("q_proj",), rank=4)
    config, shape = run(quantization=Quantization.NONE, lora=lora), architecture_of(llama())
    held = counted(shape, round(shape.parameters / 0.92))
    gpu = Gpu(name="x", memory_bytes=2 * held.parameters - 1)
    found = plan_of(config, held, plan_adapter(lora, held), gpu=gpu, longest=64, micro_batch_tokens=64)
    assert found.weight_bytes > gpu.memory_bytes
    assert (found.fits, round(found.spread, 2)) == (None, 0.24)


@given(name=st.sampled_from(sorted(MODELS)), share=st.floats(0.5, 0.999), rank=st.sampled_from([1, 16, 256]))
def test_known_weights_that_are_more_than_the_device_never_fit(name: str, share: float, rank: int) -> None:
    """Whatever else of the estimate is uncertain."""
    config, shape = run(quantization=Quantization.NONE, lora=LoraConfig(rank=rank)), architecture_of(MODELS[name][0])
    gpu = Gpu(name="x", memory_bytes=int(2 * shape.parameters * share))
    found = plan_of(config, shape, plan_adapter(config.lora, shape), gpu=gpu)
    assert found.weight_bytes > gpu.memory_bytes
    assert found.fits is (None if found.spread >= GUESSED else False)


def test_a_mixture_that_is_not_known_never_fits_before_its_files_are_counted() -> None:
    """Phi-3.5-MoE by its config.json alone: the layers that are assumed have a tenth of its parameters."""
    config, shape = run(), architecture_of(PHI_MOE)
    adapter = plan_adapter(config.lora, shape)
    for gpu in map(find_gpu, ("A100 40", "B200")):
        found = plan_of(config, shape, adapter, gpu=gpu)
        assert found.fits is None
        assert f"GiB without its experts of the {gib(FIT_SHARE * gpu.memory_bytes)}" in found.reason
        assert found.reason.endswith(": it may not fit")
    files = counted(shape, 41_872_527_360)
    assert plan_of(config, files, adapter, gpu=find_gpu("A100 40")).fits is None
    assert plan_of(config, files, adapter, gpu=find_gpu("B200")).fits is True


def test_what_the_trainer_refuses_is_left_to_it() -> None:
    """It has the right reason for it, and this is none of memory."""
    found = plan("T4", run(training=TrainingConfig(precision=Precision.BF16)))
    assert found.fits is None
    assert found.reason.startswith("training.precision is BF16: T4 has no native bf16; use Auto or FP16")


T4 = DeviceConfig(gpu="Tesla-T4", gpu_memory_bytes=find_gpu("T4").memory_bytes)


@pytest.mark.parametrize(
    ("config", "model", "why"),
    [
        (run(training=TrainingConfig(precision=Precision.BF16), device=T4), llama(), "training.precision is BF16: T4"),
        (run(quantization=Quantization.INT8), MIXTRAL, "quantization is INT8: 97% of the model's weights are experts"),
        (run(quantization=Quantization.NF4, device=DeviceConfig(gpus=0)), MIXTRAL, "quantization is NF4: 97%"),
        (run(quantization=Quantization.NF4, lora=LoraConfig(init=Init.OLORA)), llama(), "lora.init is OLoRA: it goes"),
        (run(training=TrainingConfig(precision=Precision.BF16)), llama(), ""),
        (run(device=T4), llama(), ""),
        (run(), MIXTRAL, ""),
        (run(lora=LoraConfig(init=Init.OLORA)), llama(), ""),
    ],
)
def test_what_the_trainer_would_refuse_is_known_before(config: TrainConfig, model: Config, why: str) -> None:
    """Whatever the memory: with field, value, rule and remedy; nothing is refused that Auto can go around."""
    found = refusal(config, architecture_of(model))
    assert found.startswith(why)
    assert bool(found) is bool(why)


def test_a_base_in_8_bits_is_whole_on_each_gpu() -> None:
    """As large as on one alone, but for NCCL's buffers: it is refused for memory alone, with what divides it."""
    model, two, int8 = MODELS["Llama-2-13B"][0], DeviceConfig(gpus=2), Quantization.INT8
    one = plan("8GiB", run(quantization=int8), model)
    needed = (one.peak_bytes + 700_000_000) / 0.9 / GIB
    assert plan(f"{needed + 0.1:.1f}GiB", run(quantization=int8, device=two), model).fits
    assert plan(f"{needed * 0.95:.1f}GiB", run(quantization=int8, device=two), model).fits is None
    eight = plan("9.5GiB", run(quantization=int8, device=DeviceConfig(gpus=8)), model)
    assert eight.fits is False
    assert "of a GPU's memory, each with the quantized base" in eight.reason
    assert "quantization: Auto (" in eight.reason
    in_4_bits = plan("9.5GiB", run(quantization=Quantization.NF4, device=DeviceConfig(gpus=8)), model)
    assert (in_4_bits.fits, in_4_bits.sharded_over) == (True, 8)


def test_without_a_known_gpu_nothing_is_settled() -> None:
    """The plan is for the run as a large model is trained, and says how to know before."""
    config = run()
    found = plan(None, config)
    assert (found.device, found.device_bytes, found.fits, found.quantization) == (None, None, None, Quantization.AUTO)
    assert found.activation_checkpointing
    assert "set resources.gpuMinMemoryGiB or resources.gpuProducts" in found.reason
    assert found.reason.endswith("where nodes have the labels of GPU feature discovery")
    assert settled(config, found) is config


@pytest.mark.parametrize(
    ("changes", "quantization", "after"),
    [
        ({"num_experts": 128}, Quantization.NONE, Quantization.NONE),
        ({"n_routed_experts": 64}, Quantization.NONE, Quantization.NONE),
        ({"num_local_experts": 16}, Quantization.NONE, Quantization.NONE),
        ({"num_experts": None}, Quantization.NF4, Quantization.AUTO),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_of_a_guess_nothing_is_quantized_before_the_training_sees_it(
    changes: Config, quantization: Quantization, after: Quantization
) -> None:
    """It refuses a mixture's experts in 4 bits, for good; what may be quantized it quantizes by itself."""
    model = llama(model_type="zebra", num_hidden_layers=140, **changes)
    seeing = {"model_type": "zebra_vl", "text_config": model, "vision_config": {}}
    for one in (model, seeing):
        found = plan("H100", None, one)
        assert (found.quantization, settled(run(), found).quantization) == (quantization, after)
        kept = settled(run(), found).planned
        assert kept is not None
        assert kept.device == "H100"


def test_a_run_on_a_cpu_has_the_whole_base() -> None:
    """Whatever the memory; what is asked for is kept."""
    on_cpu = run(device=DeviceConfig(gpus=0))
    found = plan(None, on_cpu, MODELS["SmolLM2-135M"][0])
    assert (found.device, found.device_bytes, found.quantization) == ("cpu", None, Quantization.NONE)
    assert found.peak_bytes == found.pod_memory_bytes
    assert settled(on_cpu, found).quantization is Quantization.NONE
    asked = plan(None, replace(on_cpu, quantization=Quantization.NF4), MODELS["SmolLM2-135M"][0])
    assert asked.quantization is Quantization.NF4
    assert "as asked for" in asked.reason


def test_a_plan_settles_auto_and_nothing_else() -> None:
    """What was chosen stays beside the configuration, for the trainer to follow; settling again changes nothing."""
    config = run()
    found = plan("T4", config)
    once = settled(config, found)
    assert once.quantization is Quantization.NF4
    assert once.training == config.training
    assert once.planned == Planned(
        device="T4",
        device_bytes=find_gpu("T4").memory_bytes,
        activation_checkpointing=True,
        selective_checkpointing=True,
        micro_batch_tokens=2048,
        peak_bytes=found.peak_bytes,
        room_bytes=found.peak_bytes,
    )
    assert settled(once, found) == once
    assert TrainConfig.from_json(once.to_json()) == once
    assert room_bytes(replace(found, micro_batch_tokens=4 * TOKEN_BUDGET, activation_bytes=2**30)) == (
        found.peak_bytes - 3 * 2**28
    )
    asked = run(quantization=Quantization.INT8)
    assert settled(asked, plan("T4", asked)).quantization is Quantization.INT8
    assert settled(asked, found).quantization is Quantization.INT8


@given(
    name=st.sampled_from(sorted(MODELS)),
    gpu=st.sampled_from(KNOWN) | st.builds(Gpu, name=st.just("x"), memory_bytes=st.integers(1, 2**42)),
    quantization=st.sampled_from(Quantization),
    checkpointing=st.sampled_from(ActivationCheckpointing),
    known=st.tuples(st.none() | st.integers(1, 10**9), st.floats(0, 1), st.none() | st.integers(0, 10**6)),
)
def test_every_run_has_a_plan(
    name: str,
    gpu: Gpu,
    quantization: Quantization,
    checkpointing: ActivationCheckpointing,
    known: tuple[int | None, float, int | None],
) -> None:
    """With a sentence, positive sizes, and a choice among what was left open."""
    tokens, learned, longest = known
    config = run(quantization=quantization, training=TrainingConfig(activation_checkpointing=checkpointing))
    shape = architecture_of(MODELS[name][0])
    adapter = plan_adapter(config.lora, shape)
    found = plan_of(config, shape, adapter, tokens=tokens, target_share=learned, longest=longest, gpu=gpu)
    assert found.reason
    assert min(found.peak_bytes, found.weight_bytes, found.activation_bytes, found.pod_memory_bytes) > 0
    assert len(found.alternatives) <= 3
    if quantization is Quantization.AUTO:
        assert found.quantization in {Quantization.NONE, Quantization.NF4}
    else:
        assert found.quantization is quantization
    if checkpointing is not ActivationCheckpointing.AUTO:
        assert found.checkpointing is checkpointing
    after = settled(config, found)
    assert after.quantization is found.quantization


@given(
    model=st.tuples(st.sampled_from(sorted(MODELS)), st.sampled_from([0.0, 0.01, 0.2])),
    sizes=st.lists(st.integers(1, 256), min_size=2, max_size=2, unique=True).map(sorted),
    kind=st.sampled_from([None, "T4", "L4", "H100"]),
    asks=st.tuples(st.sampled_from(Quantization), st.sampled_from(Precision), st.sampled_from([1, 1, 2, 8])),
    known=st.tuples(st.integers(1, 4096), st.floats(0, 1), st.none() | st.integers(1, 4096)),
)
def test_more_memory_never_refuses_what_less_did_not(
    model: tuple[str, float],
    sizes: list[int],
    kind: str | None,
    asks: tuple[Quantization, Precision, int],
    known: tuple[int, float, int | None],
) -> None:
    """By the size that a GPU is sold with, and by what it reports: what fits still does, as fast where the base is held
    alike, and what may fit still may. Some of the parameters may be unexplained."""
    (name, unexplained), (quantization, precision, gpus), (row, learned, longest) = model, asks, known
    shape = counted(architecture_of(MODELS[name][0]), round(MODELS[name][1] * (1 + unexplained)))
    adapter = plan_adapter(LoraConfig(), shape)
    reported = find_gpu(kind) if kind else Gpu(name="x", memory_bytes=0)
    config = run(
        quantization=quantization,
        training=TrainingConfig(precision=precision),
        device=DeviceConfig(gpus=gpus, gpu=reported.name),
    )
    rows: dict[str, Any] = {"tokens": 1000 * row, "rows": 1000, "target_share": learned, "longest": longest}

    def on(size: int) -> tuple[RunPlan, RunPlan]:
        known_by_size = replace(reported, memory_bytes=least_memory(size), sold_bytes=size * GIB)
        both = known_by_size, replace(reported, memory_bytes=size * GIB)
        sold, exact = (plan_of(config, shape, adapter, gpu=gpu, **rows) for gpu in both)
        return sold, exact

    small, large = map(on, sizes)
    for few, more in (*zip(small, large, strict=True), small):
        assert more.fits is not False or few.fits is False
        if few.fits:
            held = [(one.quantization is not Quantization.NONE, one.sharded) for one in (few, more)]
            assert more.fits
            assert held[1] <= held[0]
            assert held[1] < held[0] or (more.tokens_per_second or 0) >= (few.tokens_per_second or 0)


def test_a_held_out_row_that_is_longer_than_the_training_s_is_counted() -> None:
    """It is evaluated alone, before the first step: where that does not fit, the run does not. No longer than rows are
    cut, and one that the training's exceed changes nothing."""
    long = run(training=TrainingConfig(max_sequence_length=32768))
    without = plan("T4", long, GEMMA_2, longest=256)
    assert without.fits
    assert plan("T4", long, GEMMA_2, longest=256, evaluated=256) == without
    assert plan("T4", long, GEMMA_2, longest=256, evaluated=16384).fits is False
    short = replace(long, training=TrainingConfig(max_sequence_length=256))
    assert plan("T4", short, GEMMA_2, longest=256, evaluated=16384).fits
    assert plan("T4", long, longest=256, evaluated=512).peak_bytes == plan("T4", long, longest=256).peak_bytes
