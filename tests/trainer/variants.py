"""A few optimizer steps on tiny models of several kinds, without files, processes or a loop around them."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from tests.trainer import tiny
from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

from lora_trainer.data.formats import PlainText
from lora_trainer.data.store import Examples
from lora_trainer.data.tokens import Encoder
from lora_trainer.distributed.collectives import Ranks
from lora_trainer.model.device import Device
from lora_trainer.model.loading import Adapted, adapt, load_model, set_input_casts, set_training
from lora_trainer.spec.config import LoraConfig, Quantization, TrainingConfig
from lora_trainer.storage.base import Base
from lora_trainer.train.batches import MicroBatchLimit
from lora_trainer.train.evaluate import evaluate
from lora_trainer.train.objective import SFT
from lora_trainer.train.optimizers import make_optimizer
from lora_trainer.train.step import run_step

SEED = 11
TRAINING = TrainingConfig(learning_rate=0.01)


def rows(encoder: Encoder, count: int = 6) -> Examples:
    """Texts of different lengths."""
    return Examples.of(
        encoder.encode(PlainText(where=f"{i}", text=f"Ahoy {i}! " + "Fair winds. " * (1 + i % 3))) for i in range(count)
    )


def fresh(base: Base, device: Device, lora: LoraConfig, quantization: Quantization = Quantization.NONE) -> Adapted:
    """The model with an adapter that has learned nothing."""
    return adapt(load_model(base, quantization, device), lora, base, device, SEED)


def learn(
    adapted: Adapted, examples: Examples, device: Device, steps: int = 4, training: TrainingConfig = TRAINING
) -> list[float]:
    """Loss of each of some optimizer steps over all examples, in two micro-batches or more."""
    parameters = [parameter for parameter in adapted.model.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(parameters, training, device)
    scaler = torch.amp.GradScaler(device.torch_device.type, enabled=device.dtype == torch.float16)
    losses = []
    for _ in range(steps):
        losses.append(backward(adapted, examples, device, scaler))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
    return losses


def backward(adapted: Adapted, examples: Examples, device: Device, scaler: torch.amp.GradScaler | None = None) -> float:
    """Add the gradients of a step over all examples, in two micro-batches or more; its loss."""
    longest = max(example.length for example in examples)
    set_training(adapted.model, on=True)
    set_input_casts(adapted.model, on=device.dtype == torch.float32)
    share = run_step(
        adapted,
        list(examples),
        objective=SFT,
        weights={"loss": sum(example.targets for example in examples)},
        limit=MicroBatchLimit(tokens=3 * longest, longest=longest),
        device=device,
        scaler=scaler or torch.amp.GradScaler(device.torch_device.type, enabled=False),
        ranks=Ranks(),
    )
    set_input_casts(adapted.model, on=True)
    return float(share)


def loss_of(model: Any, head: Any, examples: Examples, device: Device) -> float:
    """Mean loss per target token."""
    longest = max(example.length for example in examples)
    limit = MicroBatchLimit(tokens=4 * longest, longest=longest)
    return evaluate(model, head, examples, device, lambda count: None, limit=limit).loss


def with_type(device: Device, dtype: torch.dtype) -> Device:
    """The same device with another compute type."""
    return dataclasses.replace(device, dtype=dtype)


def make_mixture(folder: Path) -> Path:
    """A random mixture of four experts: attention is linear modules, the experts are stacked parameters."""
    tokenizer = tiny.make_tokenizer()
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    MixtralForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_gpt2(folder: Path) -> Path:
    """A random GPT-2, whose linear modules keep their weights transposed."""
    tokenizer = tiny.make_tokenizer()
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=256,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
