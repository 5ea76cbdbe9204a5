"""The fit model against a simulated training step: real modules on fake tensors, every living storage counted."""

import itertools
import re
from dataclasses import replace
from pathlib import Path

import bitsandbytes
import pytest
import torch
from benchmarks import memory_as_gpu
from benchmarks.memory_simulation import Living, Step, simulate, simulate_deep
from tests.trainer.memory_cells import FEW, FURTHER_FEW, MORE, PUBLIC, WHOLE, Cell, array
from tests.unit.fit_models import llama

from lora_trainer.spec.config import LoraConfig, Quantization

MOST = 0.03
"""By how much the formulas may differ."""
NOT_QUANTIZED = {"Mixtral-8x7B", "Qwen1.5-MoE-A2.7B", "Qwen3-30B-A3B", "gpt-oss-20b"}
"""As a whole: their experts are no linear modules. In the array they are in bf16 without a kernel instead."""
# Of configurations that name tokens outside of a vocabulary which they do not have here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def error(cell: Cell, *, deep: bool = True) -> float:
    """Of the estimate, negative where it is too low."""
    found = (simulate_deep if deep else simulate)(cell.config, cell.step)
    error = cell.estimated / found.peak - 1
    print(f"| {cell.name} | {found.peak / 1e9:.3f} | {cell.estimated / 1e9:.3f} | {error:+.1%} |")
    return error


@pytest.mark.parametrize("cell", FEW, ids=lambda cell: cell.name)
def test_a_training_takes_what_the_formulas_say(cell: Cell) -> None:
    """Of weights, adapter, activations and the largest moment; from two layers and a further one."""
    assert abs(error(cell)) <= MOST


@pytest.mark.parametrize("cell", WHOLE, ids=lambda cell: cell.name)
def test_a_training_of_all_layers_takes_what_the_formulas_say(cell: Cell) -> None:
    """Whole modules among what is trained."""
    assert abs(error(cell, deep=False)) <= MOST


@pytest.mark.soak
@pytest.mark.parametrize(
    "cell", [*(cell for cell in MORE if cell not in FEW), *FURTHER_FEW, *array()], ids=lambda cell: cell.name
)
def test_any_two_options_take_what_the_formulas_say(cell: Cell) -> None:
    """Every model with every value of every option, and every two values of different options."""
    assert abs(error(cell)) <= MOST


@pytest.mark.parametrize(
    ("rank", "quantization"), [(16, Quantization.NONE), (256, Quantization.NONE), (16, Quantization.NF4)]
)
def test_the_fused_adapter_takes_no_more_than_pefts(rank: int, quantization: Quantization) -> None:
    """A plan counts PEFT's: which of the two a run takes shows on its device alone."""
    config = llama(hidden_size=512, intermediate_size=1024, num_hidden_layers=1, num_attention_heads=4, vocab_size=512)
    config |= {"num_key_value_heads": 2, "head_dim": 128}
    lora = LoraConfig(rank=rank, alpha=rank)
    for recompute in (True, False):
        plain = Step(rows=(128, 128), lora=lora, quantization=quantization, recompute=recompute)
        one, other = simulate(config, plain), simulate(config, replace(plain, fused=True))
        assert other.standing == one.standing
        assert other.kept <= one.kept
        assert other.peak <= one.peak


def test_a_simulation_leaves_no_fake_numbers_behind() -> None:
    """bitsandbytes keeps the codes of its first double quantization for the whole process."""
    tiny = llama(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=128)
    codes = bitsandbytes.functional.name2qmap
    codes.clear()
    simulate(tiny | {"head_dim": 16, "num_key_value_heads": 4}, Step(rows=(64,), quantization=Quantization.NF4))
    assert not codes


@pytest.mark.parametrize("model", ["GPT-2", pytest.param("Llama-3.2-1B", marks=pytest.mark.soak)])
def test_two_layers_foretell_all_of_them(model: str) -> None:
    """To the byte: 12 layers of GPT-2, and 16 of Llama-3.2-1B."""
    how = Step(rows=(256,))
    assert simulate_deep(PUBLIC[model], how) == simulate(PUBLIC[model], how)


def test_the_array_holds_every_pair() -> None:
    """Of at least 25 models with all values, and of any two options. What is not quantized as a whole has no NF4."""
    cells = list(array())
    assert len(PUBLIC) >= 25
    assert set(PUBLIC) >= NOT_QUANTIZED
    rows = [
        {
            "precision": "fp32" if cell.step.fp32 else "NF4" if cell.step.quantization.value == "NF4" else "bf16",
            "dropout": cell.step.lora.dropout > 0,
            "DoRA": cell.step.lora.variant.value,
            "recompute": cell.step.recompute,
            "tokens": sum(cell.step.rows),
        }
        for cell in cells
    ]
    for one, other in itertools.combinations(rows[0], 2):
        values = {name: {row[name] for row in rows} for name in (one, other)}
        assert {(row[one], row[other]) for row in rows} == set(itertools.product(values[one], values[other]))
    for model in PUBLIC:
        own = [(row, cell) for row, cell in zip(rows, cells, strict=True) if cell.model == model]
        assert all(len({row[name] for row, _ in own}) == 2 for name in ("dropout", "DoRA", "recompute", "tokens"))
        precisions = [(row["precision"], cell.step.packs) for row, cell in own]
        second = ("bf16", False) if model in NOT_QUANTIZED else ("NF4", True)
        assert precisions == [("bf16", True), second, ("fp32", False)], model


def test_storages_are_counted_from_their_first_use_to_their_end() -> None:
    """Views and changes in place add nothing."""
    with Living() as living:
        first = torch.zeros(1000, dtype=torch.float32)
        view = first[:500].add_(1)
        assert (living.now, living.peak) == (4000, 4000)
        second = first.to(torch.float64)
        assert living.now == 12000
        del second
        assert (living.now, living.peak) == (4000, 12000)
        del first
        assert living.now == 4000
        del view
        assert living.now == 0


def test_a_gpus_autocast_computes_in_fp32_what_pytorch_lists() -> None:
    """In the header that PyTorch is compiled with, which its package has."""
    header = Path(torch.__file__).parent / "include/ATen/autocast_mode.h"
    lists = dict(
        re.findall(r"#define (AT_FORALL_FP32\w*)\(_\)(.*?)\n\n", header.read_text(encoding="utf-8"), re.DOTALL)
    )
    named = {name: set(re.findall(r"_\((\w+)", text)) for name, text in lists.items()}
    always = {name.strip("_").removeprefix("r") if name.startswith("__") else name for name in memory_as_gpu.IN_FP32}
    assert always - {"norm"} <= named["AT_FORALL_FP32"]
    unless = memory_as_gpu.IN_FP32_UNLESS_TYPED - {"linalg_norm"} | {"linalg_vector_norm", "linalg_matrix_norm"}
    assert unless <= named["AT_FORALL_FP32_SET_OPT_DTYPE"]


def test_a_part_of_the_loss_is_gone_before_the_next_one_begins() -> None:
    """Six bytes for each logit that exists at once: ten would stand for those of two parts."""
    config = llama(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    found = simulate(config | {"head_dim": 16, "num_key_value_heads": 4}, Step(rows=(4096,)))
    logits = 2**27 // 128256 * 128256
    assert 6 * logits <= found.peak - found.standing <= 7 * logits
