"""A model's shape by its `config.json`: counts of public models, names, and whatever else somebody may put there."""

import json
import math
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.fit_models import (
    GEMMA_3,
    GPT2,
    GPT_OSS,
    LLAMA_4,
    MIXTRAL,
    MODELS,
    PHI_MOE,
    QWEN2_MOE,
    QWEN3_MOE,
    Config,
    llama,
)

from lora_trainer.plan.adapter import AdapterError, plan_adapter
from lora_trainer.plan.architecture import EXACT, GUESSED, MIXTURE, ArchitectureError, UncountedError, read_json
from lora_trainer.plan.families import KNOWN_FAMILIES, architecture_of, counted
from lora_trainer.spec.config import Init, Layers, LoraConfig, Variant
from lora_trainer.spec.gpus import KNOWN, DeviceError, find_gpu, least_memory

EXPERTS = ("experts.gate_up_proj", "experts.down_proj")


@pytest.mark.parametrize("name", MODELS)
def test_the_parameters_of_a_public_model_are_counted_exactly(name: str) -> None:
    """As its files hold them, embeddings, norms, biases and vision tower included."""
    config, parameters = MODELS[name]
    shape = architecture_of(config)
    assert shape.parameters == parameters
    assert shape.spread < GUESSED


@pytest.mark.parametrize(
    ("name", "stray"),
    [
        ("GPT-2", {"intermediate_size": 9999, "num_key_value_heads": 4, "head_dim": 16}),
        ("Pythia", {"num_key_value_heads": 4, "head_dim": 16}),
    ],
    ids=["GPT-2", "GPT-NeoX"],
)
def test_what_transformers_does_not_read_of_a_configuration_counts_for_nothing(name: str, stray: Config) -> None:
    """Such keys stand in files that somebody converted."""
    config = next(config for key, (config, _) in MODELS.items() if key.startswith(name))
    assert architecture_of(config | stray).layers == architecture_of(config).layers


def test_every_known_family_has_a_public_model_or_the_layers_of_one() -> None:
    """So that no family's counts are unproven without somebody having said so."""
    kinds = {config.get("text_config", config)["model_type"] for config, _ in MODELS.values()}
    assert set(KNOWN_FAMILIES) - kinds == {"granite", "ministral", "smollm3"}


@pytest.mark.parametrize(
    ("lora", "parameters"),
    [
        (LoraConfig(rank=1), 2_621_440),
        (LoraConfig(), 41_943_040),
        (LoraConfig(rank=64), 167_772_160),
        (LoraConfig(rank=64, layers=Layers.QUERY_VALUE), 27_262_976),
        (LoraConfig(rank=64, layers=None, target_modules=("self_attn.q_proj", "v_proj")), 27_262_976),
        (LoraConfig(rank=1, layer_indices=(0, 31)), 2 * 81_920),
        (LoraConfig(rank=1, exclude_modules=("down_proj",)), 2_621_440 - 32 * (4096 + 14336)),
        (LoraConfig(rank=1, rank_pattern={"v_proj": 3, "layers.0.self_attn.v_proj": 1}), 2_621_440 + 2 * 31 * 5120),
        (LoraConfig(rank=1, rank_pattern={"v_proj": 3}), 2_621_440 + 2 * 32 * (4096 + 1024)),
        (LoraConfig(rank=1, variant=Variant.DORA), 2_621_440 + 32 * (4096 * 3 + 1024 * 2 + 2 * 14336)),
        (LoraConfig(rank=1, modules_to_save=("lm_head",)), 2_621_440 + 128256 * 4096),
        (LoraConfig(rank=1, modules_to_save=("lm_head", "embed_tokens")), 2_621_440 + 2 * 128256 * 4096),
        (LoraConfig(rank=1, modules_to_save=("lm_head", "model.lm_head", "head")), 2_621_440 + 128256 * 4096),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)
def test_the_trained_parameters_of_llama_3_8b(lora: LoraConfig, parameters: int) -> None:
    """Presets, endings, layers, ranks of their own, DoRA's lengths, and modules that are trained whole."""
    adapter = plan_adapter(lora, architecture_of(llama()))
    assert adapter.parameters == parameters
    assert adapter.file_bytes == 4 * parameters


@pytest.mark.parametrize(
    ("config", "layers", "modules"),
    [
        (GPT2, Layers.QUERY_VALUE, 12),
        (GPT2, Layers.MLP, 24),
        (MIXTRAL, Layers.ALL_LINEAR, 4 * 32),
        # Four of attention, the shared expert's three, and its gate.
        (QWEN2_MOE, Layers.ALL_LINEAR, 8 * 24),
        # PEFT takes the names of dense layers for experts'.
        (QWEN3_MOE | {"mlp_only_layers": [0]}, Layers.ALL_LINEAR, 4 * 48),
        (GEMMA_3, Layers.ATTENTION, 4 * 34),
    ],
)
def test_a_preset_finds_the_modules_of_a_family(config: Config, layers: Layers, modules: int) -> None:
    """Conv1D's among them; never experts, routers or a tower."""
    assert plan_adapter(LoraConfig(layers=layers), architecture_of(config)).modules == modules


@pytest.mark.parametrize("names", [("lm_head",), ("embed_tokens",), ("embed_tokens", "lm_head")])
def test_tied_embeddings_are_trained_as_one_matrix_whatever_they_are_called(names: tuple[str, ...]) -> None:
    """And then all logits exist at once."""
    adapter = plan_adapter(LoraConfig(modules_to_save=names), architecture_of(llama(tie_word_embeddings=True)))
    assert (adapter.whole, adapter.head_trained) == (128256 * 4096, True)


@pytest.mark.parametrize(
    ("config", "lora", "parameters"),
    [
        (MIXTRAL, LoraConfig(target_parameters=EXPERTS), 223_346_688),
        (MIXTRAL, LoraConfig(target_parameters=EXPERTS, layer_indices=(0,)), 223_346_688 // 32),
        (MIXTRAL, LoraConfig(target_parameters=("down_proj",)), 13_631_488 + 32 * 16 * 8 * (14336 + 4096)),
        (
            MIXTRAL,
            LoraConfig(target_parameters=("gate.weight",), rank_pattern={"mlp.gate.weight": 4}),
            13_631_488 + 32 * 4 * (4096 + 8),
        ),
        (
            GPT_OSS,
            LoraConfig(rank=3, target_parameters=EXPERTS),
            24 * 3 * (2880 * 2 * 2 + 4096 * 2 + 512 * 2 + 32 * (3 * 2880 + 2 * 2880)),
        ),
        (
            llama(),
            LoraConfig(rank=1, layers=Layers.ATTENTION, target_parameters=("up_proj.weight",)),
            32 * (2 * 8192 + 2 * 5120 + 4096 + 14336),
        ),
    ],
    ids=["Mixtral", "one layer", "downs", "the router with a rank of its own", "gpt-oss", "a linear module's weight"],
)
def test_an_adapter_outside_of_linear_modules_counts_for_each_matrix(
    config: Config, lora: LoraConfig, parameters: int
) -> None:
    """Of each expert the rank times the sum of its sides."""
    adapter = plan_adapter(lora, architecture_of(config))
    assert adapter.parameters == parameters
    assert bool(adapter.doubts) == (config["model_type"] == "llama")


def test_what_an_unknown_family_has_outside_of_linear_modules_is_not_counted() -> None:
    """And so it is said; a preset that finds nothing is no reason to refuse either."""
    lora = LoraConfig(layers=None, target_modules=("wqkv",), target_parameters=EXPERTS)
    adapter = plan_adapter(lora, architecture_of(llama(model_type="zebra")))
    assert adapter.parameters == 0
    assert [doubt.partition(":")[2] for doubt in adapter.doubts] == [" its adapters are not counted"] * 2


def test_experts_count_whole_and_work_in_part() -> None:
    """Mixtral: 47 billion parameters, 13 billion a token."""
    shape = architecture_of(MIXTRAL)
    assert shape.experts == 8 * 3 * 4096 * 14336 * 32
    assert shape.multiplied == pytest.approx(12.7e9, rel=0.01)
    assert shape.spread == MIXTURE
    assert shape.doubts


def test_some_layers_of_a_mixture_may_be_dense() -> None:
    """Every second one, the first among them, and those that are named."""
    shape = architecture_of(QWEN2_MOE | {"decoder_sparse_step": 2, "mlp_only_layers": [3]})
    assert [bool(layer.experts) for layer in shape.layers[:6]] == [False, True, False, False, False, True]


def test_a_family_that_is_not_known_is_a_guess_and_says_so() -> None:
    """Its modules' names, too: none of them is refused."""
    shape = architecture_of(llama(model_type="zebra"))
    assert shape.spread == GUESSED
    assert "'zebra' is not known here" in shape.doubts[0]
    lora = LoraConfig(layers=None, target_modules=("stripe_proj", "q_proj"), rank_pattern={"stripe_proj": 8})
    assert plan_adapter(lora, shape).modules == 32


@pytest.mark.parametrize("experts", [16, [16, 16]], ids=["a number", "one of each layer"])
def test_a_mixture_that_is_not_known_says_that_its_experts_are_not_counted(experts: Any) -> None:
    """Until the files are; then it says by how much they differ, as of any family."""
    shape = architecture_of(PHI_MOE | {"num_local_experts": experts})
    said = "its experts are not counted: name the model's address, whose files show them, and not its config.json alone"
    assert (shape.mixed, shape.doubts[1:]) == (True, (said,))
    assert said not in counted(shape, shape.parameters).doubts
    (_, difference) = counted(shape, 41_872_527_360).doubts
    assert difference.startswith("the files hold 41,872,527,360 parameters, of which config.json explains 4,1")
    assert not architecture_of(llama(model_type="zebra", num_experts=1, num_local_experts=[])).mixed


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            {"intermediate_size": [8192, 16384]},
            "config.json.intermediate_size is [8192, 16384]: must be a whole number",
        ),
        ({"num_attention_heads": None}, "config.json.num_attention_heads is missing: must be a whole number"),
        ({"num_attention_heads": 2**13}, "config.json.num_attention_heads is 8192: must be at most hidden_size"),
    ],
    ids=["a list of widths, as Gemma 3n's", "another name", "more heads than width"],
)
def test_what_is_not_like_llama_cannot_be_counted_and_is_no_mistake(config: Config, sentence: str) -> None:
    """Its own `config.json` says it so: to take that is no remedy. Of a family that is known it is one."""
    with pytest.raises(UncountedError) as caught:
        architecture_of(llama(model_type="zebra", **config))
    assert sentence in str(caught.value)
    assert str(caught.value).startswith(
        'config.json.model_type is "zebra": must be a family that is known here or like'
    )
    assert str(caught.value).endswith("; run it without a plan, or name another model")
    with pytest.raises(ArchitectureError, match="; take the model's own config"):
        architecture_of(llama(**config))


MOST = {
    key: value
    for key, value in llama(num_experts_per_tok=2).items()
    if key not in {"model_type", "num_key_value_heads"}
}


def test_an_absent_key_is_what_the_class_takes_for_it_and_a_null_is_none() -> None:
    """Published configurations rely on it."""
    assert architecture_of({"model_type": "mistral"}).layers == architecture_of(MODELS["Mistral-7B"][0]).layers
    assert architecture_of({"model_type": "mistral", "num_key_value_heads": None}).layers[0].key_value == 4096
    assert architecture_of({"model_type": "mixtral", **MOST, "num_local_experts": 8}).layers[0].key_value == 1024
    with pytest.raises(UncountedError, match="vocab_size is missing"):
        architecture_of({"model_type": "phi3", **MOST, "vocab_size": None})
    assert len(architecture_of({**GPT2, "n_layer": None, "num_hidden_layers": 3}).layers) == 3


def test_a_tower_that_is_not_known_is_no_part_of_the_count_and_says_so() -> None:
    """Llama's with whatever sees."""
    config = {"model_type": "llava", "text_config": llama(), "vision_config": {"model_type": "clip_vision_model"}}
    shape = architecture_of(config)
    assert shape.parameters == architecture_of(llama()).parameters
    assert shape.spread > EXACT
    assert "is not counted" in shape.doubts[0]


@pytest.mark.parametrize(
    ("model", "share", "spread"),
    [
        (llama(), 0.0005, EXACT),
        (llama(), 0.02, 0.06),
        (llama(), -0.02, 0.06),
        (llama(), 0.5, GUESSED),
        (MIXTRAL, 0.02, MIXTURE + 0.06),
        (llama(model_type="zebra"), 0.02, GUESSED),
    ],
    ids=["buffers", "some more", "some less", "half of it", "of a mixture", "of no known family"],
)
def test_numbers_that_nothing_explains_widen_the_estimate(model: Config, share: float, spread: float) -> None:
    """By what they may take less than counted, up to what makes it a guess."""
    shape = architecture_of(model)
    found = counted(shape, round(shape.parameters / (1 - share)))
    assert found.spread == pytest.approx(spread, rel=1e-3)
    assert len(found.doubts) == len(shape.doubts) + (abs(share) > 0.001)


def test_a_tied_output_embedding_that_is_stored_is_explained() -> None:
    """Some files have it twice; memory has it once."""
    shape = architecture_of(MODELS["SmolLM2-135M"][0])
    assert counted(shape, shape.parameters + shape.embeddings[1]) == shape


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hidden_size": "4096"}, 'config.json.hidden_size is "4096": must be a whole number from 1 to 1,048,576'),
        ({"hidden_size": math.nan}, "config.json.hidden_size is nan: must be a whole number"),
        ({"hidden_size": True}, "config.json.hidden_size is true: must be a whole number"),
        ({"hidden_size": -4096}, "config.json.hidden_size is -4096: must be a whole number"),
        ({"num_hidden_layers": 2**63}, "config.json.num_hidden_layers is 9223372036854775808: must be a whole number"),
        ({"vocab_size": None}, "config.json.vocab_size is missing: must be a whole number from 1 to 33,554,432"),
        ({"num_attention_heads": 8192}, "config.json.num_attention_heads is 8192: must be at most hidden_size (4096)"),
        ({"num_key_value_heads": 64}, "config.json.num_key_value_heads is 64: must be a whole number from 1 to 32"),
        ({"tie_word_embeddings": "no"}, 'config.json.tie_word_embeddings is "no": must be true or false'),
        ({"model_type": None}, "config.json.model_type is missing: must name the family, as in llama"),
        ({"model_type": 7}, "config.json.model_type is 7: must be a string of 1 to 100 printable characters"),
        (
            {"model_type": "ll\x1b[31mama"},
            "config.json.model_type is 'll\\x1b[31mama': must be a string of 1 to 100 printable",
        ),
        ({"text_config": [1]}, "config.json.text_config is [1]: must be an object"),
        ({"is_encoder_decoder": True}, "config.json.is_encoder_decoder is true: must be false"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_configuration_that_no_model_has_is_refused_in_a_sentence(changes: Config, sentence: str) -> None:
    """With field, value, rule and remedy."""
    with pytest.raises(ArchitectureError) as caught:
        architecture_of(llama(**changes))
    assert sentence in str(caught.value)
    assert "; " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "x.json is not JSON"),
        ("[" * 100_000, "x.json cannot be read: it is nested too deeply"),
        ("[1, 2]", "x.json is [1, 2]: must be an object"),
        ("9" * 5000, "x.json is not JSON"),
        (" " * 2**21, "x.json has over 1,048,576 characters"),
    ],
    ids=["cut off", "deep", "list", "long number", "long"],
)
def test_a_file_that_is_no_configuration_is_refused(text: str, sentence: str) -> None:
    """Whatever it is."""
    with pytest.raises(ArchitectureError, match=sentence.replace("[", r"\[")):
        read_json(text, "x.json")


def nested(levels: int) -> str:
    """A model's configuration, with lists in each other beside it."""
    return json.dumps(llama())[:-1] + ', "deep": ' + "[" * levels + "]" * levels + "}"


def test_nine_hundred_nested_levels_are_passed_over_where_nothing_reads_them() -> None:
    """And shown shortly where something does."""
    document = read_json(nested(900), "x.json")
    assert architecture_of(document).parameters == MODELS["Llama-3-8B"][1]
    with pytest.raises(ArchitectureError, match="must be a whole number"):
        architecture_of({**document, "hidden_size": document["deep"]})


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="a later Python reads more levels")
@pytest.mark.parametrize("levels", [1000, 1100])
def test_a_thousand_nested_levels_are_refused_in_a_sentence(levels: int) -> None:
    """As many as Python's own limit, of which its callers take a part."""
    with pytest.raises(ArchitectureError) as caught:
        read_json(nested(levels), "x.json")
    assert str(caught.value) == (
        "x.json cannot be read: it is nested too deeply; name the config.json of a Transformers model"
    )


_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(1, 5000) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(data=st.data())
def test_any_configuration_has_a_shape_or_a_sentence(data: st.DataObject) -> None:
    """And any adapter on it: nothing else is ever raised."""
    config, _ = MODELS[data.draw(st.sampled_from(sorted(MODELS)))]
    keys = st.sampled_from([*config, "model_type", "text_config", "vision_config", "head_dim", "tie_word_embeddings"])
    changes: dict[str, Any] = data.draw(st.dictionaries(keys, _JUNK, max_size=3))
    try:
        shape = architecture_of({**config, **changes})
        adapter = plan_adapter(LoraConfig(rank=data.draw(st.integers(1, 1024))), shape)
    except (ArchitectureError, AdapterError):
        return
    assert shape.parameters > 0
    assert adapter.parameters > 0


@pytest.mark.parametrize(
    ("lora", "sentence"),
    [
        (LoraConfig(layers=None, target_modules=("q_prj",)), 'lora.targetModules is "q_prj": must be a linear module'),
        (LoraConfig(exclude_modules=("self_attn",)), 'lora.excludeModules is "self_attn": must be a linear module'),
        (LoraConfig(layer_indices=(32,)), "lora.layerIndices holds 32: the model has the layers 0 to 31"),
        (
            LoraConfig(rank=1024, init=Init.PISSA, rank_pattern={"k_proj": 1025}),
            "lora.rank is 1025 with lora.init PiSSA: must be at most 1024, the smaller side of k_proj",
        ),
        (
            LoraConfig(layers=Layers.QUERY_VALUE, rank_pattern={"q_proj": 8, "k_proj": 8}),
            'lora.rankPattern names "k_proj": no adapted module ends so; adapted are q_proj, v_proj',
        ),
        (
            LoraConfig(layer_indices=(1,), alpha_pattern={"layers.0.mlp.up_proj": 8}),
            'lora.alphaPattern names "layers.0.mlp.up_proj": no adapted module ends so; adapted are q_proj, k_proj,',
        ),
        (
            LoraConfig(layers=Layers.MLP, exclude_modules=("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")),
            "lora.layers MLP leaves no module to adapt",
        ),
    ],
)
def test_an_adapter_that_the_model_cannot_have_is_refused_in_a_sentence(lora: LoraConfig, sentence: str) -> None:
    """As the trainer refuses it."""
    with pytest.raises(AdapterError) as caught:
        plan_adapter(lora, architecture_of(llama()))
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (LLAMA_4, "router"),
        (MIXTRAL, "mlp.experts"),
        (QWEN3_MOE | {"mlp_only_layers": [0]}, "up_proj"),
        (llama(), "lm_head"),
    ],
)
def test_what_is_skipped_anyway_may_be_excluded(config: Config, name: str) -> None:
    """It changes nothing."""
    shape = architecture_of(config)
    assert plan_adapter(LoraConfig(exclude_modules=(name,)), shape) == plan_adapter(LoraConfig(), shape)


@pytest.mark.parametrize("gpu", KNOWN, ids=lambda gpu: gpu.name)
def test_a_known_gpu_is_found_by_its_name(gpu: Any) -> None:
    """However people write it."""
    for text in (gpu.name, gpu.name.lower(), f"NVIDIA {gpu.name}", gpu.name.replace(" ", "-")):
        assert find_gpu(text) is gpu


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GiB", least_memory(24)),
        ("24 gib", least_memory(24)),
        ("22.5GiB", 45 * 2**29),
        ("40GB", 40 * 10**9),
        ("23034MiB", 23034 * 2**20),
    ],
)
def test_any_gpu_is_named_by_its_memory(text: str, size: int) -> None:
    """Its speed is not known then."""
    gpu = find_gpu(text)
    assert gpu.memory_bytes == size
    assert gpu.flops is None


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("H10", "did you mean H100?"),
        ("Voodoo2", "name its memory instead, as in 24GiB"),
        ("0GiB", "must be from 1GiB to 1024GiB"),
        ("999999GiB", "must be from 1GiB to 1024GiB"),
        ("-24GiB", "or a memory as in 24GiB"),
        ("24", "or a memory as in 24GiB"),
        ("nan", "or a memory as in 24GiB"),
        ("", "or a memory as in 24GiB"),
    ],
)
def test_a_gpu_that_nobody_knows_is_refused_in_a_sentence(text: str, hint: str) -> None:
    """With the names that are known."""
    with pytest.raises(DeviceError) as caught:
        find_gpu(text)
    assert str(caught.value).startswith(f'--gpu is "{text}": must be')
    assert hint in str(caught.value)
