"""Our own forward and backward passes against the plain computation: adapted modules, the loss, a whole step."""

import dataclasses
from typing import Any

import bitsandbytes
import numpy as np
import pytest
import torch
import transformers
from torch import nn

from lora_trainer.data.tokens import IGNORED, Example
from lora_trainer.distributed.collectives import Ranks
from lora_trainer.model.device import Device
from lora_trainer.model.fast import isolate
from lora_trainer.model.loading import Adapted, adapt, load_model, set_input_casts, set_training
from lora_trainer.model.lora_kernel import fuse, install
from lora_trainer.model.products import product
from lora_trainer.model.recompute import recompute_activations
from lora_trainer.plan import limits
from lora_trainer.spec.config import LoraConfig, Quantization, Variant
from lora_trainer.storage.base import Base
from lora_trainer.train import loss as losses
from lora_trainer.train.batches import MicroBatchLimit, collate
from lora_trainer.train.evaluate import evaluate
from lora_trainer.train.loss import token_losses
from lora_trainer.train.objective import SFT
from lora_trainer.train.step import run_step


def rows(count: int = 7, seed: int = 1) -> list[Example]:
    """Rows of different lengths; the first half of each is a prompt."""
    random = np.random.default_rng(seed)
    found = []
    for length in random.integers(3, 40, size=count):
        ids = random.integers(3, 300, size=length)
        labels = np.where(np.arange(length) < length // 2, IGNORED, ids)
        found.append(Example(input_ids=ids, labels=labels, truncated=False))
    return found


def adapted(base: Base, device: Device, config: LoraConfig, quantization: Quantization = Quantization.NONE) -> Adapted:
    """The tiny model with an adapter that changes it: B is random too."""
    found = adapt(load_model(base, quantization, device), config, base, device, 3)
    torch.manual_seed(4)
    for name, parameter in found.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    set_training(found.model, on=True)
    return found


def step(model: Adapted, device: Device, limit: MicroBatchLimit) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradients of one step."""
    examples = rows()
    targets = sum(example.targets for example in examples)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    parameters = [parameter for parameter in model.model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.grad = None
    set_input_casts(model.model, on=device.dtype == torch.float32)
    found = run_step(
        model,
        examples,
        objective=SFT,
        weights={"loss": targets},
        limit=limit,
        device=device,
        scaler=scaler,
        ranks=Ranks(),
    )
    set_input_casts(model.model, on=True)
    return float(found), [parameter.grad for parameter in parameters if parameter.grad is not None]


CONFIG = LoraConfig(rank=4, alpha=8)
PADDED, PACKED = MicroBatchLimit(tokens=100, longest=40), MicroBatchLimit(tokens=100, longest=40, packed=True)


ODD_RANKS = [
    *(dataclasses.replace(CONFIG, rank=rank) for rank in (1, 3, 5)),
    dataclasses.replace(CONFIG, rank_pattern={"q_proj": 7, "down_proj": 1}),
]


@pytest.mark.parametrize("config", ODD_RANKS, ids=["1", "3", "5", "by module"])
def test_fused_modules_give_what_peft_gives(tiny_base: Base, cpu: Device, config: LoraConfig) -> None:
    """Loss and every gradient of a step."""
    model = adapted(tiny_base, cpu, config)
    loss, gradients = step(model, cpu, PADDED)
    assert fuse(model.model) == 14
    fused_loss, fused = step(model, cpu, PADDED)
    assert fused_loss == pytest.approx(loss, abs=1e-6)
    assert len(fused) == len(gradients) == 28
    for ours, theirs in zip(fused, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_packed_and_padded_steps_have_the_same_loss_and_gradients(tiny_base: Base, cpu: Device) -> None:
    """So packing changes nothing but speed; nor does it change the loss of an evaluation."""
    model = adapted(tiny_base, cpu, CONFIG)
    loss, gradients = step(model, cpu, PADDED)
    before = evaluate(model.model, model.head, rows(), cpu, lambda count: None, limit=PADDED)
    assert isolate(model.model)
    set_training(model.model, on=True)
    packed_loss, packed = step(model, cpu, PACKED)
    assert packed_loss == pytest.approx(loss, abs=1e-6)
    for ours, theirs in zip(packed, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    after = evaluate(model.model, model.head, rows(), cpu, lambda count: None, limit=PACKED)
    assert after.sums == pytest.approx(before.sums, abs=1e-4)


@pytest.mark.parametrize(
    ("config", "quantization"),
    [
        (dataclasses.replace(CONFIG, dropout=0.1), Quantization.NONE),
        (dataclasses.replace(CONFIG, variant=Variant.DORA), Quantization.NONE),
        (dataclasses.replace(CONFIG, variant=Variant.DORA), Quantization.NF4),
        (CONFIG, Quantization.INT8),
    ],
    ids=["dropout", "DoRA", "NF4, DoRA", "INT8"],
)
def test_what_is_not_plain_keeps_pefts_own_pass(
    tiny_base: Base, cpu: Device, config: LoraConfig, quantization: Quantization
) -> None:
    """Rather than computed without its dropout, magnitude or scales."""
    assert fuse(adapted(tiny_base, cpu, config, quantization).model) == 0


@pytest.fixture
def autocast_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT asks whether autocast is on without naming a device, and means the GPU's: for 4-bit weights it then takes
    another branch than on a CPU."""
    asked = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type="cpu": asked(device_type))


@pytest.mark.usefixtures("autocast_as_on_a_gpu")
@pytest.mark.parametrize(
    ("config", "recompute"),
    list(zip(ODD_RANKS, [False, False, True, True], strict=True)),
    ids=["1, kept", "3, kept", "5, recomputed", "by module, recomputed"],
)
@pytest.mark.parametrize(
    ("quantization", "dtype", "most"),
    [
        (Quantization.NF4, torch.float32, 1e-5),
        (Quantization.NONE, torch.bfloat16, 2**-5),
        (Quantization.NF4, torch.bfloat16, 2**-5),
        (Quantization.FP4, torch.bfloat16, 2**-5),
    ],
    ids=["NF4 in fp32", "bf16", "NF4", "FP4"],
)
def test_fused_16_and_4_bits_give_what_peft_gives(
    *,
    tiny_base: Base,
    cpu: Device,
    quantization: Quantization,
    dtype: torch.dtype,
    most: float,
    config: LoraConfig,
    recompute: bool,
) -> None:
    """Of a whole step, to the rounding of the type through two layers: either is off by half as much from exact ones,
    or with rank 1, where roundings average out less, by as much. Module by module it is the fast path's proof."""
    if dtype is torch.bfloat16 and 1 in {config.rank, *config.rank_pattern.values()}:
        most *= 2
    device = dataclasses.replace(cpu, dtype=dtype)
    model = adapted(tiny_base, device, config, quantization)
    if recompute:
        recompute_activations(model.model)
    loss, gradients = step(model, device, PADDED)
    assert fuse(model.model) == 14
    fused_loss, fused = step(model, device, PADDED)
    assert fused_loss == pytest.approx(loss, rel=most)
    assert len(fused) == len(gradients) == 28
    for ours, theirs in zip(fused, gradients, strict=True):
        assert ours.dtype == theirs.dtype == torch.float32
        assert (ours - theirs).norm() <= most * theirs.norm()


def test_4_bit_weights_are_made_whole_once_a_pass_and_not_kept(
    tiny_base: Base, cpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In full they are four times their size: kept, they would undo the quantization."""
    device = dataclasses.replace(cpu, dtype=torch.bfloat16)
    model = adapted(tiny_base, device, CONFIG, Quantization.NF4).model
    fuse(model)
    made: list[torch.Tensor] = []
    dequantize = bitsandbytes.functional.dequantize_4bit

    def counted(*args: Any) -> torch.Tensor:
        made.append(dequantize(*args))
        return made[-1]

    monkeypatch.setattr(bitsandbytes.functional, "dequantize_4bit", counted)
    kept: list[torch.Tensor] = []
    module = model.get_base_model().model.layers[0].mlp.up_proj
    x = torch.randn(1, 7, 64, dtype=torch.bfloat16, requires_grad=True)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with device.autocast(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = module(x)
    assert len(made) == 1
    assert not {tensor.untyped_storage().data_ptr() for tensor in kept} & {made[0].untyped_storage().data_ptr()}
    torch.autograd.backward(result.sum())
    assert len(made) == 2
    assert x.grad is not None


def test_where_autocast_computes_in_another_type_than_the_weights_peft_computes(tiny_base: Base, cpu: Device) -> None:
    """Some models keep modules in fp32 beside 16-bit ones; without autocast PEFT widens what 16-bit modules read."""
    bf16 = dataclasses.replace(cpu, dtype=torch.bfloat16)
    for base, used, given in ((cpu, bf16, torch.float32), (bf16, cpu, torch.bfloat16)):
        module = adapted(tiny_base, base, CONFIG).model.get_base_model().model.layers[0].mlp.up_proj
        x = torch.randn(2, 3, 64, dtype=given)
        with torch.no_grad(), used.autocast():
            wanted = module(x)
            install(module)
            found = module(x)
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted)


def test_fused_modules_can_be_switched_off(tiny_base: Base, cpu: Device) -> None:
    """As PEFT lets an adapter be: then the model is the base model again."""
    model = adapted(tiny_base, cpu, CONFIG)
    fuse(model.model)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        with model.model.disable_adapter():
            without = model.model(input_ids=ids).logits
        base = load_model(tiny_base, Quantization.NONE, cpu).model(input_ids=ids).logits
        assert (model.model(input_ids=ids).logits - base).abs().max() > 0.01
    torch.testing.assert_close(without, base)


@pytest.mark.parametrize("limit", [1, 1000, 2**23])
def test_the_loss_in_pieces_is_the_plain_one(
    tiny_base: Base, cpu: Device, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """Values and gradients by any weights, and never more logits at once than the limit or one token's."""
    monkeypatch.setitem(limits.MOST_LOGITS, "cpu", limit)
    model = load_model(tiny_base, Quantization.NONE, cpu)
    torch.manual_seed(1)
    hidden = torch.randn(9, 64, requires_grad=True)
    targets, weights = torch.randint(0, 300, (9,)), torch.rand(9)
    head: Any = model.head
    wanted = nn.functional.cross_entropy(head(hidden), targets, reduction="none")
    (expected,) = torch.autograd.grad((wanted * weights).sum(), hidden)
    found = losses._HeadLoss.apply(hidden, head.weight, None, targets)
    (gradient,) = torch.autograd.grad((found * weights).sum(), hidden)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sure_tokens_have_exact_gradients_in_16_bits(dtype: torch.dtype) -> None:
    """p - 1 of a token with p = 0.999 is nothing where p is rounded first: it is taken in fp32."""
    torch.manual_seed(0)
    weight, targets = torch.randn(300, 64).to(dtype), torch.arange(40)
    # Hidden states that point to their token, surer and surer.
    hidden = (weight[targets] * torch.linspace(0.02, 0.2, 40)[:, None]).to(dtype).requires_grad_()
    found = losses._HeadLoss.apply(hidden, weight, None, targets)
    torch.autograd.backward(found.sum())
    logits = nn.functional.linear(hidden.detach(), weight).double()
    wanted = nn.functional.cross_entropy(logits, targets, reduction="none")
    assert wanted.min() < 0.002, "some token is nearly certain"
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-3)
    gradient = (logits.softmax(1) - nn.functional.one_hot(targets, 300)) @ weight.double()
    assert hidden.grad is not None
    error = (hidden.grad.double() - gradient).norm(dim=1) / gradient.norm(dim=1)
    assert error.max() < 0.01


@pytest.mark.parametrize(
    ("kind", "options"),
    [("Gemma2", {"final_logit_softcapping": 1.5}), ("Granite", {"logits_scaling": 4.0}), ("Cohere", {})],
)
def test_what_a_model_does_to_its_logits_is_part_of_the_loss(cpu: Device, kind: str, options: dict[str, float]) -> None:
    """Caps and factors after the output embedding: the loss in pieces would pass over them."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"vocab_size": 300, "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.5, "pad_token_id": 0}
    config = getattr(transformers, f"{kind}Config")(**sizes, **more, bos_token_id=1, eos_token_id=2, **options)
    factory: Any = transformers.AutoModelForCausalLM
    model = factory.from_config(config, attn_implementation="eager").eval().requires_grad_(False)
    examples = rows(3)
    batch = collate(examples, cpu.torch_device)
    found = token_losses(model, model.get_output_embeddings(), batch, cpu)
    logits = model(input_ids=batch.input_ids).logits.flatten(0, 1)[batch.target_positions]
    torch.testing.assert_close(found, nn.functional.cross_entropy(logits, batch.targets, reduction="none"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_that_of_pytorch(dtype: torch.dtype, bias: bool) -> None:
    """Whichever library computes it, with transposed weights too."""
    torch.manual_seed(0)
    x, weight, offset = (torch.randn(shape, dtype=dtype) for shape in ((17, 33), (65, 33), (65,)))
    wanted = nn.functional.linear(x, weight, offset if bias else None)
    torch.testing.assert_close(product(x, weight, offset if bias else None), wanted)
    torch.testing.assert_close(product(wanted, weight.T), wanted @ weight)


def test_what_an_adapted_module_gives_may_be_changed_in_place(tiny_base: Base, cpu: Device) -> None:
    """As Llama 4 does with the output of its shared experts."""
    model = adapted(tiny_base, cpu, LoraConfig(rank=4)).model
    fuse(model)
    module = model.get_base_model().model.layers[0].mlp.up_proj
    result = module(torch.ones(1, 3, 64))
    result.add_(1)
    result.sum().backward()
    assert module.lora_B["default"].weight.grad.abs().sum() > 0


def test_whole_modules_beside_16_bit_weights_give_what_the_model_computes_in(tiny_base: Base, cpu: Device) -> None:
    """They are fp32: an embedding's fp32 would go through all layers, and where a LayerNorm follows it would fail."""
    device = dataclasses.replace(cpu, dtype=torch.bfloat16)
    model = adapted(tiny_base, device, LoraConfig(rank=4, modules_to_save=("embed_tokens", "norm"))).model
    inner = model.get_base_model().model
    assert inner.embed_tokens(torch.zeros(1, 1, dtype=torch.long)).dtype == torch.bfloat16
    assert inner.norm(torch.ones(1, 1, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert isolate(model)
