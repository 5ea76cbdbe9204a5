"""Merged weights against base and adapter, one by one: rounding is explained, whatever it costs, and a fault is not."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.trainer import variants
from tests.trainer.families import make_family
from tests.trainer.tiny import in_16_bits
from tests.trainer.variants import make_gpt2, make_mixture

from lora_trainer.data.tokens import Encoder
from lora_trainer.errors import VerificationError
from lora_trainer.model.convert import copy_adapter, save_adapter
from lora_trainer.model.device import Device
from lora_trainer.result import merge, merged_weights
from lora_trainer.result.merged_weights import check_weights
from lora_trainer.result.serving import scale
from lora_trainer.spec.config import Init, Layers, LoraConfig, Scaling, Variant
from lora_trainer.storage.base import Base, open_folder

LORA = LoraConfig(rank=4, alpha=8)
EXPERTS = dataclasses.replace(LORA, target_parameters=("experts.gate_up_proj", "experts.down_proj"))
KINDS: dict[str, tuple[Callable[[Path], Path] | None, LoraConfig]] = {
    "patterns": (
        None,
        dataclasses.replace(
            LORA, scaling=Scaling.RANK_STABILIZED, rank_pattern={"q_proj": 8}, alpha_pattern={"down_proj": 3}
        ),
    ),
    "PiSSA": (None, dataclasses.replace(LORA, init=Init.PISSA)),
    "DoRA, last norm whole": (None, dataclasses.replace(LORA, variant=Variant.DORA, modules_to_save=("norm",))),
    "tied embeddings whole": (None, dataclasses.replace(LORA, layers=Layers.MLP, modules_to_save=("lm_head",))),
    "transposed DoRA": (make_gpt2, dataclasses.replace(LORA, variant=Variant.DORA)),
    "experts": (make_mixture, EXPERTS),
}


def merged(base: Base, encoder: Encoder, device: Device, lora: LoraConfig, root: Path) -> tuple[Path, Path]:
    """An adapter that was trained for two steps, and the model merged of it."""
    adapted = variants.fresh(base, device, lora)
    variants.learn(adapted, variants.rows(encoder), device, steps=2)
    (root / "adapter").mkdir()
    save_adapter(copy_adapter(adapted.model, adapted.starts), root / "adapter")
    merge.merge_into(root / "adapter", base.folder, root / "merged")
    return root / "adapter", root / "merged"


@pytest.fixture
def base(tiny_folder: Path, tmp_path: Path) -> Base:
    """The tiny model in bf16."""
    return open_folder(in_16_bits(tiny_folder, tmp_path / "base"))


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match")
@pytest.mark.parametrize("kind", KINDS)
def test_a_correct_merge_is_what_rounding_explains(
    *, base: Base, encoder: Encoder, cpu: Device, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """Every kind of adapter, into 16 bits and into fp32, whether its files are edited or it is merged in memory."""
    caplog.set_level("INFO")
    make, lora = KINDS[kind]
    full = base.folder if make is None else make(tmp_path / "full")
    for name, folder in (("full", full), ("half", in_16_bits(full, tmp_path / "half"))):
        (tmp_path / f"of-{name}").mkdir()
        found = open_folder(folder)
        adapter, model = merged(found, encoder, cpu, lora, tmp_path / f"of-{name}")
        check_weights(found, adapter, model, lora)
        assert ("whole model in memory" in caplog.text) == (kind in ("experts", "tied embeddings whole"))


@pytest.mark.parametrize("kind", ["gemma3", "mistral3", "qwen2_5_vl", "falcon", "gpt_neox", "qwen3_moe"])
def test_files_with_older_names_are_edited_and_give_what_a_merge_in_memory_does(
    encoder: Encoder, cpu: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A model that sees has its weights in files as `language_model.model`, and in memory as `model.language_model`."""
    base = open_folder(in_16_bits(make_family(tmp_path / "full", kind), tmp_path / "base"))
    adapter, model = merged(base, encoder, cpu, LORA, tmp_path)
    check_weights(base, adapter, model, LORA)
    monkeypatch.setattr(merge, "_keys", lambda *_arguments: None)
    merge.merge_into(adapter, base.folder, tmp_path / "in memory")
    one, other = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "in memory"))
    assert one.keys() == other.keys() == load_file(base.folder / "model.safetensors").keys()
    assert any(not name.startswith("model.") for name in one) or kind != "gemma3"
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=2**-7, atol=1e-6)


def _wrong_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    right = scale
    monkeypatch.setattr("lora_trainer.result.merge.scale", lambda config, module: 1.05 * right(config, module))


def _without_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    right = merge._low_rank

    def wrong(weight: torch.Tensor, edit: merge.LowRank, tensors: Any) -> torch.Tensor:
        return weight if "layers.1" in edit.module else right(weight, edit, tensors)

    monkeypatch.setattr(merge, "_low_rank", wrong)


def _rounded_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    right = merge._low_rank

    def wrong(weight: torch.Tensor, edit: merge.LowRank, tensors: Any) -> torch.Tensor:
        product = right(torch.zeros_like(weight), edit, tensors)
        return weight + product.bfloat16()

    monkeypatch.setattr(merge, "_low_rank", wrong)


@pytest.mark.parametrize("fault", [_wrong_scale, _without_a_layer, _rounded_twice])
def test_a_faulty_merge_is_found_by_its_weights(
    *,
    base: Base,
    encoder: Encoder,
    cpu: Device,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[pytest.MonkeyPatch], None],
) -> None:
    """However little two steps changed: a scale 5 % off, a layer left out, and rounding once more than needed."""
    fault(monkeypatch)
    adapter, model = merged(base, encoder, cpu, LORA, tmp_path)
    with pytest.raises(VerificationError, match=r"is not what base and adapter give: it differs by .* explains"):
        check_weights(base, adapter, model, LORA)


def test_a_weight_of_another_type_is_named() -> None:
    """Values that it rounds further are not the base's type."""
    weight = torch.ones(2, 2).bfloat16()
    with pytest.raises(VerificationError, match="has another shape or type than the base model's"):
        merged_weights._check_change("q", weight, weight.half(), torch.ones(2, 2))


def test_a_fault_in_experts_is_found_in_memory(encoder: Encoder, cpu: Device, tmp_path: Path) -> None:
    """Whose files name them otherwise than the model does."""
    base = open_folder(make_mixture(tmp_path / "base"))
    adapter, model = merged(base, encoder, cpu, EXPERTS, tmp_path)
    spoil(model, "experts.2.w1", lambda tensor: tensor * 1.001)
    with pytest.raises(VerificationError, match=r"experts\.gate_up_proj is not what base and adapter give"):
        check_weights(base, adapter, model, EXPERTS)


def spoil(folder: Path, name: str, how: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change the tensors of a model whose names hold `name`."""
    file = folder / "model.safetensors"
    tensors = {key: how(tensor) if name in key else tensor for key, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("name", "how", "sentence"),
    [
        ("embed_tokens", lambda tensor: tensor * 1.01, "is not the base model's, though the adapter leaves it alone"),
        ("", lambda tensor: tensor.half(), "is not the base model's, though the adapter leaves it alone"),
        ("q_proj", lambda tensor: tensor * float("nan"), "has values that are not finite bfloat16"),
        ("q_proj", lambda tensor: tensor[:, :9].contiguous(), "model.safetensors holds other tensors"),
    ],
)
def test_what_is_written_otherwise_is_named(
    *,
    base: Base,
    encoder: Encoder,
    cpu: Device,
    tmp_path: Path,
    name: str,
    how: Callable[[torch.Tensor], torch.Tensor],
    sentence: str,
) -> None:
    """Copies, types, shapes, and numbers that are none."""
    adapter, model = merged(base, encoder, cpu, LORA, tmp_path)
    spoil(model, name, how)
    with pytest.raises(VerificationError, match=sentence):
        check_weights(base, adapter, model, LORA)


def test_blocks_of_a_matrix_are_compared_to_the_last_row(
    base: Base, encoder: Encoder, cpu: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large matrix is never whole in fp64."""
    monkeypatch.setattr(merged_weights, "_BLOCK", 64 * 5)
    adapter, model = merged(base, encoder, cpu, LORA, tmp_path)
    check_weights(base, adapter, model, LORA)

    def last_row(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor[:-1], tensor[-1:] * 1.05])

    spoil(model, "layers.1.mlp.up_proj", last_row)
    with pytest.raises(VerificationError, match=r"layers\.1\.mlp\.up_proj"):
        check_weights(base, adapter, model, LORA)
