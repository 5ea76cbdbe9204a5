"""The kernel of attention is compared with plain PyTorch, gradients included, before packs are trusted to it."""

import re
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.trainer.test_attention import DEVICE, kernel_for_packs, make
from torch import nn
from torch.nn.attention import varlen

from lora_trainer.model import attention
from lora_trainer.model.attention import choose_attention

if TYPE_CHECKING:
    from collections.abc import Callable


class Backward(torch.autograd.Function):
    """What comes in; its gradient is what `change` makes of the right one."""

    @staticmethod
    def forward(ctx: Any, given: torch.Tensor, change: Any) -> torch.Tensor:
        """As it is."""
        ctx.change = change
        return given.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """Changed."""
        return ctx.change(gradients[0]), None


def no_number_in_one_token(gradient: torch.Tensor) -> torch.Tensor:
    """The last one of a head."""
    wrong = gradient.clone()
    wrong[(-1,) * (gradient.ndim - 1)] = torch.nan
    return wrong


def failing(_gradient: torch.Tensor) -> torch.Tensor:
    """As a kernel that the device has no code for."""
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")


WRONG = [
    pytest.param(lambda gradient: 1.01 * gradient, "the gradient of its {} errs by 1.[01]e-02, ", id="1 % wrong"),
    pytest.param(no_number_in_one_token, "the gradient of its {} errs by nan, ", id="no number in one token"),
    pytest.param(failing, "FlashAttention only supports Ampere GPUs", id="fails"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("place", [0, 1, 2], ids=["queries", "keys", "values"])
@pytest.mark.parametrize(("change", "sentence"), WRONG)
def test_a_kernel_whose_gradient_is_wrong_is_left_out(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, place: int, *, change: Any, sentence: str
) -> None:
    """Its results are right, which all that is seen in passes forward are; on a CPU's kernel and on the GPU's."""
    fused = dtype is torch.bfloat16
    right: Any = kernel_for_packs if fused else nn.functional.scaled_dot_product_attention

    def wrong(*given: Any, **more: Any) -> torch.Tensor:
        inputs = [*given]
        inputs[place] = Backward.apply(inputs[place], change)
        found: torch.Tensor = right(*inputs, **more)
        return found

    monkeypatch.setattr(attention, "capability_of", lambda device: (9, 0))
    name = "varlen_attn" if fused else "scaled_dot_product_attention"
    monkeypatch.setattr(varlen if fused else attention, name, wrong)
    model = make("Llama", dtype, head_dim=8, initializer_range=0.1)
    before = model.config._attn_implementation
    found = choose_attention(model, DEVICE)
    assert (found.packs, found.broken, found.kernel, model.config._attn_implementation) == (False, True, before, before)
    assert re.search(sentence.format(("queries", "keys", "values")[place]), found.unpacked), found.unpacked


def test_a_kernel_whose_result_is_wrong_is_not_said_to_mix_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """By 1 %, or by no number in one token: that is the kernel, and not the model's kind."""
    monkeypatch.setattr(attention, "capability_of", lambda device: (9, 0))
    for change, error in ((lambda result: 1.01 * result, "1.[01]e-02"), (no_number_in_one_token, "nan")):
        monkeypatch.setattr(varlen, "varlen_attn", lambda *given, c=change, **more: c(kernel_for_packs(*given, **more)))
        found = choose_attention(make("Llama", torch.bfloat16, head_dim=8, initializer_range=0.1), DEVICE)
        assert (found.packs, found.broken) == (False, True)
        assert re.search(f"its result errs by {error}, plain PyTorch's by ", found.unpacked), found.unpacked


def test_each_kind_of_layer_is_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One with a window and one without; no gradients are left behind."""
    model, windows = make("Gemma3Text", head_dim=8, sliding_window=6, num_hidden_layers=12), list[int | None]()
    objection: Callable[..., Any] = attention.objection_to

    def kept(call: Any) -> Any:
        windows.append(call.kind.window)
        return objection(call)

    monkeypatch.setattr(attention, "objection_to", kept)
    assert choose_attention(model, DEVICE).packs
    assert windows == [6, None]
    assert all(parameter.grad is None for parameter in model.parameters())
