"""Packing: each row of a pack gives what it gives alone, logits and gradients, whatever the architecture."""

import dataclasses
import inspect
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.nn.attention import varlen
from transformers.integrations import moe
from transformers.models.minimax_m3_vl.configuration_minimax_m3_vl import MiniMaxM3VLTextConfig
from transformers.models.minimax_m3_vl.modeling_minimax_m3_vl import MiniMaxM3VLForCausalLM

from lora_trainer.model import attention
from lora_trainer.model.attention import NAME, attend, choose_attention, has_kernel, positions, segments_of
from lora_trainer.model.device import Device

CPU = torch.device("cpu")
DEVICE = Device(torch_device=CPU, name="cpu", dtype=torch.float32)
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
PACKED: list[tuple[str, dict[str, Any]]] = [
    ("Llama", {}),
    ("Qwen2", {}),
    ("Qwen3", {"head_dim": 8}),
    ("Mistral", {"sliding_window": 6}),
    ("Gemma2", {"head_dim": 8, "sliding_window": 6, "attn_logit_softcapping": 2.0}),
    ("Gemma3Text", {"head_dim": 8, "sliding_window": 6}),
    ("Phi", {}),
    ("GPT2", GPT2),
    ("GptOss", {"head_dim": 8, "sliding_window": 6, "num_local_experts": 4, "rope_scaling": None}),
    ("Granite", {"logits_scaling": 4.0}),
    ("Mixtral", {"num_local_experts": 4}),
    ("Qwen2Moe", {"num_experts": 8, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 24}),
]
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
        segments=segments_of(LENGTHS, CPU),
        use_cache=False,
    ).logits[0]
    return found


def alone(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits of each row by itself."""
    return torch.cat([model(input_ids=row, use_cache=False).logits[0] for row in torch.split(ids, list(LENGTHS), 1)])


def gradients(model: Any, logits: torch.Tensor) -> torch.Tensor:
    """Of all weights, by a loss that takes every logit in."""
    model.zero_grad()
    torch.autograd.backward((logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum())
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize(("kind", "options"), PACKED, ids=[kind for kind, _ in PACKED])
def test_a_row_gives_in_a_pack_what_it_gives_alone(kind: str, options: dict[str, Any]) -> None:
    """Logits and gradients in fp32, with rows longer than the sliding window, against Transformers' own attention."""
    reference, model = make(kind, **options), make(kind, **options)
    reference.set_attn_implementation("eager")
    assert choose_attention(model, DEVICE).packs
    wanted, found = alone(reference, tokens()), packed(model, tokens())
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max().clamp(min=1)
    expected = gradients(reference, wanted)
    assert (gradients(model, found) - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)


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
    choose_attention(model, DEVICE)
    found = model(input_ids=ids, segments=segments_of(LENGTHS, CPU), use_cache=False).logits[0]
    assert (found - alone(model, ids)).abs().max() > 0.5


STATEFUL: list[tuple[str, dict[str, Any]]] = [
    ("Mamba", {}),
    ("Lfm2", {"layer_types": ["conv", "full_attention"]}),
    (
        "Llama4Text",
        {"head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 48, "attention_chunk_size": 8},
    ),
    ("Falcon", {}),
    ("Bloom", {"n_layer": 2, "n_head": 4}),
]


@pytest.mark.parametrize(("kind", "options"), STATEFUL, ids=[kind for kind, _ in STATEFUL])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_model_whose_rows_would_meet_is_not_packed(kind: str, options: dict[str, Any]) -> None:
    """State over the sequence, chunks of fixed positions, attention that is not Transformers' common one."""
    model = make(kind, **options)
    before = alone(model, tokens())
    found = choose_attention(model, DEVICE)
    assert not found.packs
    assert found.unpacked
    assert (alone(model, tokens()) - before).abs().max() <= 1e-5


WINDOW = {"sliding_window": 16}
QWEN2_MOE = dict(next(options for kind, options in PACKED if kind == "Qwen2Moe"), **WINDOW, max_window_layers=1)
LIMITED: list[tuple[str, dict[str, Any], bool]] = [
    ("Mistral", WINDOW, True),
    ("Gemma2", {"head_dim": 8, **WINDOW}, True),
    ("Phimoe", {**WINDOW, "num_local_experts": 4}, False),
    ("Qwen2Moe", {**QWEN2_MOE, "use_sliding_window": True}, False),
    ("Qwen2Moe", {**QWEN2_MOE, "use_sliding_window": False}, True),
]


@pytest.mark.parametrize(("kind", "options", "packs"), LIMITED)
def test_a_window_that_only_masks_know_is_not_lost(kind: str, options: dict[str, Any], *, packs: bool) -> None:
    """It is longer than the rows that a model is tried with: a row beyond it has the logits that the model gives. Where
    no row is longer than the window, nothing is lost by packing."""
    model, ids = make(kind, **options), torch.arange(64)[None] * 7 % 101
    wanted, before = model(input_ids=ids, use_cache=False).logits, model.config._attn_implementation
    found = choose_attention(model, DEVICE)
    assert (found.packs, model.config._attn_implementation) == (packs, NAME if packs else before)
    assert packs or "masks alone" in found.unpacked
    assert (model(input_ids=ids, use_cache=False).logits - wanted).abs().max() <= 1e-4
    assert not choose_attention(make(kind, **options), DEVICE, longest=17).packs or packs
    assert choose_attention(make(kind, **options), DEVICE, longest=16).packs


def test_blocks_that_layers_select_are_not_lost() -> None:
    """MiniMax-M3 gives its selection to attention, in a tensor that is not known here; positions are."""
    sparse = {"index_n_heads": 2, "index_head_dim": 16, "index_block_size": 8, "index_topk_blocks": 4}
    kinds = {"layer_types": ["full_attention", "minimax_m3_sparse"], "mlp_layer_types": ["dense", "dense"]}
    more = {"num_local_experts": 4, "num_experts_per_tok": 2, "dense_intermediate_size": 48}
    heads = {"shared_intermediate_size": 48, "head_dim": 16, "rotary_dim": 8}
    config = MiniMaxM3VLTextConfig(**{**SIZES, "max_position_embeddings": 256, **sparse, **kinds, **more, **heads})
    torch.manual_seed(0)
    made: Any = MiniMaxM3VLForCausalLM(config)
    model, ids = made.eval(), torch.arange(96)[None] * 7 % 101
    wanted = model(input_ids=ids, use_cache=False).logits
    found = choose_attention(model, DEVICE)
    assert not found.packs
    assert "takes no block_indices" in found.unpacked
    assert (model(input_ids=ids, use_cache=False).logits - wanted).abs().max() <= 1e-4


def test_a_model_that_drops_the_segments_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tried on the model itself: what is not passed on shows in its logits."""
    model = make("Llama")
    original: Callable[..., Any] = model.model.forward

    def forgetful(*args: Any, segments: object = None, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    monkeypatch.setattr(model.model, "forward", forgetful)
    assert not choose_attention(model, DEVICE).packs


def test_a_model_that_counts_its_own_positions_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows do not see each other, and it is not reported that they would."""
    model = make("GPT2", **GPT2)
    original: Callable[..., Any] = model.transformer.forward

    def forgetful(*args: Any, position_ids: object = None, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    monkeypatch.setattr(model.transformer, "forward", forgetful)
    found = choose_attention(model, DEVICE)
    assert not found.packs
    assert "computes other logits" in found.unpacked


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_packed_too(dtype: torch.dtype) -> None:
    """Their rounding is not taken for contamination."""
    assert choose_attention(make("Llama", dtype), DEVICE).packs


@pytest.mark.parametrize(
    ("error", "broken"),
    [
        (RuntimeError("FlashAttention only supports Ampere GPUs or newer."), True),
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"), True),
        (ValueError("isolated attention is causal and takes no mask"), False),
        (NotImplementedError("no rule for it"), False),
    ],
)
def test_a_kernel_that_fails_is_reported_as_such_and_not_as_rows_that_see_each_other(
    monkeypatch: pytest.MonkeyPatch, error: Exception, *, broken: bool
) -> None:
    """With its own words; the model then computes as it did, and rows are padded."""
    model = make("Llama")
    before = model.config._attn_implementation
    fail_with(error, monkeypatch)
    found = choose_attention(model, DEVICE)
    assert (found.packs, found.broken, found.kernel) == (False, broken, before)
    assert str(error) in found.unpacked
    assert "see each other" not in found.unpacked


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
    ],
)
def test_what_padding_would_not_help_against_ends_the_choice(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Memory that does not suffice, and a GPU that failed, are what they are."""
    fail_with(error, monkeypatch)
    with pytest.raises(type(error), match=str(error)[:20]):
        choose_attention(make("Llama"), DEVICE)


def fail_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernel of a row in a pack raise."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(attention, "causal", fail)


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


@pytest.mark.parametrize(
    ("kind", "options", "kernel"),
    [
        ("Llama", {"head_dim": 8}, "varlen"),
        ("Mistral", {"head_dim": 8, "sliding_window": 4}, "varlen"),
        ("Llama", {"head_dim": 12}, "sdpa"),
        ("Gemma2", {"head_dim": 8, "attn_logit_softcapping": 2.0}, "sdpa"),
    ],
    ids=["plain", "window", "odd heads", "caps"],
)
def test_a_gpu_packs_with_its_kernel_or_row_by_row(
    monkeypatch: pytest.MonkeyPatch, kind: str, options: dict[str, Any], kernel: str
) -> None:
    """Called as PyTorch documents it; a model that it does not suit is packed all the same, and the name is true."""
    monkeypatch.setattr(attention, "capability_of", lambda device: (9, 0))
    monkeypatch.setattr(varlen, "varlen_attn", kernel_for_packs)
    found = choose_attention(make(kind, torch.bfloat16, **options), DEVICE)
    assert (found.packs, found.kernel) == (True, kernel)


def test_the_kernel_of_an_older_pytorch_gets_a_key_for_each_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses heads that share keys, as they do in most models."""

    def of_2_11(q: Any, k: Any, v: Any, *bounds: Any, scale: Any = None, window_size: Any = (-1, -1)) -> torch.Tensor:
        asked.append(k.shape[1])
        return kernel_for_packs(q, k, v, *bounds, scale=scale, window_size=window_size)

    asked: list[int] = []
    monkeypatch.setattr(attention, "capability_of", lambda device: (9, 0))
    monkeypatch.setattr(varlen, "varlen_attn", of_2_11)
    model = make("Llama", torch.bfloat16, head_dim=8, num_attention_heads=4, num_key_value_heads=2)
    assert (choose_attention(model, DEVICE).kernel, {*asked}) == ("varlen", {4})


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


def test_another_kernels_rounding_is_not_taken_for_contamination(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16 it grows with the depth: it comes to a fiftieth of the logits' spread in 30 layers."""

    def other(*given: Any, enable_gqa: bool, **more: Any) -> torch.Tensor:
        found = kernel_for_packs(*given, enable_gqa=enable_gqa, **more)
        coarse = torch.randn(found.shape, generator=torch.Generator().manual_seed(0)) * 2**-7
        return (found.float() * (1 + coarse)).to(found.dtype)

    monkeypatch.setattr(attention, "capability_of", lambda device: (9, 0))
    monkeypatch.setattr(varlen, "varlen_attn", other)
    monkeypatch.setattr(attention, "objection_to", lambda call: None)  # of a layer alone it is too much
    deep = make("Llama", torch.bfloat16, num_hidden_layers=24, head_dim=8, initializer_range=0.1)
    assert choose_attention(deep, DEVICE).packs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_layer_that_sees_other_rows_is_found_out(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """However little it changes in a deep model: other tokens in the rows before must not change the last row."""
    deep = make("Llama", dtype, num_hidden_layers=24, head_dim=8, initializer_range=0.1)
    layer = deep.model.layers[23].self_attn
    layer.o_proj.weight.data *= 0.4
    original: Callable[..., Any] = layer.forward

    def forgetful(*args: Any, segments: object = None, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    monkeypatch.setattr(layer, "forward", forgetful)
    assert not choose_attention(deep, DEVICE).packs


def test_attention_that_is_not_causal_is_refused() -> None:
    """Rather than computed wrongly: the model then keeps its own."""
    module, heads = nn.Module(), torch.zeros(1, 1, 2, 4)
    with pytest.raises(ValueError, match="takes no mask"):
        attend(module, heads, heads, heads, torch.ones(1, 1, 2, 2))
    vars(module)["is_causal"] = False
    with pytest.raises(ValueError, match="is causal"):
        attend(module, heads, heads, heads, None)


def test_the_name_is_known_to_transformers() -> None:
    """A model that computes with it says so in its configuration."""
    model = make("Llama")
    choose_attention(model, DEVICE)
    assert model.config._attn_implementation == NAME


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


MIXTURES: list[tuple[str, dict[str, Any]]] = [
    ("Mixtral", {"num_local_experts": 8}),
    ("Mixtral", {"num_local_experts": 8, "num_hidden_layers": 48}),
    ("Qwen2Moe", {"num_experts": 32, "num_experts_per_tok": 4, "moe_intermediate_size": 64}),
    ("Qwen3Moe", {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 64, "head_dim": 16}),
    ("GptOss", {"num_local_experts": 8, "num_experts_per_tok": 2, "head_dim": 16, "rope_scaling": None}),
]
WIDE: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 16,
    "initializer_range": 0.05,
}


def product_for_each_expert(rows: torch.Tensor, weight: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
    """PyTorch's fallback for grouped products on GPUs below compute capability 9.0: one for each expert, which cuBLAS
    adds up in parts, for another number of rows in others."""
    found, start = torch.zeros(len(rows), weight.shape[2], dtype=weight.dtype), 0
    for expert, end in enumerate(offs.tolist()):
        few = {0: 1, 1: 1, 2: 2, 3: 2}.get(end - start, 4)
        parts = zip(rows[start:end].float().chunk(few, 1), weight[expert].float().chunk(few, 0), strict=True)
        found[start:end] = sum((x @ w for x, w in parts), torch.zeros(())).to(weight.dtype)
        start = end
    return found


@pytest.mark.parametrize(("kind", "options"), MIXTURES, ids=[f"{kind} {len(o)}" for kind, o in MIXTURES])
def test_a_mixture_is_packed_however_its_products_are_rounded(
    monkeypatch: pytest.MonkeyPatch, kind: str, options: dict[str, Any]
) -> None:
    """How many rows an expert has depends on all rows of a pack, and near ties of its router flip with the rounding."""
    monkeypatch.setattr(moe, "_grouped_mm", product_for_each_expert)
    device = dataclasses.replace(DEVICE, dtype=torch.bfloat16)
    found = choose_attention(make(kind, torch.bfloat16, **{**WIDE, **options}), device)
    assert (found.packs, found.unpacked) == (True, "")


def leaky(see: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Attention over a pack with a mask of its own: which tokens, by their rows and their positions, see which."""

    def attention_over_packs(given: Any, segments: Any, kind: Any) -> torch.Tensor:
        query, key, value = given
        count = torch.tensor(segments.lengths)
        row = torch.repeat_interleave(torch.arange(len(count)), count)
        found = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, see(row[:, None], row[None]), scale=kind.scaling, enable_gqa=True
        )
        segments.kernels.add("leaky")
        return found.transpose(1, 2)

    return attention_over_packs


def causal(row: torch.Tensor) -> torch.Tensor:
    """Which token comes before which."""
    position = torch.arange(row.numel())
    return position[:, None] >= position


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["Llama", "Mixtral"])
@pytest.mark.parametrize(
    "see",
    [
        lambda mine, theirs: causal(mine) & (mine - theirs <= 1),
        lambda mine, theirs: (mine == theirs) & causal(mine) | (theirs == mine + 1),
        lambda mine, theirs: (mine == theirs) & causal(mine) | (theirs == 0) & (mine == 1),
    ],
    ids=["the row before", "the row after", "of one row alone"],
)
def test_a_broken_mask_in_one_layer_is_found_out_by_its_gradient(
    monkeypatch: pytest.MonkeyPatch, kind: str, dtype: torch.dtype, see: Any
) -> None:
    """However small: what comes by it is far less than what rounding changes."""
    model = make(kind, dtype, num_hidden_layers=6)
    layer = model.model.layers[4].self_attn
    layer.o_proj.weight.data *= 2**-6
    right, broken = attention.isolated, leaky(see)
    within: list[bool] = []
    layer.register_forward_pre_hook(lambda *_: within.append(True))
    layer.register_forward_hook(lambda *_: within.clear())

    def isolated(*given: Any) -> torch.Tensor:
        return (broken if within else right)(*given)

    monkeypatch.setattr(attention, "isolated", isolated)
    found = choose_attention(model, DEVICE)
    assert (found.packs, found.broken) == (False, False)
    assert "see each other" in found.unpacked


def test_attention_is_chosen_in_three_passes() -> None:
    """Each reads all the weights: alone in two ways, and in a pack, whose gradients take two more."""
    model, passes = make("Llama"), list[int]()
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    assert choose_attention(model, DEVICE).packs
    assert len(passes) == 3


def test_parameters_get_no_gradient_from_the_choice() -> None:
    """Nor do modules keep a hook."""
    model = make("Llama")
    assert choose_attention(model, DEVICE).packs
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.get_input_embeddings()._forward_hooks
