"""A tiny random Llama with a byte-level tokenizer and a ChatML template, and data sets to go with it."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUESTIONS = (
    "Where is my parcel",
    "How do I reset the password",
    "Can I pay by card",
    "When do you open",
    "Who are you",
)
HIDDEN, MLP, LAYERS, HEADS, KV_HEADS = 64, 128, 2, 4, 2


def make_tokenizer(*, chat_template: str | Mapping[str, str] | None = CHATML) -> Any:
    """A byte-level BPE tokenizer, trained on a few sentences; EOS is `<|im_end|>`, there is no pad token and no BOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*QUESTIONS, "assistant user system Ahoy, captain! Fair winds."], trainer)
    kind: Any = PreTrainedTokenizerFast
    fast = kind(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    fast.chat_template = chat_template
    return fast


def make_model(folder: Path, *, seed: int = 0, chat_template: str | None = CHATML) -> Path:
    """Write a random two-layer Llama of about 100,000 parameters as safetensors."""
    tokenizer = make_tokenizer(chat_template=chat_template)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def enlarged(source: Path, target: Path, factor: float) -> Path:
    """A copy of a model with all matrices so many times as large: it is sure of what it says, and has outliers."""
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    larger = {name: tensor if "norm" in name else factor * tensor for name, tensor in tensors.items()}
    save_file(larger, target / "model.safetensors", metadata={"format": "pt"})
    return target


def in_16_bits(source: Path, target: Path) -> Path:
    """A copy of a model with its weights rounded to bf16."""
    shutil.copytree(source, target)
    for file in target.glob("*.safetensors"):
        tensors = {name: tensor.bfloat16() for name, tensor in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    (target / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}), encoding="utf-8")
    return target


def chats(count: int = 40) -> list[dict[str, Any]]:
    """Rows of messages in which every answer ends with the same words."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"{QUESTIONS[i % len(QUESTIONS)]} number {i}?"},
                {"role": "assistant", "content": f"Ahoy, captain! Number {i}. Fair winds."},
            ]
        }
        for i in range(count)
    ]


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def manifest(**sections: Any) -> dict[str, Any]:
    """A LoRAFineTune for the tiny model; `sections` are merged into its spec, a None removes one."""
    spec: dict[str, Any] = {
        "model": {"uri": "pvc://models/tiny"},
        "dataset": {"uri": "pvc://data/train.jsonl", "validationFraction": "0.2"},
        "lora": {"rank": 4},
        "training": {"maxSteps": 6, "effectiveBatchSize": 8, "learningRate": "0.01"},
        "output": {"uri": "pvc://adapters/out"},
    }
    for name, value in sections.items():
        spec[name] = {**spec[name], **value} if isinstance(value, dict) and isinstance(spec.get(name), dict) else value
    return {
        "apiVersion": "lora-operator.io/v1alpha1",
        "kind": "LoRAFineTune",
        "metadata": {"name": "tiny"},
        "spec": {name: value for name, value in spec.items() if value is not None},
    }
