"""A short training as a check: its loss falls, all its numbers are finite, and recomputing changes nothing."""

import math
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.acceptance.bench import Bench
from benchmarks.acceptance.findings import Outcome, judged
from benchmarks.acceptance.models import Recipe, Taken, prepared, random_base

from lora_trainer.model.device import Device
from lora_trainer.spec.config import ActivationCheckpointing

LEAST_FALL = 0.02
"""Of the first step's loss, within the steps of a recipe: on rows that count there is a lot to learn."""
_RECOMPUTED = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Most relative difference of the gradient's norm, kept or recomputed: other kernels may compute the forward pass."""


def trains(
    bench: Bench, recipe: Recipe, device: Device | None = None, kind: str = "llama", options: Mapping[str, Any] = {}
) -> Outcome:
    """Train, and then the first step again with recomputed activations."""
    where = device or bench.device
    with tempfile.TemporaryDirectory() as folder:
        base = random_base(Path(folder), kind, {**bench.sizes, **options}, where)
        kept, again = Taken(), Taken()
        training = prepared(base, recipe, where, bench, kept)
        training.run()
        # The first step that is taken is enough; the scaler of fp16 losses may leave some out before it.
        steps = 4 if where.dtype is torch.float16 else 1
        recomputing = replace(
            recipe,
            checkpointing=ActivationCheckpointing.FULL,
            training=replace(recipe.training, max_steps=steps),
        )
        other = prepared(base, recomputing, where, bench, again)
        other.run()
    if not kept.steps or not again.steps:
        return judged(False, f"no step was taken, {len(kept.left_out_steps)} were left out for their numbers")
    first, last = kept.losses[0], kept.losses[-1]
    norms = (kept.steps[0].gradient_norm, again.steps[0].gradient_norm)
    apart = abs(norms[1] / norms[0] - 1)
    finite = all(math.isfinite(loss) for loss in kept.losses) and all(
        bool(torch.isfinite(parameter).all()) for parameter in training.parameters.values()
    )
    right = finite and last < (1 - LEAST_FALL) * first and apart <= _RECOMPUTED[where.dtype]
    said = f"loss {first:.3f} to {last:.3f} in {len(kept.steps)} steps, norm recomputed {apart:.1e} apart"
    if kept.left_out_steps:
        said += f", {len(kept.left_out_steps)} steps left out"
    packed = "packed" if training.limit.packed else "padded"
    return judged(right, f"{said}, {packed}", first_loss=first, last_loss=last, recomputed_apart=apart)
