"""The demo's model: converted from GGUF, it is the published SmolLM2-135M-Instruct in shape, tokens and behaviour."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from hub import model as conversion
from hub.model import cache_root, ensure_model, is_current

PUBLISHED = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "dtype": "bfloat16",
    "architectures": ["LlamaForCausalLM"],
}


@pytest.fixture(scope="module")
def folder() -> Path:
    """Return the converted model of this machine's cache, converting it first where it is missing."""
    return ensure_model(cache_root())


def test_the_configuration_is_the_published_one(folder: Path) -> None:
    """Sizes, rotary base, epsilon and special tokens, and nothing that says quantized."""
    config = json.loads((folder / "config.json").read_text())
    assert {name: config[name] for name in PUBLISHED} == PUBLISHED
    assert "quantization_config" not in config
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2


def test_the_tokenizer_has_the_chat_markers_and_splits_numbers_into_digits(folder: Path) -> None:
    """A turn ends with the end-of-sequence token, and text survives a round trip."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.tokenize("In 1887") == ["In", "Ġ", "1", "8", "8", "7"]
    assert tokenizer.decode(tokenizer("naïve 日本 12,5 %\n\tx").input_ids) == "naïve 日本 12,5 %\n\tx"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ahoy"}]
    rendered = str(tokenizer.apply_chat_template(turns, tokenize=False))
    assert rendered.endswith("<|im_start|>assistant\nAhoy<|im_end|>\n")


def test_the_model_names_the_capital_of_france(folder: Path) -> None:
    """The weights arrived in the right order and layout: greedy decoding gives the known answer and stops."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = str(tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True))
    tokens = tokenizer(prompt, return_tensors="pt").input_ids
    out = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=20, do_sample=False)
    assert tokenizer.decode(out[0][tokens.shape[1] :]) == "The capital of France is Paris.<|im_end|>"


def test_files_can_be_read_by_a_server_of_another_user(folder: Path) -> None:
    """The pod that serves the files does not run as the user who converted them."""
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir() if file.name != conversion.MARKER} == {0o644}


def test_a_conversion_that_was_interrupted_is_made_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a folder with the marker of this conversion counts; a half-written one is replaced, never used."""
    target = tmp_path / "models" / conversion.REPO_ID
    target.mkdir(parents=True)
    (target / "config.json").write_text("{")
    assert not is_current(target)
    monkeypatch.setattr(conversion, "gguf_file", lambda downloads: downloads / "source.gguf")
    monkeypatch.setattr(conversion, "convert", _write_config)
    assert ensure_model(tmp_path) == target
    assert (target / "config.json").read_text() == "{}"
    assert is_current(target)
    assert is_current(folder)
    assert [path.name for path in target.parent.iterdir() if path.is_dir()] == [target.name]


def _write_config(source: Path, target: Path) -> None:
    assert source.name == "source.gguf"
    target.mkdir()
    (target / "config.json").write_text("{}")
