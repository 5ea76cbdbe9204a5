"""Merged models: the logits of base and adapter from one set of weights, within the memory of a tensor."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tests.trainer.tiny import make_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    MixtralConfig,
    MixtralForCausalLM,
)
from transformers.core_model_loading import revert_weight_conversion
from transformers.processing_utils import ProcessorMixin

from lora_trainer.errors import VerificationError
from lora_trainer.model.classes import auto_class
from lora_trainer.model.linear import linear_modules
from lora_trainer.plan.families import CONVERTED
from lora_trainer.result.merge import merge_into
from lora_trainer.result.tensor_names import parameters_of
from lora_trainer.storage.tensor_files import read_entries

IDS = torch.arange(24).reshape(2, 12)


def load(folder: Path) -> Any:
    """A model in fp32."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def llama(folder: Path, **options: Any) -> Path:
    """The tiny model with other settings, its weights in several files."""
    make_model(folder)
    config = LlamaConfig.from_pretrained(folder, **options)
    factory: Any = AutoModelForCausalLM
    weights = factory.from_config(config)
    (folder / "model.safetensors").unlink()
    weights.save_pretrained(folder, max_shard_size="100KB")
    return folder


def gpt2(folder: Path) -> Path:
    """A model whose linear modules keep their weights transposed, in files without the model's prefix."""
    config = GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=300, n_positions=64, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    named = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def mixtral(folder: Path) -> Path:
    """A mixture, whose experts the library stacks when it loads them."""
    config = MixtralConfig(
        num_hidden_layers=1,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=3,
        vocab_size=64,
    )
    MixtralForCausalLM(config).save_pretrained(folder)
    return folder


def adapter_of(base: Path, folder: Path, **options: Any) -> Path:
    """An adapter that changes a lot, as if it had been trained."""
    torch.manual_seed(3)
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "init_lora_weights": False, **options})
    model: Any = get_peft_model(load(base), config)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_A" not in name and "lora_B" not in name:
            parameter.data *= 1 + 0.3 * torch.rand_like(parameter)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VARIANTS: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "LoRA": (llama, {"target_modules": ALL}),
    "rsLoRA": (llama, {"target_modules": ALL, "use_rslora": True}),
    "DoRA": (llama, {"target_modules": ALL, "use_dora": True}),
    "patterns": (
        llama,
        {
            "target_modules": ["q_proj", "up_proj"],
            "rank_pattern": {"layers.1.self_attn.q_proj": 2},
            "alpha_pattern": {"up_proj": 3},
        },
    ),
    "whole modules": (
        lambda folder: llama(folder, tie_word_embeddings=False),
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens", "norm"]},
    ),
    "tied embeddings": (llama, {"target_modules": ["q_proj"]}),
    "tied embeddings trained together": (
        llama,
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "tied embeddings trained apart": (llama, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "tied embeddings, the input alone": (llama, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "Conv1D": (gpt2, {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "Conv1D with DoRA": (gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": True}),
    "experts": (
        mixtral,
        {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    ),
}


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied")
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_merged_model_says_what_base_and_adapter_say(tmp_path: Path, variant: str) -> None:
    """Every kind of adapter, by its logits; what the adapter does not touch stays byte for byte."""
    make, options = VARIANTS[variant]
    base = make(tmp_path / "base")
    adapter = adapter_of(base, tmp_path / "adapter", **options)
    merge_into(adapter, base, tmp_path / "merged")
    with torch.no_grad():
        plain = load(base)(IDS).logits
        wanted = PeftModel.from_pretrained(load(base), str(adapter)).eval()(IDS).logits
        merged = load(tmp_path / "merged")(IDS).logits
    assert (wanted - plain).abs().max() > 1e-2, "the adapter changes nothing: the comparison would prove nothing"
    torch.testing.assert_close(merged, wanted, rtol=0, atol=2e-5)


def test_files_names_and_types_stay_those_of_the_base(tmp_path: Path) -> None:
    """Rounded once to the base's own type; configuration, tokenizer and the other tensors are copies."""
    base = llama(tmp_path / "base", dtype="bfloat16")
    for file in base.glob("*.safetensors"):
        save_file({k: v.bfloat16() for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
    adapter = adapter_of(base, tmp_path / "adapter", target_modules=["q_proj"])
    merge_into(adapter, base, tmp_path / "merged")
    names = sorted(path.name for path in base.iterdir() if path.suffix in (".json", ".safetensors", ".jinja"))
    assert len([name for name in names if name.endswith(".safetensors")]) > 1
    assert sorted(path.name for path in (tmp_path / "merged").iterdir()) == names
    tensors = load_file(adapter / "adapter_model.safetensors")
    for name in names:
        one, other = base / name, tmp_path / "merged" / name
        if not name.endswith(".safetensors"):
            assert one.read_bytes() == other.read_bytes()
            continue
        assert read_entries(one) == read_entries(other)
        before, after = load_file(one), load_file(other)
        for key, weight in before.items():
            if "q_proj" in key:
                lora_a, lora_b = (
                    tensors[f"base_model.model.{key.removesuffix('.weight')}.lora_{kind}.weight"] for kind in "AB"
                )
                weight = (weight.double() + 2 * lora_b.double() @ lora_a.double()).bfloat16()  # noqa: PLW2901 - the one wanted
            assert torch.equal(after[key], weight), key


def test_the_bases_license_and_notices_go_along(tmp_path: Path) -> None:
    """Who publishes the merged model passes the base's weights on; the card is the run's own, and code stays behind."""
    base = make_model(tmp_path / "base")
    terms = ("LICENSE", "Notice.md", "USE_POLICY.md", "LICENSE-MODEL", "license.pdf")
    for name in (*terms, "README.md", "license_check.py", "LICENSES.bin"):
        (base / name).write_text(f"of the base: {name}")
    adapter = adapter_of(base, tmp_path / "adapter", target_modules=["q_proj"])
    merge_into(adapter, base, tmp_path / "merged")
    found = {path.name: path.read_text() for path in (tmp_path / "merged").iterdir() if path.suffix != ".safetensors"}
    assert {name: text for name, text in found.items() if not name.endswith((".json", ".jinja"))} == {
        name: f"of the base: {name}" for name in terms
    }


def test_of_a_single_file_and_an_index_that_is_merged_which_is_loaded(tmp_path: Path) -> None:
    """The single file, as Transformers does; what is left of an index does not go along."""
    base = make_model(tmp_path / "base")
    old = "model-00001-of-00001.safetensors"
    tensors = load_file(base / "model.safetensors")
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, base / old, metadata={"format": "pt"})
    index = json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors, old)})
    (base / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    adapter = adapter_of(base, tmp_path / "adapter", target_modules=["q_proj"])
    merge_into(adapter, base, tmp_path / "merged")
    assert not list((tmp_path / "merged").glob("*0*")) + list((tmp_path / "merged").glob("*index*"))
    found, name = load_file(tmp_path / "merged/model.safetensors"), "model.embed_tokens.weight"
    assert torch.equal(found[name], tensors[name])


def test_weights_that_the_configuration_names_are_merged_in_their_file(tmp_path: Path) -> None:
    """They were read, and another name was written."""
    base = make_model(tmp_path / "base")
    (base / "model.safetensors").rename(base / "first.safetensors")
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps({**config, "transformers_weights": "first.safetensors"}))
    adapter = adapter_of(base, tmp_path / "adapter", target_modules=["q_proj"])
    merge_into(adapter, base, tmp_path / "merged")
    assert [path.name for path in (tmp_path / "merged").glob("*.safetensors")] == ["first.safetensors"]
    wanted = PeftModel.from_pretrained(load(base), str(adapter)).eval()(IDS).logits
    torch.testing.assert_close(load(tmp_path / "merged")(IDS).logits, wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("chosen", [False, True])
def test_a_processor_has_the_template_that_was_learned(tmp_path: Path, *, chosen: bool) -> None:
    """Older multimodal models have theirs in a file of its own, which goes before the other."""
    base = make_model(tmp_path / "base")
    (base / "chat_template.json").write_text(json.dumps({"chat_template": "the base's"}), encoding="utf-8")
    (base / "processor_config.json").write_text("{}", encoding="utf-8")
    adapter = adapter_of(base, tmp_path / "adapter", target_modules=["q_proj"])
    if chosen:
        (adapter / "chat_template.jinja").write_text("the learned one", encoding="utf-8")
    merge_into(adapter, base, tmp_path / "merged")
    found = ProcessorMixin.get_processor_dict(str(tmp_path / "merged"))[0]["chat_template"]
    assert found == ("the learned one" if chosen else "the base's")


@pytest.mark.parametrize("place", ["nowhere", "chat_template.jinja", "tokenizer_config.json"])
def test_the_template_that_was_learned_goes_along(tmp_path: Path, place: str) -> None:
    """A chat server needs it, wherever the base has one of its own."""
    without: dict[str, Any] = {"chat_template": None} if place == "nowhere" else {}
    base = make_model(tmp_path / "base", **without)
    own = base / "chat_template.jinja"
    assert own.is_file() is (place != "nowhere")
    if place == "tokenizer_config.json":
        settings = json.loads((base / place).read_text(encoding="utf-8"))
        (base / place).write_text(json.dumps({**settings, "chat_template": own.read_text(encoding="utf-8")}))
        own.unlink()
    adapter = adapter_of(base, tmp_path / "adapter", target_modules=["q_proj"])
    (adapter / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    merge_into(adapter, base, tmp_path / "merged")
    tokenizer: Any = AutoTokenizer
    assert tokenizer.from_pretrained(tmp_path / "merged").chat_template == "{{ messages }}"


@pytest.mark.parametrize("chosen", [False, True])
def test_the_bases_template_for_tools_goes_along_unless_the_run_chose_one(tmp_path: Path, *, chosen: bool) -> None:
    """Which was learned for conversations with tools, too."""
    base = make_model(tmp_path / "base")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates/tool_use.jinja").write_text("{{ tools }}", encoding="utf-8")
    adapter = adapter_of(base, tmp_path / "adapter", target_modules=["q_proj"])
    if chosen:
        (adapter / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    merge_into(adapter, base, tmp_path / "merged")
    tokenizer: Any = AutoTokenizer
    found = tokenizer.from_pretrained(tmp_path / "merged").chat_template
    assert found == "{{ messages }}" if chosen else found["tool_use"] == "{{ tools }}"


@pytest.mark.parametrize("kind", [*sorted(CONVERTED), "gemma3", "llava", "mistral3", "deepseek_v3"])
def test_what_takes_the_memory_of_the_model_is_known(kind: str) -> None:
    """Kinds with linear modules that files hold stacked; all kinds were gone through for Transformers 5.24."""
    config = AutoConfig.for_model(kind)
    with torch.device("meta"):
        model: Any = auto_class(config, kind).from_config(config)
    stored = revert_weight_conversion(model, model.state_dict())
    linear = {f"{name}.weight" for name in linear_modules(model, model.get_output_embeddings())}
    assert (linear <= set(parameters_of(model, stored).values())) is (kind not in CONVERTED)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "layers.1.",
            "layers.7.",
            "the adapter has weights for model.layers.7.self_attn.q_proj.weight, which the base",
        ),
        ("", "", "has A (4, 63) and B (64, 4), its weight is (64, 64)"),
    ],
)
def test_an_adapter_of_another_model_is_refused(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    """By name and by shape."""
    base = make_model(tmp_path / "base")
    adapter = adapter_of(base, tmp_path / "adapter", target_modules=["q_proj"])
    file = adapter / "adapter_model.safetensors"
    tensors = {name.replace(old, new): tensor for name, tensor in load_file(file).items()}
    if not old:
        tensors = {name: t[:, :63].contiguous() if "lora_A" in name else t for name, t in tensors.items()}
    save_file(tensors, file)
    with pytest.raises(VerificationError) as caught:
        merge_into(adapter, base, tmp_path / "merged")
    assert sentence in str(caught.value)


# `_skeleton` loads Transformers, which is not what is measured.
_MEASURE = """
import resource, sys
from pathlib import Path
import lora_trainer.result.merge as merge
base, adapter, target = map(Path, sys.argv[1:])
merge._skeleton(base)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
merge.merge_into(adapter, base, target)
print(peak() - before)
"""


def test_a_model_is_merged_within_the_memory_of_a_few_tensors(tmp_path: Path) -> None:
    """Twelve files of 12 MiB with tensors of 4 MiB: the peak grows by a tenth of the model, not by the model."""
    base, layers, width = tmp_path / "base", 12, 1024
    make_model(base)
    (base / "model.safetensors").unlink()
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_key_value_heads": 4, "head_dim": width // 4}
    (base / "config.json").write_text(json.dumps({**config, **sizes, "intermediate_size": 64}), encoding="utf-8")
    weight_map: dict[str, str] = {}
    lora: dict[str, torch.Tensor] = {}
    for layer in range(layers):
        names = [f"model.layers.{layer}.self_attn.{kind}_proj" for kind in "qkv"]
        file = f"model-{layer:05d}.safetensors"
        save_file({f"{name}.weight": torch.ones(width, width) for name in names}, base / file)
        weight_map |= dict.fromkeys((f"{name}.weight" for name in names), file)
        lora |= {f"base_model.model.{name}.lora_A.weight": torch.ones(4, width) for name in names}
        lora |= {f"base_model.model.{name}.lora_B.weight": torch.ones(width, 4) for name in names}
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    (tmp_path / "adapter").mkdir()
    save_file(lora, tmp_path / "adapter/adapter_model.safetensors")
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}), encoding="utf-8")
    folders = [str(tmp_path / name) for name in ("base", "adapter", "merged")]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *folders], check=True, capture_output=True, text=True, timeout=600
    )
    merged = load_file(tmp_path / "merged/model-00011.safetensors")
    assert torch.equal(merged["model.layers.11.self_attn.v_proj.weight"], torch.full((width, width), 9.0))
    model_bytes = layers * 3 * width * width * 4
    assert int(done.stdout) < model_bytes / 5, "the whole model was in memory"
    shutil.rmtree(tmp_path)
