"""FlexAttention over packs gives what attention that is written out gives, and is left out where it does not.

On a CPU it runs uncompiled, with gradients that PyTorch has but does not vouch for there.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tests.trainer.test_attention import make
from tests.trainer.test_attention_gradients import Backward, failing, no_number_in_one_token
from torch.nn.attention import flex_attention as library

from lora_trainer.errors import GpuFaultError
from lora_trainer.model import attention, flex, flexible
from lora_trainer.model.attention import Attention, Kind, choose_attention, positions, segments_of
from lora_trainer.model.device import Device
from lora_trainer.model.flexible import Choice, choose_flex
from lora_trainer.ranks.collectives import ALONE, Ranks

CPU = torch.device("cpu")
DEVICE = Device(torch_device=CPU, name="cpu", dtype=torch.bfloat16)
PACKING = Attention(kernel="sdpa", packs=True)
HEADS: dict[str, Any] = {"head_dim": 16, "initializer_range": 0.1}
CAPPED: dict[str, Any] = {**HEADS, "sliding_window": 6, "attn_logit_softcapping": 2.0}
SINKS: dict[str, Any] = {**HEADS, "sliding_window": 6, "num_local_experts": 4, "rope_scaling": None}
MODELS = [("Gemma2", CAPPED), ("GptOss", SINKS)]
PACKS = [(11, 3, 17, 1, 9), (128,), (64, 64, 128), (5,), (1, 129, 40), (300, 2, 83)]


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that is taken for an H100."""
    monkeypatch.setattr(library, "_validate_device", lambda *_: None)
    monkeypatch.setattr(library, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(flex, "_compiled", lambda: flex.computed)
    monkeypatch.setattr(attention, "capability_of", lambda device: (9, 0))


def drawn(heads: int, tokens: int) -> torch.Tensor:
    """Queries, keys or values."""
    generator = torch.Generator().manual_seed(heads)
    return torch.randn(1, heads, tokens, 16, generator=generator, requires_grad=True)


@pytest.mark.parametrize("lengths", PACKS)
@pytest.mark.parametrize("window", [None, 6, 150])
@pytest.mark.parametrize(("softcap", "sinks"), [(2.0, False), (None, True), (3.0, True)])
def test_results_and_gradients_are_those_of_attention_that_is_written_out(
    lengths: tuple[int, ...], window: int | None, *, softcap: float | None, sinks: bool
) -> None:
    """Six query heads share two keys; the gradient of the sinks, where they are trained, is right as well."""
    learned = torch.linspace(-2, 2, 6).requires_grad_() if sinks else None
    kind = Kind(scaling=0.3, dropout=0.0, window=window, softcap=softcap, sinks=learned)
    leaves = query, key, value = tuple(drawn(heads, sum(lengths)) for heads in (6, 2, 2))
    segments = segments_of(lengths, CPU)
    tables = flex.tables_of(lengths, window, CPU)
    found = flex.attention(query, key, value, tables, scaling=0.3, softcap=softcap, sinks=learned)
    wanted = attention.row_by_row(attention._explicit, leaves, segments, kind)
    assert found.is_contiguous()
    trained = [*leaves, *([] if learned is None else [learned])]
    weights = torch.linspace(-1, 1, wanted.numel()).view_as(wanted)
    for ours, theirs in zip(
        (found, *torch.autograd.grad(found, trained, weights)),
        (wanted, *torch.autograd.grad(wanted, trained, weights)),
        strict=True,
    ):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.parametrize("lengths", PACKS)
@pytest.mark.parametrize("window", [None, 6, 150])
def test_the_tables_are_those_that_pytorch_makes_of_the_whole_mask(
    lengths: tuple[int, ...], window: int | None
) -> None:
    """Which blocks are seen in part and in full, from either side."""
    first, *tables = flex.tables_of(lengths, window, CPU)
    blocks = -(-sum(lengths) // 128)
    mask = library.create_block_mask(
        lambda _batch, _head, query, key: (key <= query) & (key >= first[query]),
        None,
        None,
        sum(lengths),
        sum(lengths),
        CPU,
    )
    row = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    distance = torch.arange(len(row))[:, None] - torch.arange(len(row))
    seen = (row[:, None] == row) & (distance >= 0) & (distance < (window or len(row)))
    assert torch.equal(torch.argmax(seen.int(), 1), first.long())
    names = [
        name.format(side)
        for side in ("kv", "q")
        for name in ("{}_num_blocks", "{}_indices", "full_{}_num_blocks", "full_{}_indices")
    ]
    assert {table.dtype for table in (first, *tables)} == {torch.int32}
    for counts, indices, count_name, index_name in zip(tables[::2], tables[1::2], names[::2], names[1::2], strict=True):
        wanted = getattr(mask, count_name)[0, 0]
        assert torch.equal(counts[0, 0, :blocks], wanted), count_name
        assert not counts[0, 0, blocks:].any()
        for block, count in enumerate(wanted.tolist()):
            assert torch.equal(indices[0, 0, block, :count], getattr(mask, index_name)[0, 0, block, :count])


@pytest.mark.parametrize(("kind", "options"), MODELS)
def test_a_model_computes_so_once_it_is_proven(kind: str, options: dict[str, Any]) -> None:
    """With the logits and gradients of rows one by one; rows that are padded are computed as before."""
    model, plain = (make(kind, torch.bfloat16, **options) for _ in range(2))
    for one in (model, plain):
        assert choose_attention(one, DEVICE) == PACKING
    assert choose_flex(model, PACKING, DEVICE, ALONE, None) == Choice(kernel="flex")
    ids = torch.arange(3, 44)[None]
    lengths = (11, 3, 17, 1, 9)
    segments, places = segments_of(lengths, CPU), positions(lengths, CPU)
    found, wanted = (
        one.float()(input_ids=ids, position_ids=places, segments=segments, use_cache=False).logits
        for one in (model, plain)
    )
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    assert torch.equal(*(one(input_ids=ids, use_cache=False).logits for one in (model, plain)))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_layers_of_a_pack_share_its_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are made once for layers with a window, and once for those without."""
    model, made = make("Gemma2", torch.bfloat16, **{**CAPPED, "num_hidden_layers": 8}), list[int | None]()
    assert choose_attention(model, DEVICE) == PACKING
    assert choose_flex(model, PACKING, DEVICE, ALONE, None).kernel == "flex"
    right: Callable[..., Any] = flex.tables_of

    def counted(lengths: Any, window: int | None, device: Any) -> Any:
        made.append(window)
        return right(lengths, window, device)

    monkeypatch.setattr(flex, "tables_of", counted)
    model(input_ids=torch.arange(3, 9)[None], segments=segments_of((4, 2), CPU), use_cache=False)
    assert made == [6, None]


WRONG = [
    pytest.param(lambda gradient: 1.01 * gradient, "its {} errs by 1.[01]e-02, ", id="1 % wrong"),
    pytest.param(no_number_in_one_token, "its {} errs by nan, ", id="no number in one token"),
    pytest.param(failing, "it fails: .*FlashAttention only supports Ampere GPUs", id="fails"),
]


def change(monkeypatch: pytest.MonkeyPatch, changed: Callable[..., Any]) -> None:
    """What FlexAttention computes, from what is right and its arguments."""
    right: Callable[..., Any] = flex.attention
    monkeypatch.setattr(flex, "attention", lambda *given, **more: changed(right, *given, **more))


@pytest.mark.parametrize(("wrong", "sentence"), WRONG)
@pytest.mark.parametrize("place", ["result", "queries", "keys", "values"])
def test_what_errs_or_fails_is_left_out(
    monkeypatch: pytest.MonkeyPatch, place: str, *, wrong: Any, sentence: str
) -> None:
    """In its result or in one gradient; the run goes on as without it."""

    def changed(right: Any, *given: Any, **more: Any) -> torch.Tensor:
        if place == "result":
            found: torch.Tensor = wrong(right(*given, **more))
            return found
        inputs = [*given]
        number = ("queries", "keys", "values").index(place)
        inputs[number] = Backward.apply(inputs[number], wrong)
        return torch.as_tensor(right(*inputs, **more))

    change(monkeypatch, changed)
    model = make("Gemma2", torch.bfloat16, **CAPPED)
    assert choose_attention(model, DEVICE) == PACKING
    found = choose_flex(model, PACKING, DEVICE, ALONE, None)
    assert (found.kernel, model.config._attn_implementation) == (None, attention.NAME)
    what = place if place == "result" else f"the gradient of its {place}"
    expected = sentence.format(what).replace("its the", "the")
    assert re.search(expected, found.left_out or ""), found.left_out


def test_what_fails_without_gradients_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is compiled by itself, and evaluations are too late to find out."""

    def changed(right: Any, query: torch.Tensor, *given: Any, **more: Any) -> torch.Tensor:
        return torch.as_tensor(right(query, *given, **more) if query.requires_grad else failing(query))

    change(monkeypatch, changed)
    model = make("Gemma2", torch.bfloat16, **CAPPED)
    assert choose_attention(model, DEVICE) == PACKING
    assert "it fails: " in (choose_flex(model, PACKING, DEVICE, ALONE, None).left_out or "")


def test_a_gpu_that_failed_in_the_comparison_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain PyTorch could not compute there either."""

    def changed(*_given: Any, **_more: Any) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    change(monkeypatch, changed)
    model = make("Gemma2", torch.bfloat16, **CAPPED)
    assert choose_attention(model, DEVICE) == PACKING
    with pytest.raises(
        GpuFaultError, match=r"the fast path flex-attention .* set spec\.training\.kernels to Reference"
    ):
        choose_flex(model, PACKING, DEVICE, ALONE, None)


@pytest.mark.parametrize("leak", ["window", "rows"])
def test_a_mask_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch, leak: str) -> None:
    """Also that of a window which is longer than all rows of the comparison."""
    right: Callable[..., Any] = flex.tables_of

    def wrong(lengths: tuple[int, ...], window: int | None, device: torch.device) -> Any:
        return right(lengths, None, device) if leak == "window" else right((sum(lengths),), window, device)

    monkeypatch.setattr(flex, "tables_of", wrong)
    model = make("Gemma2", torch.bfloat16, **{**CAPPED, "sliding_window": 4096})
    assert choose_attention(model, DEVICE) == PACKING
    assert re.search("its result errs by", choose_flex(model, PACKING, DEVICE, ALONE, None).left_out or "")


def test_it_is_asked_for_its_rows_in_the_model_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the comparison of single layers found."""
    monkeypatch.setattr(attention, "objection_to", lambda *_: None)
    monkeypatch.setattr(
        flex, "tables_of", lambda lengths, *_: (torch.zeros(sum(lengths), dtype=torch.int32), *[None] * 8)
    )

    def seeing(first: Any, query: Any, key: Any, value: Any) -> Any:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)

    change(monkeypatch, lambda _right, query, key, value, first, **_: seeing(first, query, key, value).transpose(1, 2))
    model = make("Gemma2", torch.bfloat16, **CAPPED)
    assert choose_attention(model, DEVICE) == PACKING
    found = choose_flex(model, PACKING, DEVICE, ALONE, None)
    assert "see each other" in (found.left_out or "")
    assert model.config._attn_implementation == attention.NAME


class Two(Ranks):
    """Two processes, of which the other one refuses last."""

    def gather(self, value: Any, kind: Any) -> list[Any]:
        """By rank."""
        return [value, "another process has no room" if value is None else value]


def test_what_one_process_leaves_out_none_takes() -> None:
    """With its sentence."""
    model = make("Gemma2", torch.bfloat16, **CAPPED)
    assert choose_attention(model, DEVICE) == PACKING
    assert choose_flex(model, PACKING, DEVICE, Two(), None) == Choice(left_out="another process has no room")
    assert model.config._attn_implementation == attention.NAME


@pytest.mark.parametrize(
    ("slow", "left_out"), [(5.0, "it takes 5000.0 ms forward and backward, plain PyTorch 1000.0 ms"), (1.0, None)]
)
def test_it_is_left_out_where_it_is_slower(monkeypatch: pytest.MonkeyPatch, slow: float, left_out: str | None) -> None:
    """Than rows one by one."""

    def seconds(_call: Any, _segments: Any, compute: Any) -> float:
        return slow / 2 if compute is flexible.isolated else 0.5

    monkeypatch.setattr(flexible, "_seconds", seconds)
    model = make("Gemma2", torch.bfloat16, **CAPPED)
    assert choose_attention(model, DEVICE) == PACKING
    assert choose_flex(model, PACKING, DEVICE, ALONE, lambda: [7, 9]).left_out == left_out


def test_its_times_are_taken_forward_and_backward() -> None:
    """Of both, on rows of the run."""
    model = make("GptOss", torch.bfloat16, **SINKS)
    assert choose_attention(model, DEVICE) == PACKING
    found = choose_flex(model, PACKING, DEVICE, ALONE, lambda: [7, 9])
    assert found.kernel == "flex" or re.search("it takes .* ms forward and backward, plain", found.left_out or "")


def test_where_plain_pytorch_lacks_memory_it_is_not_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows whose scores do not fit are what it is for."""

    def seconds(*_: Any) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(flexible, "_seconds", seconds)
    model = make("Gemma2", torch.bfloat16, **CAPPED)
    assert choose_attention(model, DEVICE) == PACKING
    assert choose_flex(model, PACKING, DEVICE, ALONE, lambda: [7, 9]).kernel == "flex"


UNSUITED: list[tuple[str, dict[str, Any], Any, Any]] = [
    ("Llama", {"head_dim": 12}, torch.bfloat16, (9, 0)),
    ("Gemma2", {**CAPPED, "head_dim": 8}, torch.bfloat16, (9, 0)),
    ("Gemma2", {**CAPPED, "head_dim": 20}, torch.bfloat16, (9, 0)),
    ("Gemma2", CAPPED, torch.float32, (9, 0)),
    ("Gemma2", CAPPED, torch.float16, (7, 5)),
    ("Gemma2", CAPPED, torch.bfloat16, None),
]


@pytest.mark.parametrize(
    ("kind", "options", "dtype", "capability"),
    UNSUITED,
    ids=["nothing capped", "small heads", "odd heads", "fp32", "a T4", "a CPU"],
)
def test_what_it_does_not_suit_is_not_tried(
    monkeypatch: pytest.MonkeyPatch, kind: str, options: dict[str, Any], dtype: Any, capability: Any
) -> None:
    """And nothing is said of it."""
    monkeypatch.setattr(attention, "capability_of", lambda device: capability)
    change(monkeypatch, lambda *_, **__: pytest.fail("it is computed"))
    model = make(kind, dtype, **options)
    device = Device(torch_device=CPU, name="cpu", dtype=dtype)
    assert choose_flex(model, choose_attention(model, device), device, ALONE, None) == Choice()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Those that the compiler is given, which computes them as they are."""
    given: list[Any] = []

    def keep(graph: Any, _inputs: Any) -> Any:
        given.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = flex.compiled_by(keep)
    monkeypatch.setattr(flex, "_compiled", lambda: compiled)
    yield given
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_packs_of_all_lengths_share_a_graph(graphs: list[Any]) -> None:
    """And layers with a window, and passes under autocast; one more is for passes without gradients."""
    for lengths, window in (((200, 1, 130, 53), None), ((40, 3), None), ((301, 90), 64), ((64, 64), 150), ((5,), 2)):
        for trained in (True, False):
            query, key, value = (drawn(heads, sum(lengths)) for heads in (4, 2, 2))
            sinks: torch.Tensor = torch.nn.Parameter(torch.ones(4), requires_grad=False)
            if window is not None:  # as projections give them, and as a layer's own
                sinks = sinks.data
                value = (1 * value).transpose(1, 2).reshape(1, -1, 32).view(1, -1, 2, 16).transpose(1, 2)
            tables = flex.tables_of(lengths, window, CPU)
            with torch.set_grad_enabled(trained), torch.autocast("cpu", dtype=torch.bfloat16, enabled=window is None):
                found = flex.attention(query, key, value, tables, scaling=0.25, softcap=2.5, sinks=sinks)
            assert found.requires_grad is trained
    assert len(graphs) == 2
