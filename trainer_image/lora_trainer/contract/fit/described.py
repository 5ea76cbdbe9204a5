"""A model's shape from what is known of it without its weights: its configuration, and how many numbers files hold."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lora_trainer.contract.fit.families import shape_of
from lora_trainer.contract.fit.reading import ShapeError
from lora_trainer.contract.fit.shape import Shape

_MOST_DIFFERENCE = 0.001
"""Relative, between the parameters that are counted and those that files hold: buffers are stored, too, at times."""


def described(document: Mapping[str, Any], name: str) -> Shape:
    """The shape by a `config.json`, whose file is called `name`. Raises `ShapeError`."""
    if document.get("quantization_config"):
        raise ShapeError(
            f"{name}.quantization_config is set: must be absent, since weights that are already quantized are not "
            "trained; name the original model"
        )
    return shape_of(document, name)


def counted(shape: Shape, stored: int) -> Shape:
    """With as many parameters as files of weights hold: they know towers and unknown families. 0 is no file."""
    difference = stored - shape.parameters
    if not stored or abs(difference) <= _MOST_DIFFERENCE * stored:
        return shape
    doubt = f"the files hold {stored:,} parameters, of which config.json explains {shape.parameters:,}"
    return replace(shape, outside=max(0, shape.outside + difference), doubts=(*shape.doubts, doubt))
