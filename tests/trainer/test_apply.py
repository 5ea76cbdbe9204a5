"""A written adapter of every kind on the pristine base: by our own arithmetic and by PEFT, the trained model's loss."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tests.trainer import variants
from tests.trainer.families import make_family

from lora_trainer.data.tokens import Encoder
from lora_trainer.errors import VerificationError
from lora_trainer.model.apply import apply_adapter
from lora_trainer.model.convert import copy_adapter, save_adapter
from lora_trainer.model.device import Device
from lora_trainer.model.loading import load_model
from lora_trainer.spec.config import Init, Layers, LoraConfig, Quantization, Scaling, Variant
from lora_trainer.storage.base import Base, open_folder

LORA = LoraConfig(rank=4, alpha=8)
VARIANTS = {
    "rank-stabilized": dataclasses.replace(LORA, scaling=Scaling.RANK_STABILIZED),
    "DoRA": dataclasses.replace(LORA, variant=Variant.DORA),
    "Gaussian": dataclasses.replace(LORA, init=Init.GAUSSIAN),
    "patterns": dataclasses.replace(
        LORA, rank_pattern={"q_proj": 8, "1.self_attn.q_proj": 2}, alpha_pattern={"mlp.down_proj": 3}
    ),
    "one layer": dataclasses.replace(LORA, layer_indices=(1,)),
    "last norm trained whole": dataclasses.replace(LORA, modules_to_save=("norm",)),
    "tied embeddings trained whole": dataclasses.replace(LORA, layers=Layers.MLP, modules_to_save=("lm_head",)),
    "PiSSA": dataclasses.replace(LORA, init=Init.PISSA),
    "OLoRA": dataclasses.replace(LORA, init=Init.OLORA),
    "PiSSA, rank-stabilized, with patterns": dataclasses.replace(
        LORA,
        init=Init.PISSA,
        scaling=Scaling.RANK_STABILIZED,
        rank_pattern={"q_proj": 6, "down_proj": 2},
        alpha_pattern={"v_proj": 5},
        modules_to_save=("norm",),
    ),
}


def written(base: Base, encoder: Encoder, device: Device, lora: LoraConfig, folder: Path) -> tuple[float, int]:
    """Train, write; the trained model's loss and the number of its trained parameters."""
    adapted = variants.fresh(base, device, lora)
    rows = variants.rows(encoder)
    before = variants.loss_of(adapted.model, adapted.head, rows, device)
    variants.learn(adapted, rows, device)
    after = variants.loss_of(adapted.model, adapted.head, rows, device)
    assert after < before - 0.02
    folder.mkdir(exist_ok=True)
    save_adapter(copy_adapter(adapted.model, adapted.starts), folder)
    return after, adapted.trainable_parameters


def check_both(base: Base, encoder: Encoder, device: Device, lora: LoraConfig, folder: Path) -> None:
    """Our own arithmetic and PEFT's both give the trained model's loss."""
    rows = variants.rows(encoder)
    loss, trained = written(base, encoder, device, lora, folder)
    loaded = load_model(base, Quantization.NONE, device)
    assert apply_adapter(loaded, folder, lora, device) == trained
    assert variants.loss_of(loaded.model, loaded.head, rows, device) == pytest.approx(loss, abs=2e-5)
    again = load_model(base, Quantization.NONE, device)
    tuned: Any = PeftModel.from_pretrained(again.model, str(folder))
    head = tuned.get_base_model().get_output_embeddings()
    assert variants.loss_of(tuned, head, rows, device) == pytest.approx(loss, abs=2e-5)


@pytest.mark.parametrize("name", list(VARIANTS))
def test_an_adapter_of_every_kind_gives_the_trained_models_loss(
    tiny_base: Base, encoder: Encoder, cpu: Device, tmp_path: Path, name: str
) -> None:
    """From its files, on the pristine base."""
    check_both(tiny_base, encoder, cpu, VARIANTS[name], tmp_path)


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match")  # PEFT looks at modules only
def test_adapted_experts_give_the_trained_models_loss(encoder: Encoder, cpu: Device, tmp_path: Path) -> None:
    """Two parameters of one module, in one layer of two, with a rank of their own."""
    base = open_folder(variants.make_mixture(tmp_path / "mixture"))
    lora = dataclasses.replace(
        LORA,
        target_parameters=("experts.gate_up_proj", "experts.down_proj"),
        rank_pattern={"gate_up_proj": 2},
        layer_indices=(1,),
    )
    check_both(base, encoder, cpu, lora, tmp_path / "adapter")


@pytest.mark.parametrize("init", [Init.DEFAULT, Init.PISSA])
def test_transposed_weights_give_the_trained_models_loss(
    encoder: Encoder, cpu: Device, tmp_path: Path, init: Init
) -> None:
    """GPT-2's kind of linear module."""
    base = open_folder(variants.make_gpt2(tmp_path / "gpt2"))
    check_both(base, encoder, cpu, dataclasses.replace(LORA, init=init), tmp_path / "adapter")


def test_layers_that_share_a_weight_have_adapters_of_their_own(encoder: Encoder, cpu: Device, tmp_path: Path) -> None:
    """The product of one is not added for the other."""
    base = open_folder(make_family(tmp_path / "zamba2", "zamba2"))
    check_both(base, encoder, cpu, LORA, tmp_path / "adapter")


@pytest.mark.parametrize("variant", list(Variant))
def test_products_beside_16_bit_weights_give_the_trained_models_loss(
    tiny_base: Base, encoder: Encoder, cpu: Device, tmp_path: Path, variant: Variant
) -> None:
    """bf16 weights are not added to; the outputs get the product."""
    device = variants.with_type(cpu, torch.bfloat16)
    lora = dataclasses.replace(LORA, variant=variant, modules_to_save=("norm",))
    loss, _ = written(tiny_base, encoder, device, lora, tmp_path)
    loaded = load_model(tiny_base, Quantization.NONE, device)
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items() if "proj" in name}
    apply_adapter(loaded, tmp_path, lora, device)
    assert variants.loss_of(loaded.model, loaded.head, variants.rows(encoder), device) == pytest.approx(loss, abs=5e-3)
    assert all(torch.equal(tensor, loaded.model.state_dict()[name]) for name, tensor in before.items())


def _halve_magnitudes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: tensor / 2 if "magnitude" in key else tensor for key, tensor in tensors.items()}


def test_magnitudes_of_dora_count(tiny_base: Base, encoder: Encoder, cpu: Device, tmp_path: Path) -> None:
    """An adapter with others gives another loss, one without is refused."""
    lora = VARIANTS["DoRA"]
    loss, _ = written(tiny_base, encoder, cpu, lora, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    save_file(_halve_magnitudes(tensors), tmp_path / "adapter_model.safetensors")
    loaded = load_model(tiny_base, Quantization.NONE, cpu)
    apply_adapter(loaded, tmp_path, lora, cpu)
    assert abs(variants.loss_of(loaded.model, loaded.head, variants.rows(encoder), cpu) - loss) > 1e-2
    save_file({k: v for k, v in tensors.items() if "magnitude" not in k}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(VerificationError, match="has no magnitudes of DoRA"):
        apply_adapter(load_model(tiny_base, Quantization.NONE, cpu), tmp_path, lora, cpu)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"use_rslora": True}, "says rank 4 and alpha 8 for"),
        ({"rank_pattern": {"q_proj": 2}}, "says rank 2 and alpha 8 for"),
        ({"alpha_pattern": {"q_proj": 2}}, "says rank 4 and alpha 2 for"),
        ({"use_dora": True}, "says use_dora True, the run asked for LoRA"),
    ],
)
def test_a_configuration_file_that_means_another_adapter_is_refused(
    tiny_base: Base, cpu: Device, tmp_path: Path, changes: dict[str, object], sentence: str
) -> None:
    """Servers go by it."""
    adapted = variants.fresh(tiny_base, cpu, LORA)
    save_adapter(copy_adapter(adapted.model, adapted.starts), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    with pytest.raises(VerificationError) as caught:
        apply_adapter(load_model(tiny_base, Quantization.NONE, cpu), tmp_path, LORA, cpu)
    assert sentence in str(caught.value)


def test_a_module_that_was_not_trained_is_refused(
    tiny_base: Base, encoder: Encoder, cpu: Device, tmp_path: Path
) -> None:
    """A tensor too many would replace the base's in silence."""
    written(tiny_base, encoder, cpu, LORA, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file(load_file(path) | {"base_model.model.model.norm.weight": torch.ones(64)}, path)
    with pytest.raises(VerificationError, match=r"the adapter holds model\.norm\.weight"):
        apply_adapter(load_model(tiny_base, Quantization.NONE, cpu), tmp_path, LORA, cpu)
