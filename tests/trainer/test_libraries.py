"""The names that we set in other libraries exist there: an upgrade fails here and not on a GPU."""

import dataclasses
import inspect
from typing import Any

import huggingface_hub
import torch
from peft import LoraConfig, PeftModel
from peft.helpers import disable_input_dtype_casting
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel


def test_peft_knows_the_options_of_the_adapter() -> None:
    """The fields of its configuration, and the defaults that an adapter's meaning rests on."""
    fields = {field.name: field.default for field in dataclasses.fields(LoraConfig)}
    assert {"task_type", "base_model_name_or_path", "revision", "r", "lora_alpha", "lora_dropout", "bias"} <= set(
        fields
    )
    assert "target_modules" in fields
    assert (fields["use_rslora"], fields["use_dora"], fields["init_lora_weights"]) == (False, False, True)


def test_peft_saves_without_asking_the_hub() -> None:
    """The option that keeps it from looking up embeddings."""
    assert {"safe_serialization", "save_embedding_layers"} <= set(
        inspect.signature(PeftModel.save_pretrained).parameters
    )
    assert "active" in inspect.signature(disable_input_dtype_casting).parameters


def test_transformers_knows_the_options_of_four_bits() -> None:
    """Names, and that each is honoured."""
    kind: Any = BitsAndBytesConfig
    settings = kind(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    ).to_dict()
    assert settings["bnb_4bit_quant_type"] == "nf4"
    assert settings["bnb_4bit_use_double_quant"] is True
    assert settings["bnb_4bit_compute_dtype"] == "bfloat16"


def test_transformers_loads_with_our_options() -> None:
    """Unknown ones would be handed on to the model in silence."""
    source = inspect.getsource(PreTrainedModel.from_pretrained)
    for option in ("dtype", "quantization_config", "device_map", "use_safetensors", "output_loading_info"):
        assert option in source
    assert hasattr(AutoModelForCausalLM, "from_pretrained")


def test_the_hub_client_takes_our_options() -> None:
    """Endpoint, token and cache of the run, never those of the machine."""
    wanted = {"repo_type", "revision", "allow_patterns", "token", "endpoint", "cache_dir"}
    assert wanted <= set(inspect.signature(huggingface_hub.snapshot_download).parameters)
    assert {"endpoint", "token"} <= set(inspect.signature(huggingface_hub.HfApi).parameters)


def test_torch_has_a_fused_adamw() -> None:
    """On the CPU as well."""
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, weight_decay=0.0, fused=True)
    parameter.grad = torch.ones(2)
    optimizer.step()
    assert torch.allclose(parameter.detach(), torch.full((2,), 0.9))
