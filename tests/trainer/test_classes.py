"""What a base model is loaded as: text alone trains the language model of one that also sees."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tests.trainer.families import make_family
from transformers import AutoConfig, AutoModelForImageTextToText

from lora_trainer.errors import ConfigError
from lora_trainer.model.adapter import adapted_names
from lora_trainer.model.classes import CAUSAL, SEEING, class_name
from lora_trainer.model.device import Device
from lora_trainer.model.loading import adapt, load_model, skeleton
from lora_trainer.plan.hint_checks import LeftAlone
from lora_trainer.spec.config import LoraConfig, Quantization
from lora_trainer.storage.base import open_folder


@pytest.mark.parametrize("kind", ["gemma3", "mistral3", "qwen2_5_vl"])
def test_of_a_model_that_sees_the_language_model_alone_is_adapted(kind: str, tmp_path: Path, cpu: Device) -> None:
    """The vision tower would get gradients of zero. It is said, and nobody is told of a mixture of experts."""
    base = open_folder(make_family(tmp_path / "model", kind))
    adapted = adapt(load_model(base, Quantization.NONE, cpu), LoraConfig(rank=4), base, cpu, 0)
    names = adapted_names(adapted.model)
    assert names
    assert all(name.startswith("model.language_model.layers.") for name in names)
    assert adapted.target_modules == ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert adapted.left_alone == LeftAlone(kind=kind, language_part="model.language_model")


def test_a_name_of_the_vision_tower_is_refused_with_those_of_the_language_model(tmp_path: Path) -> None:
    """Text would not train it."""
    base = open_folder(make_family(tmp_path / "model", "gemma3"))
    empty = skeleton(base)
    assert any("vision_tower" in name and name.endswith("fc1") for name, _ in empty.model.named_modules())
    assert not any(name.endswith("fc1") for name in empty.linear)


@pytest.mark.parametrize(
    ("configuration", "sentence"),
    [
        ({"model_type": "bert"}, "'bert' sees the words on both sides of each, so it is not a causal language model"),
        ({"model_type": "bart"}, "'bart' reads its prompt with an encoder"),
        ({"model_type": "vit"}, "'vit' has no class of Transformers for that"),
    ],
)
def test_what_writes_no_text_from_left_to_right_is_refused(configuration: dict[str, str], sentence: str) -> None:
    """Before a weight is read: an encoder would train and be verified, and be of no use."""
    with pytest.raises(ConfigError) as caught:
        class_name(AutoConfig.for_model(**configuration), "hf://org/name")
    assert sentence in str(caught.value)


def test_an_encoder_that_is_a_decoder_is_taken() -> None:
    """Its configuration says so."""
    assert class_name(AutoConfig.for_model("bert", is_decoder=True), "hf://org/name") == CAUSAL


def test_the_seeing_class_of_llama_4_cannot_compute(tmp_path: Path) -> None:
    """Why it is loaded without what sees. Once this fails, it need not be an exception any more."""
    folder = make_family(tmp_path / "model", "llama4")
    configuration, factory = AutoConfig.from_pretrained(folder), cast("Any", AutoModelForImageTextToText)
    assert class_name(configuration, "here") == CAUSAL
    with pytest.raises(AttributeError, match="image_outputs"):
        factory.from_config(configuration)(input_ids=torch.zeros(1, 2, dtype=torch.long))
    assert class_name(AutoConfig.from_pretrained(make_family(tmp_path / "other", "gemma3")), "here") == SEEING
