"""How far numbers are from the right ones, and how far they may be: as far as plain PyTorch's, and a half more."""

from collections.abc import Sequence

import torch
from benchmarks.acceptance.findings import Outcome, judged

MOST_ERROR = 1.5
"""Times plain PyTorch's own error."""
FLOOR = {torch.float32: 2.0**-17, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
"""Relative errors that are never held against anything, by type: some roundings, for sums go in other orders."""


def wider(dtype: torch.dtype) -> torch.dtype:
    """The type in which the right numbers are computed."""
    return torch.float64 if dtype is torch.float32 else torch.float32


def error(found: torch.Tensor, right: torch.Tensor) -> float:
    """Norm of the difference, relative to that of the right ones."""
    return float((found.double() - right.double()).norm() / right.double().norm().clamp(min=1e-30))


def compared(
    found: Sequence[torch.Tensor],
    plain: Sequence[torch.Tensor],
    right: Sequence[torch.Tensor],
    *,
    names: Sequence[str],
    dtype: torch.dtype,
    said: str = "",
) -> Outcome:
    """Whether each of the results `names`, computed in `dtype`, errs as `plain` does at most."""
    figures: dict[str, float | str] = {}
    passed = True
    for name, ours, theirs, wanted in zip(names, found, plain, right, strict=True):
        mine, usual = error(ours, wanted), error(theirs, wanted)
        figures[f"{name}_error"], figures[f"{name}_plain_error"] = mine, usual
        # A NaN passes nothing.
        passed = passed and mine <= max(MOST_ERROR * usual, FLOOR[dtype])
    numbers = ", ".join(f"{n} {figures[f'{n}_error']:.1e} (plain {figures[f'{n}_plain_error']:.1e})" for n in names)
    return judged(passed, f"{said + ', ' if said else ''}relative error of {numbers}", **figures)
