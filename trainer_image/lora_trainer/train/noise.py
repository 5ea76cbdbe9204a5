"""How far two losses of the same weights may be apart: the noise of the device and the base model, measured.

Fast paths, batches and other code for the same adapter round otherwise, and a mixture's router that is near a tie
chooses its experts by a rounding. So some rows are evaluated once more, from embeddings that are a rounding away, and a
loss has to agree with another within a multiple of what that changes. Other batches alone would say little: on a CPU
they are often rounded alike. They come in others even so, since LLM.int8's outliers are found over a whole batch.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from lora_trainer.data.store import Examples
from lora_trainer.distributed.collectives import ALONE, Ranks
from lora_trainer.model.device import Device
from lora_trainer.train.batches import MicroBatchLimit
from lora_trainer.train.evaluate import Evaluation, evaluate
from lora_trainer.train.objective import SFT, Objective
from lora_trainer.train.standard_error import ratio_standard_error

MOST_ROWS, MOST_TOKENS = 64, 2048
"""What is evaluated once more: whichever limit comes first, and at least two rows where there are two."""

TOLERANCES = {"fp32": 1e-3, "bf16": 2e-2, "fp16": 2e-2}
"""Largest difference of losses where no noise was measured, in nats per token, by compute type.

The sums run in another order than in training: that is about 1e-6 in fp32 and a few 1e-3 where products are rounded to
16 bits. An adapter of a wrong scale differs by more than either as soon as it learned anything that matters."""

FLOORS = {"fp32": 1e-3, "bf16": 5e-3, "fp16": 5e-3}
"""What is always allowed over `ENOUGH_TOKENS`: on a small model a few batches may happen to round alike."""

ENOUGH_TOKENS = 256
"""Over so many target tokens rounding averages out; over fewer it is larger by the square root of what they lack.

Of a single row, or of rows that each come alone, the noise that is measured may be none.
"""

FACTOR = 3
"""So many times the noise may losses be apart."""

DRAWS = 9
"""How often the noise is drawn before an adapter is refused. A token whose experts are near a tie changes them in about
every second draw, and over few tokens one such token is most of the difference: a single draw may not show it."""

MOST_OF_THE_IMPROVEMENT = 0.25
"""What noise may excuse at most, of that by which the loss fell."""


def measure_noise(
    model: Any,
    head: nn.Module,
    examples: Examples,
    device: Device,
    done: Callable[[int], None],
    *,
    first: Evaluation,
    limit: MicroBatchLimit,
    ranks: Ranks = ALONE,
    draw: int = 0,
    objective: Objective = SFT,
) -> float:
    """The noise of a loss, in nats per token, from some of the rows that gave `first` within `limit`.

    Their embeddings are rounded otherwise in each `draw`. They are padded, whether those of `first` were packed or not,
    and come in batches of half the size.
    """
    few = examples[: _count(examples)]
    half = replace(limit, tokens=min(limit.tokens, len(few) * int(few.room(packed=False).max())) // 2, packed=False)
    with rounded_otherwise(model, draw):
        again = evaluate(model, head, few, device, done, limit=half, ranks=ranks, objective=objective)
    return noise_of(first, again)


@contextlib.contextmanager
def rounded_otherwise(model: Any, seed: int = 0) -> Iterator[None]:
    """Within it, each embedding of a token is changed by about half a unit in its last place, at random by `seed`."""

    def rounded(embedded: torch.Tensor) -> torch.Tensor:
        random = torch.Generator(embedded.device).manual_seed(seed)
        noise = torch.randn(embedded.shape, generator=random, device=embedded.device)
        return (embedded.float() * (1 + noise * torch.finfo(embedded.dtype).eps / 2)).to(embedded.dtype)

    handle = model.get_input_embeddings().register_forward_hook(lambda _module, _given, embedded: rounded(embedded))
    try:
        yield
    finally:
        handle.remove()


def _count(examples: Examples) -> int:
    within = int(np.searchsorted(np.cumsum(examples.lengths), MOST_TOKENS, side="right"))
    two = int(np.searchsorted(examples.rows, examples.rows[0] + 2))
    return min(len(examples), MOST_ROWS, max(two, within))


def noise_of(first: Evaluation, again: Evaluation) -> float:
    """|shift| + 2 standard errors of it, where there are any, in nats per token: `again` has the first rows of `first`.

    The shift is the mean per target token, its standard error over rows.
    """
    shifts = tuple(other - one for one, other in zip(first.sums, again.sums, strict=False))
    return abs(sum(shifts)) / sum(again.tokens) + 2 * (ratio_standard_error(shifts, again.tokens, again.rows) or 0.0)


def tolerance_of(
    noise: float,
    improvement: float,
    types: Iterable[str],
    *,
    tokens: int = ENOUGH_TOKENS,
    unmeasured: bool = False,
) -> float:
    """How far a loss may be from what it has to be, in nats per token.

    `improvement` is by how much the loss fell, `tokens` how many learned ones it is a mean of. `types` are the compute
    types of both, of which the coarsest counts. `unmeasured` says that the other loss comes from another kind of
    device, or from base weights that were rounded otherwise, of which the noise says nothing.
    """
    known = [name for name in types if name in TOLERANCES]
    plain = max(TOLERANCES[name] for name in known)
    least = max(FLOORS[name] for name in known) * math.sqrt(max(1.0, ENOUGH_TOKENS / max(1, tokens)))
    floor = plain if unmeasured else min(least, plain)
    return min(max(FACTOR * noise, floor), max(MOST_OF_THE_IMPROVEMENT * improvement, plain))
