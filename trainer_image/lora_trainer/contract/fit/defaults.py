"""What the configuration classes of Transformers 5.24 take for what a `config.json` does not have.

Published files rely on it: those of Gemma 3 have no vocabulary, and that of its 4B model no heads either. A null is no
default but None. Only what shapes read is here, and no default that is None.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


def _sizes(*, hidden: int, mlp: int, layers: int, heads: int, vocabulary: int, **others: Any) -> Mapping[str, Any]:
    return MappingProxyType(
        {
            "hidden_size": hidden,
            "intermediate_size": mlp,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "vocab_size": vocabulary,
            **others,
        }
    )


_MISTRAL = _sizes(hidden=4096, mlp=14336, layers=32, heads=32, vocabulary=32000, num_key_value_heads=8)
_LLAMA = _sizes(hidden=4096, mlp=11008, layers=32, heads=32, vocabulary=32000)
_QWEN = _sizes(hidden=4096, mlp=22016, layers=32, heads=32, vocabulary=151936, num_key_value_heads=32)
_GEMMA_2: Mapping[str, Any] = {"num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": _LLAMA,
    "mistral": _MISTRAL,
    "ministral": _MISTRAL,
    "smollm3": _sizes(
        hidden=2048,
        mlp=11008,
        layers=36,
        heads=16,
        vocabulary=128256,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    ),
    "granite": _LLAMA,
    "qwen2": _QWEN,
    "qwen3": {**_QWEN, "head_dim": 128},
    "gemma": _sizes(
        hidden=3072,
        mlp=24576,
        layers=28,
        heads=16,
        vocabulary=256000,
        num_key_value_heads=16,
        head_dim=256,
        tie_word_embeddings=True,
    ),
    "gemma2": _sizes(
        hidden=2304,
        mlp=9216,
        layers=26,
        heads=8,
        vocabulary=256000,
        final_logit_softcapping=30.0,
        attn_logit_softcapping=50.0,
        **_GEMMA_2,
    ),
    "gemma3_text": _sizes(hidden=2304, mlp=9216, layers=26, heads=8, vocabulary=262208, **_GEMMA_2),
    "gpt2": {
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_positions": 1024,
        "vocab_size": 50257,
        "tie_word_embeddings": True,
    },
    "gpt_neox": _sizes(hidden=6144, mlp=24576, layers=44, heads=64, vocabulary=50432),
    "phi": _sizes(hidden=2048, mlp=8192, layers=24, heads=32, vocabulary=51200),
    "phi3": _sizes(hidden=3072, mlp=8192, layers=32, heads=32, vocabulary=32064),
    "starcoder2": _sizes(
        hidden=3072, mlp=12288, layers=30, heads=24, vocabulary=49152, num_key_value_heads=2, tie_word_embeddings=True
    ),
    "falcon": {
        "hidden_size": 4544,
        "num_hidden_layers": 32,
        "num_attention_heads": 71,
        "vocab_size": 65024,
        "tie_word_embeddings": True,
    },
    "mixtral": {**_MISTRAL, "num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen2_moe": _sizes(
        hidden=2048,
        mlp=5632,
        layers=24,
        heads=16,
        vocabulary=151936,
        num_key_value_heads=16,
        moe_intermediate_size=1408,
        shared_expert_intermediate_size=5632,
        num_experts=60,
        num_experts_per_tok=4,
    ),
    "qwen3_moe": _sizes(
        hidden=2048,
        mlp=6144,
        layers=24,
        heads=32,
        vocabulary=151936,
        num_key_value_heads=4,
        moe_intermediate_size=768,
        num_experts=128,
        num_experts_per_tok=8,
    ),
    "gpt_oss": _sizes(
        hidden=2880,
        mlp=2880,
        layers=36,
        heads=64,
        vocabulary=201088,
        num_key_value_heads=8,
        head_dim=64,
        num_local_experts=128,
        num_experts_per_tok=4,
    ),
    "deepseek_v3": _sizes(
        hidden=7168,
        mlp=18432,
        layers=61,
        heads=128,
        vocabulary=129280,
        num_key_value_heads=128,
        moe_intermediate_size=2048,
        n_routed_experts=256,
        n_shared_experts=1,
        num_experts_per_tok=8,
        first_k_dense_replace=3,
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
    ),
    "llama4_text": _sizes(
        hidden=5120,
        mlp=8192,
        layers=48,
        heads=40,
        vocabulary=202048,
        num_key_value_heads=8,
        head_dim=128,
        num_local_experts=16,
        num_experts_per_tok=1,
        intermediate_size_mlp=16384,
    ),
}
"""Kind of a known language model to its class's defaults."""
