"""Shapes of public models, as their `config.json` has them, for random weights."""

from collections.abc import Mapping
from typing import Any

ModelArchitecture = Mapping[str, Any]

LLAMA_3_8B: ModelArchitecture = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}
LLAMA_3_2_1B: ModelArchitecture = {
    **LLAMA_3_8B,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "head_dim": 64,
    "tie_word_embeddings": True,
}
MIXTURE_24_LAYERS: ModelArchitecture = {
    "model_type": "qwen2_moe",
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 8192,
}
"""Qwen1.5-MoE-A2.7B."""


def active_share(name: str, shape: ModelArchitecture) -> float:
    """The share of a parameter's values that a token meets: of experts, as many as it is sent to."""
    if ".experts." not in name or "num_experts" not in shape:
        return 1.0
    return float(shape["num_experts_per_tok"] / shape["num_experts"])
