"""A model's shape from what is known of it without its weights: its configuration, and how many numbers files hold."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lora_trainer.contract.fit.families import shape_of
from lora_trainer.contract.fit.reading import ShapeError
from lora_trainer.contract.fit.shape import EXPERTS_LEFT_OUT, GUESSED, Shape

_MOST_DIFFERENCE = 0.001
"""Relative, between the parameters that are counted and those that files hold: buffers are stored, too, at times."""
_WIDTH_A_SHARE = 3
"""By how much an estimate may be off for a share of the parameters that nothing explains: they count with 2 bytes, and
where quantization reaches them they have 0.516, so that the weights are up to 2.9 times their share too large."""


def described(document: Mapping[str, Any], name: str) -> Shape:
    """The shape by a `config.json`, whose file is called `name`. Raises `ShapeError`."""
    if document.get("quantization_config"):
        raise ShapeError(
            f"{name}.quantization_config is set: must be absent, since weights that are already quantized are not "
            "trained; name a copy whose weights are in 16 bits"
        )
    return shape_of(document, name)


def counted(shape: Shape, stored: int) -> Shape:
    """With as many parameters as files of weights hold: they know towers and unknown families. 0 is no file. What the
    configuration does not explain widens the estimate; an output embedding that is stored though it is tied is none."""
    if stored and shape.understated:
        doubts = tuple(doubt for doubt in shape.doubts if doubt != EXPERTS_LEFT_OUT)
        shape = replace(shape, doubts=doubts, understated=False)
    difference = stored - shape.parameters
    twice = shape.embeddings[1] if shape.head[1] == 0 else 0
    if not stored or min(abs(difference), abs(difference - twice)) <= _MOST_DIFFERENCE * stored:
        return shape
    doubt = f"the files hold {stored:,} parameters, of which config.json explains {shape.parameters:,}"
    wider = shape.spread + _WIDTH_A_SHARE * abs(difference) / stored
    return replace(
        shape,
        outside=max(0, shape.outside + difference),
        unexplained=abs(difference),
        doubts=(*shape.doubts, doubt),
        spread=max(shape.spread, min(GUESSED, wider)),
    )
