"""Whether the rows of a pack see each other, and how far a model's logits follow from rounding alone.

Both are asked of the tokens' embeddings. What a row gives beside other rows, compared with what it gives beside yet
others, would be no proof: a mixture's experts then have products of other shapes, which are rounded otherwise where
each expert has a product of its own, as on GPUs below compute capability 9.0.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from lora_trainer.model.rounding import drawn_like
from lora_trainer.ranks.collectives import Ranks

Logits = Sequence[torch.Tensor]
"""Of each row, shape (tokens, vocabulary)."""
_ROUNDING, _BF16_ROUNDING = 0.02, 0.1
"""Most that logits of two kernels may differ in the mean, relative to their standard deviation. In bf16, PyTorch's own
two attentions differ by 0.02 in SmolLM2-135M's 30 layers; rows that see each other, by 0.36."""
_MOST_ROUNDING = 0.5
"""Most that is let pass where a model's own rounding is so large, as in random mixtures of 48 layers in bf16 (0.4)."""


def traced(model: Any, compute: Callable[[], list[torch.Tensor]]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What a pass over a pack gives, and the embeddings of its tokens, which it has gradients at.

    Raises `ValueError` where the model embeds tokens in another way.
    """
    seen: list[torch.Tensor] = []

    def keep(embedded: torch.Tensor) -> torch.Tensor:
        seen.append(embedded.detach().requires_grad_())
        # A model may write into its embeddings, which a leaf does not allow.
        return seen[-1].clone()

    with torch.enable_grad(), _embedding(model, keep):
        found = compute()
    if len(seen) != 1:
        raise ValueError("its tokens do not pass through its input embeddings once")
    return found, seen[0]


def apart(rows: Logits, embedded: torch.Tensor, row: int = 1) -> bool:
    """Whether `row` of a pack sees no other row, and none of them sees it: the gradients of its logits at their tokens,
    and of their logits at its own, are 0.

    Exactly 0 in every type, whatever kernels are taken: what does not depend on a token adds only zeros there.
    """
    start = sum(len(logits) for logits in rows[:row])
    own = torch.zeros(embedded.shape[1], dtype=torch.bool, device=embedded.device)
    own[start : start + len(rows[row])] = True
    others = [logits for number, logits in enumerate(rows) if number != row]
    with torch.autocast(embedded.device.type, enabled=False):
        # Both, whatever the first says: through divided layers a backward pass is one of all processes.
        alone, unseen = _only_at([rows[row]], embedded, own), _only_at(others, embedded, ~own)
    return alone and unseen


def _only_at(results: Logits, embedded: torch.Tensor, tokens: torch.Tensor) -> bool:
    """Whether results have gradients at these tokens, and at no other."""
    random = torch.Generator(embedded.device).manual_seed(0)
    weights = [drawn_like(logits, embedded.dtype, random) for logits in results]
    (gradient,) = torch.autograd.grad(results, embedded, weights, retain_graph=True)
    there = gradient[0].ne(0).any(dim=1)
    return bool(there[tokens].any() and not there[~tokens].any())


def agree(model: Any, compute: Callable[[], list[torch.Tensor]], found: Logits, wanted: Logits, ranks: Ranks) -> bool:
    """Whether logits are the same but for rounding. Where it grows in this model beyond what is usual, as by the
    routers of mixtures, twice of that is let pass: kernels round in each layer. `compute` gives the model's logits.

    All `ranks` decide alike, since each of them has to make the passes that are left.
    """
    far = distance(found, wanted)
    near = far <= _rounding(model)
    if not ranks.any(not near):
        return True
    # Not for what is no number.
    if ranks.any(not far <= _MOST_ROUNDING):
        return False
    allowed = 2 * sensitivity(model, compute)
    return not ranks.any(not near and not far <= allowed)


def _rounding(model: nn.Module) -> float:
    coarse = any(parameter.dtype is torch.bfloat16 for parameter in model.parameters())
    return _BF16_ROUNDING if coarse else _ROUNDING


def sensitivity(model: Any, compute: Callable[[], list[torch.Tensor]]) -> float:
    """How far logits change, see `distance`, where embeddings are rounded otherwise: what a rounding grows to by the
    end of this model, by flips of near ties in routers above all."""
    right = compute()
    with rounded_otherwise(model):
        return distance(compute(), right)


@contextlib.contextmanager
def rounded_otherwise(model: Any, seed: int = 0) -> Iterator[None]:
    """Within it, each embedding of a token is changed by about half a unit in its last place, at random by `seed`."""

    def rounded(embedded: torch.Tensor) -> torch.Tensor:
        random = torch.Generator(embedded.device).manual_seed(seed)
        noise = torch.randn(embedded.shape, generator=random, device=embedded.device)
        return (embedded.float() * (1 + noise * torch.finfo(embedded.dtype).eps / 2)).to(embedded.dtype)

    with _embedding(model, rounded):
        yield


def distance(found: Logits, wanted: Logits) -> float:
    """Mean difference of logits, relative to the standard deviation of those that are wanted. Another row in sight
    changes them by about their own spread."""
    ours, theirs = torch.cat(list(found)), torch.cat(list(wanted))
    return float((ours - theirs).abs().mean() / theirs.std())


@contextlib.contextmanager
def _embedding(model: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Within it, the model goes on with changed embeddings."""
    handle = model.get_input_embeddings().register_forward_hook(lambda _module, _given, embedded: change(embedded))
    try:
        yield
    finally:
        handle.remove()
