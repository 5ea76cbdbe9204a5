"""The fit model's activations against the tensors that autograd really keeps of a layer, on the CPU."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft.helpers import disable_input_dtype_casting
from tests.unit.fit_models import Config

from lora_trainer.data.tokens import Example
from lora_trainer.model.device import Device
from lora_trainer.model.fast import isolate
from lora_trainer.model.loading import adapt, load_model, set_training
from lora_trainer.plan import adapter as fit
from lora_trainer.plan.families import architecture_of
from lora_trainer.plan.memory import Setting, kept_bytes
from lora_trainer.spec.config import Layers, LoraConfig, Quantization, Variant
from lora_trainer.storage.base import Base
from lora_trainer.train.batches import collate
from lora_trainer.train.loss import token_losses

TOKENS = 97
"""No width of a model, so that a tensor with that many rows is an activation."""
LLAMA: Config = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 300,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
NEOX = {"model_type": "gpt_neox", "hidden_act": "gelu", "num_key_value_heads": 4}
GPT_2 = {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "vocab_size": 300, "bos_token_id": 1, "eos_token_id": 2}
CHECKPOINTING_MODES: dict[str, dict[str, Any]] = {
    "recomputed": {"recompute": True},
    "MLPs recomputed": {"recompute": True, "selective": True},
}
PRECISIONS: dict[str, dict[str, Any]] = {
    "": {},
    ", fp32": {"fp32": True},
    ", NF4": {"quantization": Quantization.NF4},
}
CASES: dict[str, tuple[Config, LoraConfig, dict[str, Any]]] = {
    "all linear": (LLAMA, LoraConfig(rank=4), {}),
    "query and value": (LLAMA, LoraConfig(rank=4, layers=Layers.QUERY_VALUE), {}),
    "dropout": (LLAMA, LoraConfig(rank=4, dropout=0.1), {"dropout": True}),
    "DoRA": (LLAMA, LoraConfig(rank=4, variant=Variant.DORA), {"dora": True}),
    "fp32": (LLAMA, LoraConfig(rank=4), {"fp32": True}),
    "NF4": (LLAMA, LoraConfig(rank=4), {"quantization": Quantization.NF4}),
    "norms of heads": (LLAMA | {"model_type": "qwen3"}, LoraConfig(rank=4), {}),
    "fused projections": (LLAMA | {"model_type": "phi3"}, LoraConfig(rank=4), {}),
    "capped scores": (LLAMA | {"model_type": "gemma2"} | CAPS, LoraConfig(rank=4), {}),
    "norms side by side": (LLAMA | NEOX, LoraConfig(rank=4), {}),
    "a written activation": (LLAMA | {"model_type": "phi", "hidden_act": "gelu_new"}, LoraConfig(rank=4), {}),
    **{
        f"{checkpointing}{kind}": (LLAMA, LoraConfig(rank=4), {**recomputed, **changes})
        for checkpointing, recomputed in CHECKPOINTING_MODES.items()
        for kind, changes in PRECISIONS.items()
    },
    "own dropout": (GPT_2, LoraConfig(rank=4), {}),
    "own dropout, fp32": (GPT_2, LoraConfig(rank=4), {"fp32": True}),
}


def kept_in_a_step(folder: Path, config: Config, lora: LoraConfig, setting: Setting) -> int:
    """Bytes of all activations that a training step keeps, each storage once."""
    folder.mkdir()
    torch.manual_seed(0)
    configuration = transformers.AutoConfig.for_model(**config)
    factory: Any = transformers.AutoModelForCausalLM
    model = factory.from_config(configuration)
    model.to(torch.bfloat16).save_pretrained(folder)
    base = Base(folder=folder, name="base", revision="none", model_type=config["model_type"])
    dtype = torch.float32 if setting.fp32 else torch.bfloat16
    device = Device(torch_device=torch.device("cpu"), name="cpu", dtype=dtype)
    adapted = adapt(
        load_model(base, setting.quantization, device), lora, base, device, 1, checkpointing=setting.checkpointing
    )
    packed = isolate(adapted.model)
    set_training(adapted.model, on=True)
    ids = np.arange(TOKENS) % 200
    batch = collate([Example(input_ids=ids, labels=ids, truncated=False)], device.torch_device, packed=packed)
    token_losses(adapted.model, adapted.head, batch, device)  # tries once whether the head is the last
    sizes: dict[int, int] = {}
    alive: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if TOKENS in tensor.shape:
            sizes[storage.data_ptr()] = storage.nbytes()
        # A storage that is freed gives its address to another.
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with disable_input_dtype_casting(adapted.model, active=dtype != torch.float32):
            loss = token_losses(adapted.model, adapted.head, batch, device).sum()
        assert loss.requires_grad
    return sum(sizes.values())


@pytest.mark.parametrize("case", CASES)
def test_a_layer_keeps_the_bytes_of_the_formula(case: str, tmp_path: Path) -> None:
    """To the byte: what two layers more of the same kind keep more."""
    config, lora, changes = CASES[case]
    setting = Setting(
        **{"quantization": Quantization.NONE, "recompute": False, "tokens": TOKENS, "row": TOKENS, **changes},
        packs=False,
        cpu=True,
    )
    kept = [
        kept_in_a_step(tmp_path / str(layers), config | {"num_hidden_layers": layers}, lora, setting)
        for layers in (2, 4)
    ]
    shape = architecture_of(json.loads((tmp_path / "2" / "config.json").read_text(encoding="utf-8")))
    ranks = fit.plan_adapter(lora, shape).ranks[0]
    assert (kept[1] - kept[0]) / 2 / TOKENS == pytest.approx(kept_bytes(shape.layers[0], ranks, setting), abs=0.5)
