"""Public models as their `config.json` has them, with the parameters that their files hold."""

from typing import Any

Config = dict[str, Any]


def llama(**changes: Any) -> Config:
    """Llama-3-8B, but for the changes."""
    config: Config = {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    }
    return config | changes


LLAMA_2_7B = llama(intermediate_size=11008, num_key_value_heads=32, vocab_size=32000)
LLAMA_2_13B = LLAMA_2_7B | {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
}
GPT2: Config = {
    "model_type": "gpt2",
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_positions": 1024,
    "n_inner": None,
    "vocab_size": 50257,
}
MIXTRAL = llama(model_type="mixtral", vocab_size=32000, num_local_experts=8, num_experts_per_tok=2)
PHI_MOE = llama(model_type="phimoe", intermediate_size=6400, vocab_size=32064, num_local_experts=16)
"""Phi-3.5-MoE, of a family that is not known; its files hold 41,872,527,360 parameters."""
QWEN2_MOE: Config = {
    "model_type": "qwen2_moe",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 151936,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "decoder_sparse_step": 1,
    "tie_word_embeddings": False,
}
QWEN3_MOE: Config = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 151936,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "tie_word_embeddings": False,
}
GPT_OSS: Config = {
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 24,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 201088,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "tie_word_embeddings": False,
}
DEEPSEEK_V3: Config = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "first_k_dense_replace": 3,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 129280,
    "tie_word_embeddings": False,
}
LLAMA_4: Config = {
    "model_type": "llama4_text",
    "hidden_size": 5120,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_local_experts": 16,
    "num_experts_per_tok": 1,
    "interleave_moe_layer_step": 1,
    "vocab_size": 202048,
    "tie_word_embeddings": False,
}
GEMMA_2: Config = {
    "model_type": "gemma2",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 256000,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
GEMMA_3: Config = {
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
    },
    "vision_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": 896,
        "vision_use_head": False,
    },
}


def gemma_3(**changes: Any) -> Config:
    """Gemma 3 of another size than 4B."""
    return GEMMA_3 | {"text_config": GEMMA_3["text_config"] | changes}


MODELS: dict[str, tuple[Config, int]] = {
    "Llama-3-8B": (llama(), 8_030_261_248),
    "Llama-2-7B": (LLAMA_2_7B, 6_738_415_616),
    "Llama-2-13B": (LLAMA_2_13B, 13_015_864_320),
    "SmolLM2-135M": (
        llama(
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            vocab_size=49152,
            tie_word_embeddings=True,
        ),
        134_515_008,
    ),
    "Mistral-7B": (llama(model_type="mistral", vocab_size=32000), 7_241_732_096),
    "Qwen2.5-7B": (
        llama(
            model_type="qwen2",
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
            vocab_size=152064,
        ),
        7_615_616_512,
    ),
    "Qwen3-8B": (
        llama(model_type="qwen3", intermediate_size=12288, num_hidden_layers=36, head_dim=128, vocab_size=151936),
        8_190_735_360,
    ),
    "Gemma-2B": (
        {
            "model_type": "gemma",
            "hidden_size": 2048,
            "intermediate_size": 16384,
            "num_hidden_layers": 18,
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "vocab_size": 256000,
        },
        2_506_172_416,
    ),
    "Gemma-2-2B": (GEMMA_2, 2_614_341_888),
    "Gemma-3-4B": (GEMMA_3, 4_300_079_472),
    "Gemma-3-12B": (
        gemma_3(
            hidden_size=3840,
            intermediate_size=15360,
            num_hidden_layers=48,
            num_attention_heads=16,
            num_key_value_heads=8,
        ),
        12_187_325_040,
    ),
    "Gemma-3-27B": (
        gemma_3(
            hidden_size=5376,
            intermediate_size=21504,
            num_hidden_layers=62,
            num_attention_heads=32,
            num_key_value_heads=16,
            head_dim=128,
        ),
        27_432_406_640,
    ),
    "GPT-2": (GPT2, 124_439_808),
    "Pythia-160M": (
        {
            "model_type": "gpt_neox",
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "vocab_size": 50304,
            "tie_word_embeddings": False,
        },
        162_322_944,
    ),
    "Phi-2": (
        {
            "model_type": "phi",
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "vocab_size": 51200,
            "tie_word_embeddings": False,
        },
        2_779_683_840,
    ),
    "Phi-3-mini": (
        llama(model_type="phi3", hidden_size=3072, intermediate_size=8192, num_key_value_heads=32, vocab_size=32064),
        3_821_079_552,
    ),
    "StarCoder2-3B": (
        {
            "model_type": "starcoder2",
            "hidden_size": 3072,
            "intermediate_size": 12288,
            "num_hidden_layers": 30,
            "num_attention_heads": 24,
            "num_key_value_heads": 2,
            "vocab_size": 49152,
            "use_bias": True,
        },
        3_030_371_328,
    ),
    "Falcon-7B": (
        {
            "model_type": "falcon",
            "hidden_size": 4544,
            "num_hidden_layers": 32,
            "num_attention_heads": 71,
            "vocab_size": 65024,
            "multi_query": True,
            "parallel_attn": True,
            "bias": False,
        },
        6_921_720_704,
    ),
    "Mixtral-8x7B": (MIXTRAL, 46_702_792_704),
    "Qwen1.5-MoE-A2.7B": (QWEN2_MOE, 14_315_784_192),
    "Qwen3-30B-A3B": (QWEN3_MOE, 30_532_122_624),
    "gpt-oss-20b": (GPT_OSS, 20_914_757_184),
    # Without the layer that foretells a second token, and without the tower: neither is loaded.
    "DeepSeek-V3": (DEEPSEEK_V3, 671_026_404_352),
    "Llama-4-Scout": ({"model_type": "llama4", "text_config": LLAMA_4, "vision_config": {}}, 107_769_861_120),
}
_SMALL = {"Llama-3.2-1B": (2048, 8192, 16), "Llama-3.2-3B": (3072, 8192, 28), "Llama-3-70B": (8192, 28672, 80)}
FURTHER: dict[str, Config] = {
    name: llama(hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers, num_attention_heads=hidden // 128)
    for name, (hidden, mlp, layers) in _SMALL.items()
} | {
    "Mistral-Nemo-12B": llama(
        model_type="mistral", hidden_size=5120, num_hidden_layers=40, head_dim=128, vocab_size=131072
    ),
    "Qwen2.5-0.5B": llama(
        model_type="qwen2",
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151936,
        tie_word_embeddings=True,
    ),
    "SmolLM3-3B": llama(
        model_type="smollm3",
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "Granite-3-8B": llama(
        model_type="granite",
        intermediate_size=12800,
        num_hidden_layers=40,
        vocab_size=49155,
        tie_word_embeddings=True,
        logits_scaling=16.0,
    ),
    "GPT-2-XL": {**GPT2, "n_embd": 1600, "n_layer": 48, "n_head": 25},
}
"""More public models, whose files are not counted here."""
