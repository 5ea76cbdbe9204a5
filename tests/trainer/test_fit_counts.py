"""The fit model against the models themselves, built without weights: names, sizes and what an adapter trains."""

import json
from pathlib import Path

import pytest
from tests.trainer import variants
from tests.unit.fit_models import DEEPSEEK_V3, GEMMA_3, LLAMA_4, MODELS, QWEN2_MOE, QWEN3_MOE, Config, llama

from lora_trainer.artifact.tensor_files import read_entries
from lora_trainer.contract.config import Layers, LoraConfig, Quantization, Variant
from lora_trainer.contract.fit import adapter as fit
from lora_trainer.contract.fit.families import KNOWN_FAMILIES, shape_of
from lora_trainer.errors import ConfigError
from lora_trainer.model.adapter import plan_adapter, put_on
from lora_trainer.model.convert import save_adapter
from lora_trainer.model.device import Device
from lora_trainer.model.loading import skeleton
from lora_trainer.places.base import Base
from lora_trainer.places.base_shape import shape_in
from lora_trainer.recipe.preflight import target_names

SMALLER = {"num_hidden_layers": 2, "n_layer": 2}
"""Layers beyond the second repeat it; whole public models are counted by their files in the unit tests."""
FALCON: Config = {
    "model_type": "falcon",
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "vocab_size": 1000,
}
OTHERS: dict[str, Config] = {
    "Granite": llama(model_type="granite", tie_word_embeddings=True),
    "Ministral": llama(model_type="ministral", head_dim=128),
    "SmolLM3": llama(model_type="smollm3"),
    "Llama with biases": llama(attention_bias=True, mlp_bias=True),
    "Qwen2-MoE with a dense layer": QWEN2_MOE | {"mlp_only_layers": [0]},
    "Qwen3-MoE with a dense layer": QWEN3_MOE | {"decoder_sparse_step": 2},
    "Gemma 3 with a pooling head": GEMMA_3 | {"vision_config": {**GEMMA_3["vision_config"], "vision_use_head": True}},
    "DeepSeek-V3 with sparse layers": DEEPSEEK_V3 | {"first_k_dense_replace": 1, "n_shared_experts": 2},
    "DeepSeek-V3 with full queries and biases": DEEPSEEK_V3 | {"q_lora_rank": None, "attention_bias": True},
    "Llama 4 Maverick": LLAMA_4 | {"num_local_experts": 128, "interleave_moe_layer_step": 2},
    "Llama 4 with named layers": LLAMA_4 | {"moe_layers": [0], "attention_bias": True, "use_qk_norm": False},
    "Falcon of the new architecture": FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
    "Falcon one after the other": FALCON | {"parallel_attn": False, "multi_query": False, "bias": True},
    "StarCoder2 without biases": MODELS["StarCoder2-3B"][0] | {"use_bias": False},
}
BY_CLASS: dict[str, Config] = {
    f"{kind} by its class alone": {"model_type": kind, "n_layer" if kind == "gpt2" else "num_hidden_layers": 2}
    for kind in KNOWN_FAMILIES
    if kind != "ministral"
}
"""What is absent is what the class of Transformers takes for it; Ministral's takes too little to be computed with."""
CONFIGS = {name: config for name, (config, _) in MODELS.items()} | OTHERS | BY_CLASS
ADAPTERS = {
    "all": LoraConfig(rank=3),
    "query and value": LoraConfig(rank=3, layers=Layers.QUERY_VALUE),
    "attention": LoraConfig(rank=3, layers=Layers.ATTENTION),
    "DoRA": LoraConfig(rank=3, variant=Variant.DORA),
}

NONE_LEFT = {
    (name, Layers.QUERY_VALUE)
    for name in ("DeepSeek-V3", "DeepSeek-V3 with sparse layers", "deepseek_v3 by its class alone")
}
"""Presets that find nothing: queries of fewer numbers are named otherwise."""


@pytest.mark.parametrize("name", CONFIGS)
def test_names_sizes_and_trained_parameters_are_those_of_the_model(name: str, tmp_path: Path) -> None:
    """Of Transformers' model and PEFT's adapters on it."""
    config = json.loads(json.dumps(CONFIGS[name]))
    for section in (config, config.get("text_config", {}), config.get("vision_config", {})):
        section.update({key: value for key, value in SMALLER.items() if key in section})
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    base = Base(folder=tmp_path, name=name, revision="none", model_type=config["model_type"])
    shape = shape_of(config)
    loaded = skeleton(base)
    assert {full: (module.inputs, module.outputs) for _, _, full, module in shape.modules()} == loaded.linear
    assert shape.parameters == sum(parameter.numel() for parameter in loaded.model.parameters())
    for lora in ADAPTERS.values():
        model = skeleton(base)
        if (name, lora.layers) in NONE_LEFT:
            with pytest.raises(ConfigError, match="leaves no module"):
                plan_adapter(lora, model.model, model.linear, Quantization.NONE)
            with pytest.raises(fit.AdapterError, match="leaves no module"):
                fit.plan_adapter(lora, shape)
            continue
        adapted = put_on(model.model, plan_adapter(lora, model.model, model.linear, Quantization.NONE), empty=True)
        trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
        frozen = sum(p.numel() for n, p in adapted.named_parameters() if p.requires_grad and "lora_" not in n)
        expected = fit.plan_adapter(lora, shape)
        assert expected.parameters == trained - frozen
        names = plan_adapter(lora, model.model, model.linear, Quantization.NONE).names
        assert set(target_names(shape, expected)) == set(names)


@pytest.mark.parametrize("names", [("lm_head",), ("embed_tokens",), ("embed_tokens", "lm_head")])
def test_tied_embeddings_are_trained_once_whatever_they_are_called_and_written_twice(
    names: tuple[str, ...], tiny_base: Base, cpu: Device, tmp_path: Path
) -> None:
    """By the model in memory, and by the file that it leaves."""
    lora = LoraConfig(rank=3, modules_to_save=names)
    expected = fit.plan_adapter(lora, shape_in(tiny_base.folder, "tiny"))
    adapted = variants.fresh(tiny_base, cpu, lora)
    assert expected.parameters == adapted.trainable_parameters
    save_adapter(adapted.model, adapted.starts, tmp_path)
    written = read_entries(tmp_path / "adapter_model.safetensors")
    assert expected.file_bytes == sum(entry.size_bytes for entry in written)
