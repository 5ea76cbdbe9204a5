"""Every option of the adapter reaches PEFT, and what the model lacks is reported before its weights are read."""

import dataclasses
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from tests.trainer import tiny, variants
from tests.trainer.conftest import make_config
from tests.trainer.families import COUNTED, make_family
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from lora_trainer.errors import ConfigError
from lora_trainer.model.adapter import adapted_names, check_on, plan_adapter
from lora_trainer.model.device import Device
from lora_trainer.model.linear import linear_modules
from lora_trainer.model.loading import Loaded, adapt, load_model, skeleton
from lora_trainer.model.options import check_options
from lora_trainer.model.recompute import is_recomputed
from lora_trainer.plan.hint_checks import LeftAlone
from lora_trainer.spec.config import (
    ActivationCheckpointing,
    Init,
    LoraConfig,
    Quantization,
    Scaling,
    Variant,
)
from lora_trainer.storage.base import Base, open_folder

LORA = LoraConfig(rank=4, alpha=8)
AUTO, NONE, SELECTIVE, FULL = ActivationCheckpointing


def layers(model: Any) -> dict[str, Any]:
    """Adapted linear modules by name."""
    return {name: module for name, module in model.base_model.model.named_modules() if isinstance(module, LoraLinear)}


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A mixture of experts."""
    return open_folder(variants.make_mixture(tmp_path_factory.mktemp("models") / "mixture"))


@pytest.mark.parametrize(
    ("lora", "quantization", "sentence"),
    [
        ({"layerIndices": [0, 2]}, None, "lora.layerIndices holds 2: the model has the layers 0 to 1"),
        (
            {"layers": "Attention", "rankPattern": {"up_proj": 8}},
            None,
            'lora.rankPattern names "up_proj": no adapted module ends so; adapted are q_proj, k_proj, v_proj, o_proj',
        ),
        ({"alphaPattern": {"proj": 8}}, None, 'lora.alphaPattern names "proj": no adapted module ends so'),
        (
            {"modulesToSave": ["classifier"]},
            None,
            'lora.modulesToSave names "classifier": the model has no such module; it has model, embed_tokens, layers',
        ),
        ({"modulesToSave": ["layers"]}, None, "this is a list of modules; name the modules in it"),
        ({"modulesToSave": ["model"]}, None, "leave no module to adapt"),
        (
            {"modulesToSave": ["down_proj"]},
            "NF4",
            'names "down_proj": its weights are stored with quantization NF4, so that they cannot be trained whole',
        ),
        (
            {"targetParameters": ["experts.w1"]},
            None,
            'lora.targetParameters names "experts.w1": the model has no such matrix; outside of linear modules',
        ),
        ({"targetParameters": ["q_proj.weight"]}, None, "belongs to a linear module or to the embeddings"),
        ({"targetParameters": ["embed_tokens.weight"]}, None, "belongs to a linear module or to the embeddings"),
        (
            {"init": "PiSSA", "rank": 40},
            None,
            "lora.init is PiSSA with rank 40: model.layers.0.self_attn.k_proj has only 32 directions to take out",
        ),
        ({"layers": None, "targetModules": ["wq"]}, None, 'lora.targetModules is "wq"'),
        ({"variant": "DoRA"}, "INT8", "lora.variant is DoRA with quantization INT8"),
    ],
)
def test_what_the_model_lacks_is_reported_with_what_it_has(
    tiny_base: Base, cpu: Device, lora: Mapping[str, Any], quantization: str | None, sentence: str
) -> None:
    """One sentence with field, value, rule and remedy."""
    given = {name: value for name, value in lora.items() if value is not None}
    config = make_config(lora=given, quantization=quantization)
    with pytest.raises(ConfigError) as caught:
        check_options(tiny_base, config, cpu)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_are_checked_without_weights(tmp_path: Path, tiny_folder: Path, cpu: Device) -> None:
    """A model whose weights cannot be read passes, and fails by its names."""
    folder = shutil.copytree(tiny_folder, tmp_path / "tiny")
    base = open_folder(folder)
    (folder / "model.safetensors").write_bytes(b"nothing")
    check_options(base, make_config(lora={"modulesToSave": ["lm_head"], "variant": "DoRA", "layerIndices": [1]}), cpu)
    with pytest.raises(ConfigError, match="the model has the layers 0 to 1"):
        check_options(base, make_config(lora={"layerIndices": [7]}), cpu)


def test_a_run_shows_no_warning_of_the_libraries_about_each_other(tiny_base: Base, cpu: Device) -> None:
    """PEFT asks Transformers in an old way, which would warn every user of every run to change their code."""
    loaded = load_model(tiny_base, Quantization.NONE, cpu)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapt(loaded, LoraConfig(rank=4, alpha=8), tiny_base, cpu, 1)
    assert [str(warning.message) for warning in caught] == []


def test_the_longest_ending_of_a_pattern_counts(tiny_base: Base, cpu: Device) -> None:
    """Whatever the order in which they are written."""
    pattern = {"q_proj": 8, "1.self_attn.q_proj": 2}
    for given in (pattern, dict(reversed(pattern.items()))):
        lora = dataclasses.replace(LORA, rank_pattern=given, alpha_pattern={"v_proj": 3})
        found = layers(variants.fresh(tiny_base, cpu, lora).model)
        assert found["model.layers.0.self_attn.q_proj"].r["default"] == 8
        assert found["model.layers.1.self_attn.q_proj"].r["default"] == 2
        assert found["model.layers.1.self_attn.k_proj"].r["default"] == 4
        assert found["model.layers.1.self_attn.v_proj"].scaling["default"] == 3 / 4


def test_a_dot_in_a_pattern_is_a_dot(tiny_base: Base) -> None:
    """PEFT reads regular expressions, the manifest names."""
    empty = skeleton(tiny_base)
    lora = dataclasses.replace(LORA, rank_pattern={"self.attn.q_proj": 8})
    with pytest.raises(ConfigError, match="no adapted module ends so"):
        plan_adapter(lora, empty.model, empty.linear, Quantization.NONE)


def test_scale_and_variant_are_peft_s(tiny_base: Base, cpu: Device) -> None:
    """alpha / sqrt(rank), and a magnitude for each output."""
    lora = dataclasses.replace(LORA, scaling=Scaling.RANK_STABILIZED, variant=Variant.DORA)
    for layer in layers(variants.fresh(tiny_base, cpu, lora).model).values():
        assert layer.scaling["default"] == 8 / 2
        assert layer.lora_magnitude_vector["default"].weight.shape == (layer.out_features,)


@pytest.mark.parametrize(("init", "spread"), [(Init.DEFAULT, 1 / (3 * 64) ** 0.5), (Init.GAUSSIAN, 1 / 4)])
def test_random_start_values_have_the_spread_of_their_kind(
    tiny_base: Base, cpu: Device, init: Init, spread: float
) -> None:
    """Uniform with Kaiming's bound, or normal with 1 / rank; B is zero, so that the model starts as the base."""
    found = layers(variants.fresh(tiny_base, cpu, dataclasses.replace(LORA, init=init)).model)
    layer = found["model.layers.0.self_attn.q_proj"]
    assert float(layer.lora_A["default"].weight.detach().std()) == pytest.approx(spread, rel=0.15)
    assert not layer.lora_B["default"].weight.any()


def test_only_the_layers_that_were_named_are_adapted(tiny_base: Base, cpu: Device) -> None:
    """And PEFT counts them from the list of decoder layers."""
    adapted = variants.fresh(tiny_base, cpu, dataclasses.replace(LORA, layer_indices=(1,)))
    assert {name.split(".")[2] for name in layers(adapted.model)} == {"1"}
    assert adapted.model.peft_config["default"].layers_pattern == ["layers"]


def test_a_name_that_others_end_with_stands_for_itself(tiny_base: Base, cpu: Device) -> None:
    """PEFT would also take `input_layernorm` for `norm`."""
    adapted = variants.fresh(tiny_base, cpu, dataclasses.replace(LORA, modules_to_save=("norm",)))
    assert "model.norm" in adapted_names(adapted.model)
    assert not any("layernorm" in name for name in adapted_names(adapted.model))


def test_tied_embeddings_stay_tied_when_trained_whole(tiny_base: Base, cpu: Device) -> None:
    """One matrix, counted once, whose copy is the head that computes the loss."""
    plain = variants.fresh(tiny_base, cpu, LORA).trainable_parameters
    for name in ("lm_head", "embed_tokens"):
        adapted = variants.fresh(tiny_base, cpu, dataclasses.replace(LORA, modules_to_save=(name,)))
        model: Any = adapted.model.get_base_model()
        copy: torch.Tensor = model.get_input_embeddings().modules_to_save["default"].weight
        assert adapted.head.weight is copy
        assert copy.requires_grad
        assert adapted.trainable_parameters == plain + copy.numel()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_trained_is_fp32(tiny_base: Base, cpu: Device, dtype: torch.dtype) -> None:
    """16 bits round small updates away, and the scaler of fp16 losses takes no fp16 gradients."""
    lora = dataclasses.replace(LORA, variant=Variant.DORA, modules_to_save=("norm", "embed_tokens"))
    adapted = variants.fresh(tiny_base, variants.with_type(cpu, dtype), lora)
    kinds = {(parameter.requires_grad, parameter.dtype) for parameter in adapted.model.parameters()}
    assert kinds == {(True, torch.float32), (False, dtype)}


def test_experts_that_are_not_adapted_are_reported(mixture: Base, cpu: Device) -> None:
    """They are no linear modules, so that "all linear" passes over them in silence."""
    assert variants.fresh(mixture, cpu, LORA).left_alone.experts == "experts (experts.gate_up_proj, experts.down_proj)"
    lora = dataclasses.replace(LORA, target_parameters=("gate_up_proj", "down_proj"))
    adapted = variants.fresh(mixture, cpu, lora)
    assert adapted.left_alone == LeftAlone(kind=adapted.model.config.model_type)
    assert {name for name in adapted_names(adapted.model) if "experts" in name} == {
        f"model.layers.{layer}.mlp.experts.{name}" for layer in (0, 1) for name in ("gate_up_proj", "down_proj")
    }


@pytest.mark.parametrize(
    ("kind", "name"), [("llama4_text", "router"), ("mixtral", "experts"), ("deepseek_v3", "up_proj")]
)
def test_what_is_skipped_anyway_may_be_excluded(tmp_path: Path, kind: str, name: str) -> None:
    """A parent of what is adapted is no such name, since it excludes nothing in it."""
    empty = skeleton(open_folder(make_family(tmp_path, kind)))
    plans = [
        plan_adapter(dataclasses.replace(LORA, exclude_modules=names), empty.model, empty.linear, Quantization.NONE)
        for names in ((), (name,))
    ]
    assert plans[0].modules == plans[1].modules
    lora = dataclasses.replace(LORA, exclude_modules=("self_attn",))
    with pytest.raises(ConfigError, match=r'lora\.excludeModules is "self_attn": the model has no such linear module'):
        plan_adapter(lora, empty.model, empty.linear, Quantization.NONE)


def test_a_model_that_clamps_its_weights_is_not_quantized(tmp_path: Path, cpu: Device) -> None:
    """It would clamp the bytes that bitsandbytes packs them into."""
    base = open_folder(make_family(tmp_path, "gemma3n_text"))
    with pytest.raises(ConfigError, match=r"quantization is NF4: models of the kind 'gemma3n_text'"):
        check_options(base, make_config(quantization="NF4"), cpu)


def test_a_mixture_that_would_stay_large_is_not_quantized(mixture: Base, cpu: Device) -> None:
    """bitsandbytes leaves experts as they are."""
    loaded = load_model(mixture, Quantization.NF4, cpu)
    assert loaded.model.get_parameter("model.layers.0.mlp.experts.down_proj").is_floating_point()
    with pytest.raises(ConfigError, match=r"quantization is NF4: \d+% of the model's weights are experts"):
        check_options(mixture, make_config(quantization="NF4"), cpu)
    check_options(mixture, make_config(), cpu)


def test_names_that_peft_takes_for_experts_are_passed_over_or_refused(tmp_path: Path, cpu: Device) -> None:
    """The first, plain layer of this kind bears the names that experts had in old files. A preset goes without them and
    says so; who names them is refused."""
    tokenizer = tiny.make_tokenizer()
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        mlp_only_layers=[0],
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
    )
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    base = open_folder(tmp_path)
    with pytest.raises(ConfigError, match=r"PEFT takes .* of the kind 'qwen3_moe' for its experts"):
        check_options(base, make_config(lora={"targetModules": ["q_proj", "gate_proj", "up_proj", "down_proj"]}), cpu)
    check_options(base, make_config(), cpu)
    adapted = adapt(load_model(base, Quantization.NONE, cpu), LoraConfig(rank=4), base, cpu, 0)
    assert adapted.target_modules == ("q_proj", "k_proj", "v_proj", "o_proj")
    assert adapted.left_alone.passed_over == "gate_proj, up_proj, down_proj"
    lora = LoraConfig(rank=4, target_parameters=("mlp.up_proj.weight",))
    adapted = adapt(load_model(base, Quantization.NONE, cpu), lora, base, cpu, 0)
    assert "model.layers.0.mlp.up_proj.weight" in adapted_names(adapted.model)
    assert adapted.left_alone.passed_over == "gate_proj, down_proj"


@pytest.mark.parametrize("kind", list(COUNTED))
def test_modules_of_a_list_are_not_named_like_layers(tmp_path: Path, kind: str) -> None:
    """PEFT would take `0` for the first layer, too."""
    empty = skeleton(open_folder(make_family(tmp_path, kind)))
    plan = plan_adapter(LORA, empty.model, empty.linear, Quantization.NONE)
    assert set(plan.modules) == set(empty.linear)
    check_on(empty.model, plan)


def test_a_refusal_of_peft_is_a_sentence_without_the_module_that_it_prints(tmp_path: Path) -> None:
    """Which would be the whole layer, cut somewhere."""
    empty = skeleton(open_folder(make_family(tmp_path, "zamba2")))
    plan = plan_adapter(LORA, empty.model, empty.linear, Quantization.NONE)
    with pytest.raises(ConfigError) as caught:
        check_on(empty.model, dataclasses.replace(plan, settings={**plan.settings, "target_modules": ["0"]}))
    assert str(caught.value) == (
        "lora: PEFT refuses this adapter for the model (ValueError: Target module Zamba2MambaDecoderLayer is not "
        "supported); name the modules to adapt in lora.targetModules, or those to leave alone in lora.excludeModules"
    )


@pytest.mark.parametrize(
    ("lora", "output", "field"),
    [
        ({"init": "PiSSA"}, {}, "lora.init is PiSSA"),
        ({}, {"uri": "pvc://adapters/a", "merge": "Merged"}, "output.merge is Merged"),
    ],
)
def test_adapters_of_layers_that_share_a_weight_stay_beside_it(
    tmp_path: Path, cpu: Device, lora: dict[str, Any], output: dict[str, Any], field: str
) -> None:
    """In it would be those of all of them."""
    base = open_folder(make_family(tmp_path, "zamba2"))
    changes = {"lora": lora, **({"output": output} if output else {})}
    with pytest.raises(ConfigError, match=rf"{field}: .*layers\.1.* and .*layers\.3.* share one weight"):
        check_options(base, make_config(**changes), cpu)
    check_options(base, make_config(**{**changes, "lora": {**lora, "targetModules": ["in_proj"]}}), cpu)


@pytest.mark.parametrize(
    ("wanted", "planned", "recomputed"),
    [
        (AUTO, None, NONE),
        (AUTO, NONE, NONE),
        (AUTO, SELECTIVE, SELECTIVE),
        (AUTO, FULL, FULL),
        (NONE, FULL, NONE),
        (SELECTIVE, FULL, SELECTIVE),
        (FULL, NONE, FULL),
    ],
)
def test_activations_are_recomputed_where_asked_for(
    tiny_base: Base,
    cpu: Device,
    wanted: ActivationCheckpointing,
    planned: ActivationCheckpointing | None,
    recomputed: ActivationCheckpointing,
) -> None:
    """Where that is left open, as the plan says; without one a small model on a CPU keeps them. Only what is kept by
    nobody's wish may be recomputed later."""
    loaded = load_model(tiny_base, Quantization.NONE, cpu)
    adapted = adapt(loaded, LORA, tiny_base, cpu, 1, checkpointing=wanted, planned=planned)
    assert adapted.checkpointing is recomputed
    decoder = adapted.model.get_base_model().model
    assert bool(decoder.gradient_checkpointing) is (recomputed is FULL)
    of_mlps = [is_recomputed(layer.mlp) for layer in decoder.layers]
    assert of_mlps == [recomputed is SELECTIVE] * len(of_mlps)
    assert adapted.may_recompute is (wanted is AUTO and recomputed is not FULL)


def test_mlps_that_a_model_has_not_are_recomputed_with_all_the_rest(tiny_base: Base, cpu: Device) -> None:
    """As a plan takes them for Llama's; what is asked for by name is refused with a sentence."""

    def other(name: str = "mixer") -> Loaded:
        loaded = load_model(tiny_base, Quantization.NONE, cpu)
        layer = loaded.model.model.layers[0]
        setattr(layer, name, layer.mlp)
        del layer.mlp
        return dataclasses.replace(loaded, linear=linear_modules(loaded.model, loaded.head))

    with pytest.raises(ConfigError, match=r"activationCheckpointing is Selective: .* cannot recompute MLPs"):
        adapt(other(), LORA, tiny_base, cpu, 1, checkpointing=SELECTIVE)
    assert adapt(other(), LORA, tiny_base, cpu, 1, planned=SELECTIVE).checkpointing is FULL
    # As Llama 4 calls it.
    assert adapt(other("feed_forward"), LORA, tiny_base, cpu, 1, planned=SELECTIVE).checkpointing is SELECTIVE
