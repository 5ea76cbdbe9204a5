"""How far a faster way to compute may be from the right numbers: as far as plain PyTorch is, and half as far again.

Errors are norms, relative to the same computation in the next wider type: fp32 for 16 bits, fp64 for fp32.
"""

from collections.abc import Sequence

import torch

MOST_ERROR = 1.5
"""Times plain PyTorch's own error that a fast path may err, in its result and in each gradient."""

Found = Sequence[tuple[str, torch.Tensor]]
"""Results and gradients, each with its name in a sentence."""


def wider(dtype: torch.dtype) -> torch.dtype:
    """The type in which the right numbers are computed."""
    return torch.float64 if dtype is torch.float32 else torch.float32


def drawn_like(result: torch.Tensor, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Random numbers to multiply a result with for its gradients, rounded to `dtype`, in the result's type."""
    random = torch.randn(result.shape, generator=generator, device=result.device, dtype=torch.float32)
    # Small, for sums over many rows must not leave fp16; and rounded alike for each type of results.
    return (random / 64).to(dtype).to(result.dtype)


def objection(fast: Found, plain: Found, wanted: Found, floor: float) -> str | None:
    """What is against the numbers of a fast path, None where nothing is; errors up to `floor` never are."""
    for (name, ours), (_, theirs), (_, right) in zip(fast, plain, wanted, strict=True):
        if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
            return f"{name} has another type or shape than plain PyTorch's"
        error, usual = _error(ours, right), _error(theirs, right)
        # Also for what is no number.
        if not error <= max(MOST_ERROR * usual, floor):
            return f"{name} errs by {error:.1e}, plain PyTorch's by {usual:.1e}"
    return None


def _error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative to the norm of what is wanted."""
    size = wanted.norm()
    return float((found.to(wanted.dtype) - wanted).norm() / (size if size > 0 else 1))
