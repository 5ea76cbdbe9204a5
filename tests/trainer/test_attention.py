"""Attention over packs: each row of a pack gives what it gives alone, with the kernel for packs and row by row.

Which families may be packed, and that their rows see nothing of each other, is in `test_fast`.
"""

import inspect
import itertools
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.nn.attention import varlen

from lora_trainer.model import attention
from lora_trainer.model.attention import ROWS, attend, has_kernel, positions, sequence_lengths
from lora_trainer.model.device import Device
from lora_trainer.model.fast import compute_with, isolate, usable

CPU = torch.device("cpu")
GPU = Device(torch_device=CPU, name="cpu", dtype=torch.bfloat16, capability=(9, 0))
SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
LENGTHS = (11, 3, 17, 1, 9)


def make(kind: str, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """A random two-layer model of an architecture."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **options})
    factory: Any = transformers.AutoModelForCausalLM
    return factory.from_config(config, dtype=dtype).eval()


def tokens() -> torch.Tensor:
    """A pack of rows, shape (1, tokens)."""
    return torch.randint(3, 101, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(1))


def packed(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits of all rows of a pack."""
    found: torch.Tensor = model(
        input_ids=ids,
        position_ids=positions(LENGTHS, CPU),
        segments=sequence_lengths(LENGTHS, CPU),
        use_cache=False,
    ).logits[0]
    return found


def alone(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits of each row by itself."""
    return torch.cat([model(input_ids=row, use_cache=False).logits[0] for row in torch.split(ids, list(LENGTHS), 1)])


@pytest.mark.parametrize("mask", [None, "ones"])
def test_the_comparison_would_catch_a_naive_mask(mask: str | None) -> None:
    """Causal over the whole pack, or with a mask of ones: rows see each other and logits differ by about 1."""
    model, ids = make("Llama"), tokens()
    given = None if mask is None else torch.ones_like(ids)
    found = model(input_ids=ids, attention_mask=given, use_cache=False).logits[0]
    difference = (found - alone(model, ids)).abs()
    assert difference[: LENGTHS[0]].max() <= 1e-5, "the first row of a pack sees no other"
    assert difference[LENGTHS[0] :].max() > 0.5


def test_positions_that_do_not_restart_are_caught_too() -> None:
    """Learned positions of GPT-2 must begin anew with each row."""
    model, ids = make("GPT2", **GPT2), tokens()
    assert isolate(model)
    found = model(input_ids=ids, segments=sequence_lengths(LENGTHS, CPU), use_cache=False).logits[0]
    assert (found - alone(model, ids)).abs().max() > 0.5


WINDOW = {"sliding_window": 16}
QWEN2_MOE: dict[str, Any] = {
    "num_experts": 8,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 24,
    "max_window_layers": 1,
    **WINDOW,
}
LIMITED: list[tuple[str, dict[str, Any], bool]] = [
    ("Mistral", WINDOW, True),
    ("Gemma2", {"head_dim": 8, **WINDOW}, True),
    ("Qwen2Moe", {**QWEN2_MOE, "use_sliding_window": True}, False),
    ("Qwen2Moe", {**QWEN2_MOE, "use_sliding_window": False}, True),
]


@pytest.mark.parametrize(("kind", "options", "packs"), LIMITED)
def test_a_window_that_only_masks_know_is_not_lost(kind: str, options: dict[str, Any], *, packs: bool) -> None:
    """A row beyond it has the logits that the model gives. Where no row is longer than the window, nothing is lost by
    packing."""
    model, ids = make(kind, **options), torch.arange(64)[None] * 7 % 101
    wanted, before = model(input_ids=ids, use_cache=False).logits, model.config._attn_implementation
    assert isolate(model) is packs
    assert model.config._attn_implementation == (ROWS if packs else before)
    assert (model(input_ids=ids, use_cache=False).logits - wanted).abs().max() <= 1e-4
    assert isolate(make(kind, **options), longest=17) is packs
    assert isolate(make(kind, **options), longest=16)


_DOCUMENTED = inspect.signature(varlen.varlen_attn)


def kernel_for_packs(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *bounds: Any,
    scale: Any,
    window_size: Any,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """What PyTorch documents of `varlen_attn`, which has no CPU version: shapes (tokens, heads, size), rows between
    bounds, a window of tokens to the left and to the right."""
    _DOCUMENTED.bind(query, key, value, *bounds, scale=scale, window_size=window_size, enable_gqa=enable_gqa)
    assert {query.dtype, key.dtype, value.dtype} <= {torch.bfloat16, torch.float16}
    (starts, same, longest, _), (left, right) = bounds, window_size
    assert (starts is same, starts.dtype, right) == (True, torch.int32, 0)
    assert enable_gqa is (query.shape[1] != key.shape[1])
    found = []
    for start, end in itertools.pairwise(starts.tolist()):
        assert end - start <= longest
        distance = torch.arange(end - start)[:, None] - torch.arange(end - start)
        seen = (distance >= 0) & (distance <= (left if left >= 0 else longest))
        q, k, v = (tensor[start:end].transpose(0, 1)[None] for tensor in (query, key, value))
        found.append(nn.functional.scaled_dot_product_attention(q, k, v, seen, scale=scale, enable_gqa=True)[0])
    return torch.cat(found, dim=1).transpose(0, 1)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's kernel for packs, as PyTorch documents it."""
    monkeypatch.setattr(attention, "capability_of", lambda device: (9, 0))
    monkeypatch.setattr(varlen, "varlen_attn", kernel_for_packs)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("kind", "options", "kernel"),
    [
        ("Llama", {"head_dim": 8}, True),
        ("Mistral", {"head_dim": 8, "sliding_window": 4}, True),
        ("Llama", {"head_dim": 12}, False),
        ("Gemma2", {"head_dim": 8, "attn_logit_softcapping": 2.0}, False),
    ],
    ids=["plain", "window", "odd heads", "caps"],
)
def test_a_gpu_packs_with_its_kernel_or_row_by_row(kind: str, options: dict[str, Any], *, kernel: bool) -> None:
    """Called as PyTorch documents it; a model that it does not suit is packed all the same."""
    model, ids = make(kind, torch.bfloat16, **options), tokens()
    assert isolate(model)
    wanted = packed(model, ids)
    entries = [entry for entry in usable(model, GPU, packed=True) if entry.name == "varlen"]
    assert bool(entries) is kernel
    assert not [entry for entry in usable(model, GPU, packed=False) if entry.name == "varlen"]
    compute_with(model, entries, GPU)
    found = packed(model, ids)
    assert (found - wanted).norm() <= 2**-6 * wanted.norm()
    compute_with(model, (), GPU)
    assert torch.equal(packed(model, ids), wanted)


def test_the_kernel_of_an_older_pytorch_gets_a_key_for_each_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses heads that share keys, as they do in most models."""

    def of_2_11(q: Any, k: Any, v: Any, *bounds: Any, scale: Any = None, window_size: Any = (-1, -1)) -> torch.Tensor:
        asked.append(k.shape[1])
        return kernel_for_packs(q, k, v, *bounds, scale=scale, window_size=window_size)

    asked: list[int] = []
    monkeypatch.setattr(attention, "capability_of", lambda device: (9, 0))
    monkeypatch.setattr(varlen, "varlen_attn", of_2_11)
    model = make("Llama", torch.bfloat16, head_dim=8, num_attention_heads=4, num_key_value_heads=2)
    assert isolate(model)
    compute_with(model, usable(model, GPU, packed=True), GPU)
    packed(model, tokens())
    assert {*asked} == {4}


@pytest.mark.parametrize(
    ("sizes", "dtype", "capability", "has"),
    [
        ((128, 128), torch.bfloat16, (8, 0), True),
        ((256, 256), torch.float16, (9, 0), True),
        ((128, 128), torch.float32, (9, 0), False),
        ((128, 128), torch.float16, (7, 5), False),
        ((128, 128), torch.bfloat16, None, False),
        ((512, 512), torch.bfloat16, (9, 0), False),
        ((192, 128), torch.bfloat16, (9, 0), False),
        ((80, 80), torch.bfloat16, (8, 9), True),
        ((100, 100), torch.bfloat16, (8, 9), False),
    ],
)
def test_the_kernel_for_packs_is_asked_for_what_it_can(
    sizes: tuple[int, int], dtype: torch.dtype, capability: tuple[int, int] | None, has: bool
) -> None:
    """Not on a T4, a CPU or in fp32, whose rows are computed one after the other instead."""
    assert has_kernel(*sizes, dtype, capability) is has


def test_attention_that_is_not_causal_is_refused() -> None:
    """Rather than computed wrongly: the model then keeps its own."""
    module, heads = nn.Module(), torch.zeros(1, 1, 2, 4)
    with pytest.raises(ValueError, match="takes no mask"):
        attend(module, heads, heads, heads, torch.ones(1, 1, 2, 2))
    vars(module)["is_causal"] = False
    with pytest.raises(ValueError, match="is causal"):
        attend(module, heads, heads, heads, None)


def test_a_cpu_keeps_no_copies_of_keys_that_heads_share() -> None:
    """Eight heads share one key head: its copies would be most of what the backward pass keeps."""
    query, key, value = (torch.randn(1, heads, 20, 8, requires_grad=True) for heads in (8, 1, 1))
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attend(nn.Module(), query, key, value, None)
    # Queries, results and a number for each row of a head's scores.
    assert sum(kept) <= 2 * query.numel() + key.numel() + value.numel() + 8 * 20
