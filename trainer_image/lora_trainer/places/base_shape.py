"""The shape of the base model in a folder: from its configuration, and from the headers of its files of weights."""

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from lora_trainer.artifact.tensor_files import read_entries
from lora_trainer.contract.fit.families import shape_of
from lora_trainer.contract.fit.reading import ShapeError, read_json
from lora_trainer.contract.fit.shape import Shape
from lora_trainer.errors import ConfigError, one_sentence

CONFIG = "config.json"
_MOST_DIFFERENCE = 0.001
"""Relative, between the parameters that are counted and those that files hold: buffers are stored, too, at times."""


def shape_in(folder: Path) -> Shape:
    """The shape of the model in a folder. Raises `ConfigError` for files that cannot be read, and `ShapeError`."""
    return counted(described(read_config(folder / CONFIG), CONFIG), folder)


def described(document: Mapping[str, Any], name: str) -> Shape:
    """The shape that a configuration describes; `name` is its file's. Raises `ShapeError`."""
    if document.get("quantization_config"):
        raise ShapeError(
            f"{name}.quantization_config is set: must be absent, since weights that are already quantized are not "
            "trained; name the original model"
        )
    return shape_of(document, name)


def read_config(path: Path) -> Mapping[str, Any]:
    """A model's configuration. Raises `ConfigError` and `ShapeError`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {one_sentence(error)[:300]}") from error
    return read_json(text, str(path))


def counted(shape: Shape, folder: Path) -> Shape:
    """With the parameters that files of weights hold, where there are any: they know towers and unknown families."""
    files = [path for path in sorted(folder.glob("*.safetensors")) if not path.name.startswith("consolidated")]
    stored = sum(_parameters(path) for path in files)
    difference = stored - shape.parameters
    if not files or abs(difference) <= _MOST_DIFFERENCE * stored:
        return shape
    doubt = f"the files hold {stored:,} parameters, of which {CONFIG} explains {shape.parameters:,}"
    return replace(shape, outside=max(0, shape.outside + difference), doubts=(*shape.doubts, doubt))


def _parameters(path: Path) -> int:
    try:
        return sum(prod(entry.shape) for entry in read_entries(path))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{path.name} is no safetensors file, or cut off in its header: copy or upload it again"
        ) from error
