"""What would make a run fit that does not: three changes, each of which does, and a word where fewer were found."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import yaml
from tests.unit.advised import Case
from tests.unit.fit_models import DEEPSEEK_V3, MIXTRAL, MODELS, Config, llama
from tests.unit.test_fit_choice import run
from tests.unit.test_planning import FULL, GIB, KEPT, LONG, plan

from lora_trainer.plan.adapter import plan_adapter
from lora_trainer.plan.choice import Fit, Option, choose
from lora_trainer.plan.families import architecture_of
from lora_trainer.spec.config import (
    ActivationCheckpointing,
    DeviceConfig,
    Init,
    Kernels,
    LoraConfig,
    Optimizer,
    Precision,
    Quantization,
    TrainConfig,
    TrainingConfig,
    Variant,
)
from lora_trainer.spec.gpus import find_gpu, found_gpu, least_memory

LLAMA_70B = llama(hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64)
"""Llama-3-70B."""
LABELS = ", where nodes have the labels of GPU feature discovery"
SECTIONS: dict[str, tuple[str, str, Callable[[str], Any]]] = {
    "training.activationCheckpointing": ("training", "activation_checkpointing", ActivationCheckpointing),
    "training.optimizer": ("training", "optimizer", {"AdamW8bit": Optimizer.ADAMW_8BIT}.__getitem__),
    "training.precision": ("training", "precision", Precision),
    "training.maxSequenceLength": ("training", "max_sequence_length", int),
    "lora.variant": ("lora", "variant", Variant),
    "lora.init": ("lora", "init", Init),
    "lora.dropout": ("lora", "dropout", lambda written: float(yaml.safe_load(written))),
    "lora.rank": ("lora", "rank", int),
    "lora.modulesToSave": ("lora", "modules_to_save", lambda _: ()),
    "resources.gpus": ("device", "gpus", int),
    "resources.nodes": ("device", "nodes", int),
}
"""The fields of the changes, and how a value is read."""


def remedies_of(reason: str) -> list[tuple[tuple[str, ...], str]]:
    """The ways that a reason names: changes that are made together, and GiB."""
    _, _, named = reason.partition(": it would fit with ")
    ways = named.removesuffix(LABELS).split(" or ") if named else []
    found = [re.fullmatch(r"(.+) \(([\d.]+) GiB\)", way) for way in ways]
    return [(tuple(one[1].split(" and ")), one[2]) for one in found if one]


def after(gpu: str, config: TrainConfig, changes: Sequence[str], model: Config | None = None) -> Option:
    """How a run computes with changes, on the GPU that it has then."""
    device = find_gpu(gpu)
    for change in changes:
        field, _, value = change.partition(": ")
        if field == "resources.gpuMinMemoryGiB":
            device = replace(device, memory_bytes=least_memory(int(value)))
        elif field == "quantization":
            config = replace(config, quantization=Quantization(value))
        else:
            section, name, read = SECTIONS[field]
            values: dict[str, Any] = {name: read(value)}
            config = replace(config, **{section: replace(getattr(config, section), **values)})
    shape = architecture_of(model or llama())
    return choose(config, shape, plan_adapter(config.lora, shape), device).option


FIXES = [
    ("T4", run(quantization=Quantization.NONE), "quantization: Auto ("),
    ("T4", run(quantization=Quantization.NONE), "resources.gpus: 2 ("),
    ("L4", run(quantization=Quantization.NONE, training=KEPT), "training.activationCheckpointing: Auto ("),
    ("16.0GiB", run(training=LONG), "training.maxSequenceLength: "),
    ("6.0GiB", run(), "resources.gpuMinMemoryGiB: 12 ("),
    ("18.0GiB", run(lora=LoraConfig(rank=256)), "training.optimizer: AdamW8bit ("),
    (
        "16.0GiB",
        run(lora=LoraConfig(rank=512), training=replace(FULL, optimizer=Optimizer.ADAMW_8BIT)),
        "lora.rank: ",
    ),
    (
        "L4",
        # With fast paths it may fit.
        run(
            lora=LoraConfig(dropout=0.1),
            training=replace(KEPT, kernels=Kernels.REFERENCE),
            quantization=Quantization.NF4,
        ),
        'lora.dropout: "0" (',
    ),
    (
        "L4",
        run(lora=LoraConfig(variant=Variant.DORA), training=KEPT, quantization=Quantization.NF4),
        "lora.variant: LoRA (",
    ),
]


@pytest.mark.parametrize(("gpu", "config", "fix"), FIXES, ids=[f"{gpu} {fix}" for gpu, _, fix in FIXES])
def test_what_cannot_fit_says_what_would(gpu: str, config: TrainConfig, fix: str) -> None:
    """Need, device, and at most three changes with the bytes that they lead to."""
    found = plan(gpu, config)
    assert found.fits is False
    assert found.reason.startswith("the run needs at least ")
    named = f"a GPU of {gpu}" if gpu[0].isdigit() else gpu
    assert f"and {named} has {find_gpu(gpu).memory_bytes / GIB:.1f} GiB: it would fit with " in found.reason
    assert fix in found.reason
    assert 1 <= len(remedies_of(found.reason)) <= 3
    assert len(found.reason) < 500


OF_SEVERAL: list[tuple[str, TrainConfig, Config | None]] = [
    *((gpu, config, None) for gpu, config, _ in FIXES),
    ("T4", run(), LLAMA_70B),
    ("L4", run(device=DeviceConfig(gpus=2)), LLAMA_70B),
    ("T4", run(lora=LoraConfig(init=Init.PISSA)), None),
    ("8.0GiB", run(training=TrainingConfig(precision=Precision.FP32)), None),
    ("16.0GiB", run(lora=LoraConfig(modules_to_save=("lm_head", "embed_tokens"))), None),
    # Two modules could not have the rank, were they not trained whole.
    ("24.0GiB", run(lora=LoraConfig(init=Init.PISSA, rank=2048, modules_to_save=("k_proj", "v_proj"))), None),
    ("T4", run(), MIXTRAL),
]


@pytest.mark.parametrize(("gpu", "config", "model"), OF_SEVERAL)
def test_changes_make_the_run_fit_and_none_is_named_without_need(
    gpu: str, config: TrainConfig, model: Config | None
) -> None:
    """With the bytes that are said; several at once only where no single one is enough, and each of these needed."""
    ways = remedies_of(plan(gpu, config, model).reason)
    assert 1 <= len({changes for changes, _ in ways}) == len(ways) <= 3
    assert len(ways) == 1 or all(len(changes) == 1 for changes, _ in ways)
    for changes, gib in ways:
        found = after(gpu, config, changes, model)
        assert (found.fit, f"{found.peak_bytes / GIB:.1f}") == (Fit.FITS, gib)
        for left_out in changes:
            assert after(gpu, config, [one for one in changes if one != left_out], model).fit is not Fit.FITS


def test_a_change_that_is_named_makes_the_run_fit() -> None:
    """With the bytes that are said, and the next larger one does not."""
    reason = plan("16.0GiB", run(training=LONG)).reason
    found = re.search(r"with training.maxSequenceLength: (\d+) \(([\d.]+) GiB\)", reason)
    assert found is not None
    shorter = plan("16.0GiB", run(training=TrainingConfig(max_sequence_length=int(found[1]))))
    assert (shorter.fits, f"{shorter.peak_bytes / GIB:.1f}") == (True, found[2])
    assert not plan("16.0GiB", run(training=TrainingConfig(max_sequence_length=2 * int(found[1])))).fits
    assert "gpuMinMemoryGiB: 12 (" in plan("6.0GiB").reason
    larger = run(device=DeviceConfig(gpu="12 GiB", gpu_memory_bytes=least_memory(12)))
    assert plan(None, larger).fits


@pytest.mark.parametrize(
    ("known", "least"),
    [({}, 256), ({"p95": 5000}, 5000), ({"p95": 5000, "longest": 60_000}, 5000), ({"longest": 60_000}, 60_000)],
    ids=str,
)
def test_rows_are_not_cut_to_make_a_run_fit(known: dict[str, Any], least: int) -> None:
    """But for one in twenty; of which only the longest is known, none."""
    reason = plan("12.0GiB", run(training=LONG), **known).reason
    assert "it would fit with " in reason
    found = re.search(r"training.maxSequenceLength: (\d+)", reason)
    assert (found is None) is (least > 8192)
    assert found is None or int(found[1]) >= least
    together = plan("9.0GiB", run(training=LONG), **known).reason
    assert all(int(length) >= least for length in re.findall(r"maxSequenceLength: (\d+)", together))


@pytest.mark.parametrize(
    ("named", "remedy"),
    [
        (None, "resources.gpuMinMemoryGiB: 12 (8.6 GiB), where nodes have the labels of GPU feature discovery"),
        ("6 GiB", "resources.gpuMinMemoryGiB: 12 (8.6 GiB), where nodes have the labels of GPU feature discovery"),
        ("Zebra-6", "resources.gpuProducts of 12 GiB (8.6 GiB), where nodes have the labels of GPU feature discovery"),
        ("nvidia.com/mig-1g.6gb", "a GPU of 12 GiB (8.6 GiB)"),
        ("NVIDIA-A100-SXM4-40GB-MIG-1g.6gb", "resources.gpuProducts of 12 GiB (8.6 GiB)" + LABELS),
    ],
)
def test_a_larger_gpu_is_asked_for_as_the_small_one_was(named: str | None, remedy: str) -> None:
    """With what that needs: a size beside a slice, or a product that has less, finds no node."""
    device = DeviceConfig(gpu=named, gpu_memory_bytes=6 * GIB)
    assert plan(None, run(device=device)).reason.endswith(remedy)


@pytest.mark.parametrize("resource", ["nvidia.com/mig-1g.10gb", "nvidia.com/mig-1g.12gb"])
def test_no_more_slices_of_a_gpu_are_named(resource: str) -> None:
    """Of which NCCL lets one run have one alone, and which may be on other nodes' GPUs or not."""
    config = Case(model=llama(), spec={"resources": {"gpuResourceName": resource}, "quantization": "None"})
    reason = config.plan().reason
    assert "it would fit with quantization: Auto (" in reason
    assert "resources." not in reason
    by_hand = Case(model=llama(), spec={"quantization": "None"}, gpu=find_gpu("nvidia.com/mig-1g.10gb"))
    assert "resources.gpus" not in by_hand.plan().reason
    own = found_gpu("NVIDIA A100-SXM4-80GB MIG 1g.10gb", 9_728 * 2**20, (8, 0))
    assert "resources.gpus" not in replace(by_hand, gpu=own).plan().reason


def test_a_gpu_that_a_node_selector_pins_is_exchanged_there() -> None:
    """What resources name beside it finds no node."""
    selector = {"nodeSelector": {"nvidia.com/gpu.product": "Tesla-T4"}}
    case = Case(
        model=llama(), spec={"scheduling": selector, "quantization": "None", "output": {"uri": "s3://adapters/tone"}}
    )
    reason = case.plan().reason
    assert re.search(r" or nvidia\.com/gpu\.product of 24 GiB in scheduling\.nodeSelector \([\d.]+ GiB\)$", reason)
    larger = case.changed("scheduling", {"nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L4"}})
    assert larger.plan().fits


def test_what_a_change_cannot_go_with_is_taken_out_with_it() -> None:
    """The precision of a merge that is left away."""
    case = Case(
        model=llama(),
        spec={
            "resources": {"gpus": 4, "gpuProducts": ["Tesla-T4"]},
            "quantization": "None",
            "output": {"uri": "pvc://a/b", "merge": "Both", "mergePrecision": "FP32"},
        },
    )
    assert "output.merge: Adapter without output.mergePrecision (" in case.plan().reason


def test_more_nodes_are_named_where_nothing_less_helps() -> None:
    """For 320 billion parameters of a mixture; only where a claim holds the checkpoints that several nodes need."""
    model = {**DEEPSEEK_V3, "num_hidden_layers": 30}
    case = Case(model=model, gpu=find_gpu("H200"), rows=None)
    reason = case.plan().reason
    ways = remedies_of(reason)
    assert all({"resources.gpus: 8", "resources.nodes: 2"} <= set(way) for way, _ in ways)
    assert ways
    for changes, gib in ways:
        found = after("H200", case.config, changes, model)
        assert (found.fit, f"{found.peak_bytes / GIB:.1f}") == (Fit.FITS, gib)
    elsewhere = case.changed("output", {"uri": "s3://adapters/tone"}).plan().reason
    assert "resources.nodes" not in elsewhere
    assert "none of the changes that are tried here makes it fit: take a smaller model" in elsewhere


GIANTS: dict[str, Config] = {
    "DeepSeek-V3, three times as deep": {**DEEPSEEK_V3, "num_hidden_layers": 183},
    "seven dense trillions": llama(num_hidden_layers=400, hidden_size=2**15, intermediate_size=2**17),
}


@pytest.mark.parametrize("gpu", ["T4", "H100"])
def test_no_model_is_given_up_that_more_nodes_would_hold(gpu: str) -> None:
    """With a claim, of the numbers of nodes that are tried, beside as many GPUs and the largest memory."""
    given_up = set()
    for name, model in (*((name, known) for name, (known, *_) in MODELS.items()), *GIANTS.items()):
        case = Case(model=model, gpu=find_gpu(gpu), rows=None)
        plan = case.plan()
        if plan.fits is not False or "none of the changes" not in plan.reason:
            continue
        given_up.add(name)
        for nodes in (2, 4):
            for gpus in (1, 2, 4, 8):
                if gpus * nodes <= 16:
                    config = case.changed("resources", {"gpus": gpus, "nodes": nodes}).config
                    assert after("192GiB", config, [], case.model).fit is not Fit.FITS, name
    assert given_up == {"DeepSeek-V3", *GIANTS}


def test_changes_that_are_made_together_ask_for_no_more_gpus_than_rows() -> None:
    """As the rules of a run have it: each process needs one row of a step."""
    case = Case(model=DEEPSEEK_V3, gpu=find_gpu("H200"), spec={"training": {"effectiveBatchSize": 8}}, rows=None)
    for changes, _ in remedies_of(case.plan().reason):
        numbers = dict(change.split(": ") for change in changes)
        gpus, nodes = (int(numbers.get(f"resources.{field}", 1)) for field in ("gpus", "nodes"))
        assert gpus * nodes <= 8


def test_nothing_makes_a_model_of_trillions_fit() -> None:
    """Then the sentence says so."""
    found = plan("T4", run(lora=LoraConfig(init=Init.PISSA)), GIANTS["seven dense trillions"])
    assert found.fits is False
    assert found.reason.endswith("take a smaller model")
