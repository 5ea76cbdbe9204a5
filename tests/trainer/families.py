"""Tiny random models of many families, made from configurations, each with the tokenizer of `tiny`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.trainer import tiny
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM

from lora_trainer.data.tokens import Example
from lora_trainer.model.device import Device
from lora_trainer.model.loading import Adapted, adapt, load_model, set_training
from lora_trainer.spec.config import ActivationCheckpointing, LoraConfig, Quantization
from lora_trainer.storage.base import open_folder
from lora_trainer.train.batches import collate
from lora_trainer.train.loss import token_losses
from lora_trainer.train.state import trainable

_SIZES: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
_GPT2: Mapping[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
_NO_DROPOUT: Mapping[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
_HEADS: Mapping[str, Any] = {"head_dim": 8}
_VISION: Mapping[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A kind of model: `options` of its configuration, those of its language model in `text` where it sees, too."""

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, Any] | None = None


FAMILIES: Mapping[str, Family] = {
    family.kind: family
    for family in (
        Family(kind="llama"),
        Family(kind="mistral", options={"sliding_window": 12}),
        Family(kind="qwen2", options={"tie_word_embeddings": True}),
        Family(kind="qwen3", options={**_HEADS, "tie_word_embeddings": True}),
        Family(kind="gemma2", options={**_HEADS, "sliding_window": 12, "query_pre_attn_scalar": 8}),
        Family(kind="gemma3_text", options={**_HEADS, "sliding_window": 12, "query_pre_attn_scalar": 8}),
        Family(kind="phi"),
        Family(kind="phi3", options={"pad_token_id": 0}),
        Family(kind="gpt2", options={**_GPT2, **_NO_DROPOUT}),
        Family(kind="gpt_neox", options={"max_position_embeddings": 512}),
        Family(kind="granite", options={"logits_scaling": 4.0}),
        Family(kind="olmo2"),
        Family(kind="cohere"),
        Family(kind="starcoder2", options={"residual_dropout": 0.0, "embedding_dropout": 0.0}),
        Family(kind="stablelm"),
        Family(kind="falcon"),
        Family(kind="bloom", options={"n_layer": 2, "n_head": 4}),
        Family(kind="opt", options={"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0}),
        Family(kind="mixtral", options={"num_local_experts": 4, "num_experts_per_tok": 2}),
        Family(
            kind="qwen2_moe",
            options={
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 16,
                "shared_expert_intermediate_size": 16,
            },
        ),
        Family(
            kind="qwen3_moe",
            options={**_HEADS, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        ),
        Family(
            kind="gpt_oss",
            options={**_HEADS, "sliding_window": 12, "num_local_experts": 4, "rope_scaling": None},
        ),
        Family(
            kind="deepseek_v3",
            options={
                "moe_intermediate_size": 16,
                "n_routed_experts": 4,
                "num_experts_per_tok": 2,
                "n_group": 2,
                "topk_group": 1,
                "num_key_value_heads": 4,
                "kv_lora_rank": 16,
                "q_lora_rank": 16,
                "qk_rope_head_dim": 8,
                "qk_nope_head_dim": 8,
                "v_head_dim": 8,
                "first_k_dense_replace": 1,
            },
        ),
        Family(
            kind="llama4_text",
            options={**_HEADS, "num_local_experts": 2, "intermediate_size_mlp": 48, "attention_chunk_size": 16},
        ),
        Family(kind="lfm2", options={"layer_types": ["conv", "full_attention"]}),
        Family(kind="mamba"),
        Family(
            kind="qwen3_next",
            options={
                **_HEADS,
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 16,
                "shared_expert_intermediate_size": 16,
                "linear_num_key_heads": 2,
                "linear_num_value_heads": 4,
                "linear_key_head_dim": 8,
                "linear_value_head_dim": 8,
                "layer_types": ["linear_attention", "full_attention"],
            },
        ),
        Family(
            kind="gemma3",
            options={"vision_config": _VISION, "mm_tokens_per_image": 4, "image_token_index": 7},
            text={**_HEADS, "sliding_window": 12, "query_pre_attn_scalar": 8},
        ),
        Family(
            kind="mistral3",
            options={"vision_config": {**_VISION, "model_type": "pixtral", "head_dim": 8}, "image_token_index": 7},
            text={**_HEADS, "model_type": "mistral", "sliding_window": None},
        ),
        Family(
            kind="qwen2_5_vl",
            options={
                "vision_config": {
                    "depth": 1,
                    "hidden_size": 16,
                    "intermediate_size": 16,
                    "num_heads": 2,
                    "out_hidden_size": 32,
                    "fullatt_block_indexes": [0],
                },
                "image_token_id": 7,
                "video_token_id": 8,
                "vision_start_token_id": 9,
                "vision_end_token_id": 10,
            },
            text={"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}},
        ),
        Family(
            kind="llama4",
            options={
                "vision_config": {
                    **_VISION,
                    "vision_output_dim": 16,
                    "projector_input_dim": 16,
                    "projector_output_dim": 16,
                },
                "image_token_index": 7,
            },
            text={**_HEADS, "num_local_experts": 2, "intermediate_size_mlp": 48, "attention_chunk_size": 16},
        ),
        Family(kind="bert"),
        Family(kind="t5", options={"d_model": 32, "d_ff": 48, "num_layers": 1, "num_heads": 4}),
        Family(kind="bart", options={"d_model": 32, "encoder_layers": 1, "decoder_layers": 1}),
    )
}

COUNTED: Mapping[str, Family] = {
    family.kind: family
    for family in (
        Family(
            kind="gemma3n_text",
            options={
                **_HEADS,
                "vocab_size_per_layer_input": 64,
                "hidden_size_per_layer_input": 8,
                "num_kv_shared_layers": 0,
                "laurel_rank": 4,
                "layer_types": ["full_attention"] * 2,
                "activation_sparsity_pattern": [0.0] * 2,
            },
        ),
        Family(
            kind="zamba2",
            options={
                **_HEADS,
                "num_hidden_layers": 4,
                "layers_block_type": ["mamba", "hybrid"] * 2,
                "num_mem_blocks": 1,
                "mamba_headdim": 8,
                "n_mamba_heads": 8,
                "mamba_d_state": 8,
                "use_long_context": False,
            },
        ),
    )
}
"""Kinds with lists of linear modules beside that of layers; Zamba 2's second and fourth layer share weights, too."""


MORE: Mapping[str, Family] = {
    family.kind: family
    for family in (
        Family(kind="gemma", options=_HEADS),
        Family(kind="ministral", options={**_HEADS, "sliding_window": 12}),
        Family(kind="smollm3"),
        Family(kind="olmo"),
        Family(kind="olmo3", options={"sliding_window": 12}),
        Family(kind="olmoe", options={"num_experts": 4, "num_experts_per_tok": 2}),
        Family(kind="cohere2", options={"sliding_window": 12}),
        Family(kind="glm", options=_HEADS),
        Family(kind="glm4", options=_HEADS),
        Family(kind="granitemoe", options={"num_local_experts": 4, "num_experts_per_tok": 2}),
        Family(kind="phimoe", options={"num_local_experts": 4, "num_experts_per_tok": 2}),
        Family(kind="exaone4", options={"sliding_window": 12}),
        Family(kind="seed_oss", options={**_HEADS, "residual_dropout": 0.0, "attention_dropout": 0.0}),
        Family(kind="ernie4_5", options=_HEADS),
        Family(kind="hunyuan_v1_dense", options=_HEADS),
    )
}
"""Kinds in the table of what is fast that have no cell in the matrix."""


def make_family(folder: Path, name: str) -> Path:
    """Write the model and its tokenizer as safetensors."""
    family = {**FAMILIES, **COUNTED, **MORE}[name]
    tokenizer = tiny.make_tokenizer()
    common = {
        **_SIZES,
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "pad_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if family.text is None:
        options = {**common, **family.options}
    else:
        options = {**family.options, "text_config": {**common, **family.text}}
    torch.manual_seed(0)
    config = AutoConfig.for_model(family.kind, **options)
    factory: Any = AutoModelForCausalLM
    if family.text is not None:
        factory = AutoModelForImageTextToText
    elif config.is_encoder_decoder:
        factory = AutoModelForSeq2SeqLM
    factory.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def adapted_family(
    folder: Path,
    name: str,
    device: Device,
    checkpointing: ActivationCheckpointing = ActivationCheckpointing.NONE,
) -> Adapted:
    """The model with an adapter on what can be adapted that changes it: B is random, too."""
    base = open_folder(make_family(folder, name))
    found = adapt(
        load_model(base, Quantization.NONE, device),
        LoraConfig(rank=3, alpha=6),
        base,
        device,
        3,
        checkpointing=checkpointing,
    )
    torch.manual_seed(4)
    for path, parameter in found.model.named_parameters():
        if "lora_B" in path:
            torch.nn.init.normal_(parameter, std=0.1)
    return found


def rows_of(model: Adapted) -> list[Example]:
    """Rows of different lengths, some longer than the windows of `FAMILIES`."""
    random = np.random.default_rng(1)
    size = int(model.model.config.get_text_config().vocab_size)
    ids = [random.integers(10, size, size=length) for length in (14, 3, 20, 2)]
    return [Example(input_ids=one, labels=one, truncated=False) for one in ids]


def numbers(model: Adapted, rows: Sequence[Example], device: Device, *, packed: bool) -> list[torch.Tensor]:
    """Losses of the rows in one micro-batch, and the gradients of all that is trained."""
    set_training(model.model, on=True)
    losses = token_losses(model.model, model.head, collate(rows, device.torch_device, packed=packed), device)
    torch.autograd.backward(losses.sum())
    found = [losses.detach()]
    for parameter in trainable(model.model).values():
        found.append(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
        parameter.grad = None
    return found
