"""The fit model against the models themselves, built without weights: names, sizes and what an adapter trains."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.trainer import variants
from tests.unit.fit_models import (
    DEEPSEEK_V3,
    FURTHER,
    GEMMA_3,
    LLAMA_4,
    MODELS,
    QWEN2_MOE,
    QWEN3_MOE,
    Config,
    llama,
)
from torch import nn

from lora_trainer.errors import ConfigError
from lora_trainer.model.adapter import plan_adapter, put_on
from lora_trainer.model.convert import copy_adapter, save_adapter
from lora_trainer.model.device import Device
from lora_trainer.model.loading import Loaded, skeleton
from lora_trainer.plan import adapter as fit
from lora_trainer.plan.adapter import kinds
from lora_trainer.plan.architecture import ModelArchitecture
from lora_trainer.plan.families import DEFAULTS, architecture_of
from lora_trainer.spec.config import Layers, LoraConfig, Quantization, Variant
from lora_trainer.storage.base import Base
from lora_trainer.storage.base_architecture import architecture_in
from lora_trainer.storage.tensor_files import read_entries
from lora_trainer.train.preflight import target_names

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
    f"{kind} by its class alone": {"model_type": kind, "num_hidden_layers": 2}
    for kind, known in DEFAULTS.items()
    if "hidden_size" in known and kind != "ministral"
}
"""What is absent is what the class of Transformers takes for it; Ministral's takes too little to be computed with."""
PUBLIC = {name: config for name, (config, _) in MODELS.items()} | FURTHER
CONFIGS = PUBLIC | OTHERS | BY_CLASS
EXPERTS = ("experts.gate_up_proj", "experts.down_proj")


@pytest.fixture
def no_start_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights without numbers need none, and to draw them is half of the work."""
    monkeypatch.setattr(nn.Linear, "reset_parameters", lambda _module: None)
    monkeypatch.setattr(nn.init, "kaiming_uniform_", lambda tensor, **_options: tensor)


def presets() -> Iterator[LoraConfig]:
    """Each of them, and DoRA."""
    yield from (LoraConfig(rank=3, layers=layers) for layers in Layers)
    yield LoraConfig(rank=3, variant=Variant.DORA)


def named(shape: ModelArchitecture) -> Iterator[LoraConfig]:
    """Each other way to say what is trained, with names of the model's."""
    modules = [(name, module.name) for _, _, name, module in shape.modules() if not module.reserved]
    full, (first, *_, last) = modules[-1][0], kinds(name for name, _ in modules)
    yield LoraConfig(rank=3, layers=None, target_modules=(last, first))
    yield LoraConfig(rank=3, exclude_modules=(first,))
    yield LoraConfig(rank=3, layer_indices=(1,))
    # The longest ending counts; alpha changes no count.
    yield LoraConfig(rank=3, rank_pattern={last: 7, full: 2}, alpha_pattern={first: 9})
    yield LoraConfig(rank=3, modules_to_save=(first,))
    if shape.head[1]:
        # Without weights PEFT does not know which of them are one.
        yield LoraConfig(rank=3, modules_to_save=kinds([shape.embeddings[0], shape.head[0]]))
    endings = tuple(dict.fromkeys(".".join(name.split(".")[-2:]) for _, _, name, _ in shape.stacks()))
    if endings:
        yield LoraConfig(rank=3, target_parameters=EXPERTS)
        yield LoraConfig(rank=3, target_parameters=endings, rank_pattern={EXPERTS[1]: 5, "gate_up_proj": 2})
        yield LoraConfig(rank=3, target_parameters=EXPERTS, layer_indices=(1,))


def none_left(lora: LoraConfig, shape: ModelArchitecture) -> bool:
    """Presets that find nothing: queries of fewer numbers are named otherwise, and most mixtures' experts are no linear
    modules, or have names that PEFT takes for such."""
    if lora.layers is Layers.QUERY_VALUE:
        return "q_a_proj" in kinds(name for _, _, name, _ in shape.modules())
    return lora.layers is Layers.MLP and shape.family in {"mixtral", "gpt_oss", "qwen3_moe", "deepseek_v3"}


def loose(loaded: Loaded, prefix: str) -> dict[str, int]:
    """Sizes of the layers' matrices, and stacks of them, that belong to no linear module."""
    return {
        name: parameter.numel()
        for name, parameter in loaded.model.named_parameters()
        if parameter.dim() > 1 and name.startswith(f"{prefix}.") and name.rpartition(".")[0] not in loaded.linear
    }


def of_two_layers(name: str, folder: Path) -> tuple[Base, Config]:
    """One of `CONFIGS`, in a folder."""
    config = json.loads(json.dumps(CONFIGS[name]))
    for section in (config, config.get("text_config", {}), config.get("vision_config", {})):
        section.update({key: value for key, value in SMALLER.items() if key in section})
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return Base(folder=folder, name=name, revision="none", model_type=config["model_type"]), config


@pytest.mark.usefixtures("no_start_values")
@pytest.mark.parametrize("name", CONFIGS)
def test_names_sizes_and_trained_parameters_are_those_of_the_model(name: str, tmp_path: Path) -> None:
    """Of Transformers' model and PEFT's adapters on it."""
    base, config = of_two_layers(name, tmp_path)
    shape = architecture_of(config)
    loaded = skeleton(base)
    assert {full: (module.inputs, module.outputs) for _, _, full, module in shape.modules()} == loaded.linear
    assert shape.parameters == sum(parameter.numel() for parameter in loaded.model.parameters())
    assert {full: stack.weights for _, _, full, stack in shape.stacks()} == loose(loaded, shape.prefix)
    for lora in presets() if name in BY_CLASS else (*presets(), *named(shape)):
        model = skeleton(base)
        if none_left(lora, shape):
            with pytest.raises(ConfigError, match="leaves no module"):
                plan_adapter(lora, model.model, model.linear, Quantization.NONE)
            with pytest.raises(fit.AdapterError, match="leaves no module"):
                fit.plan_adapter(lora, shape)
            continue
        plan = plan_adapter(lora, model.model, model.linear, Quantization.NONE)
        adapted = put_on(model.model, plan, empty=True)
        expected = fit.plan_adapter(lora, shape)
        assert expected.parameters == sum(p.numel() for p in adapted.parameters() if p.requires_grad), lora
        if not lora.layer_indices:
            # PEFT is told the layers apart from the names.
            assert set(target_names(shape, expected)) == set(plan.names), lora


@pytest.mark.parametrize(
    ("name", "lora"),
    [
        ("Llama-3-8B", LoraConfig(target_parameters=EXPERTS)),
        ("Llama-3-8B", LoraConfig(target_parameters=("q_proj.weight",))),
        ("Llama-3-8B", LoraConfig(target_parameters=("embed_tokens.weight",))),
        ("Mixtral-8x7B", LoraConfig(target_parameters=("experts.gate_up_proj", "experts.w1"))),
        ("Mixtral-8x7B", LoraConfig(target_parameters=("self_attn.o_proj.weight",), layer_indices=(1,))),
        ("Qwen3-30B-A3B", LoraConfig(target_parameters=("experts",))),
        ("gpt-oss-20b", LoraConfig(target_parameters=("experts.gate_up",))),
        ("DeepSeek-V3 with sparse layers", LoraConfig(target_parameters=("shared_experts.down_proj",))),
    ],
    ids=lambda value: value if isinstance(value, str) else ", ".join(value.target_parameters),
)
def test_a_matrix_that_the_model_lacks_is_refused_in_the_trainers_words(
    name: str, lora: LoraConfig, tmp_path: Path
) -> None:
    """Before a GPU is asked for; what belongs to a linear module, too."""
    base, config = of_two_layers(name, tmp_path)
    model = skeleton(base)
    with pytest.raises(ConfigError) as trainers:
        plan_adapter(lora, model.model, model.linear, Quantization.NONE)
    with pytest.raises(fit.AdapterError) as found:
        fit.plan_adapter(lora, architecture_of(config))
    assert str(found.value) == str(trainers.value)


def test_the_weight_of_a_module_without_an_adapter_may_have_one_of_its_own(tmp_path: Path) -> None:
    """As PEFT counts it."""
    base, config = of_two_layers("Llama-3-8B", tmp_path)
    lora = LoraConfig(rank=3, layers=Layers.ATTENTION, target_parameters=("up_proj.weight",))
    model = skeleton(base)
    adapted = put_on(model.model, plan_adapter(lora, model.model, model.linear, Quantization.NONE), empty=True)
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert fit.plan_adapter(lora, architecture_of(config)).parameters == trained


@pytest.mark.parametrize("names", [("lm_head",), ("embed_tokens",), ("embed_tokens", "lm_head")])
def test_tied_embeddings_are_trained_once_whatever_they_are_called_and_written_twice(
    names: tuple[str, ...], tiny_base: Base, cpu: Device, tmp_path: Path
) -> None:
    """By the model in memory, and by the file that it leaves."""
    lora = LoraConfig(rank=3, modules_to_save=names)
    expected = fit.plan_adapter(lora, architecture_in(tiny_base.folder, "tiny"))
    adapted = variants.fresh(tiny_base, cpu, lora)
    assert expected.parameters == adapted.trainable_parameters
    save_adapter(copy_adapter(adapted.model, adapted.starts), tmp_path)
    written = read_entries(tmp_path / "adapter_model.safetensors")
    assert expected.file_bytes == sum(entry.size_bytes for entry in written)
