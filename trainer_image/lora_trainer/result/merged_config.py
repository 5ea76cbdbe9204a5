"""What the small files of a merged model say of the type of its weights."""

import json
from pathlib import Path
from typing import Any

from lora_trainer.artifact.tensor_files import read_entries

INDEX = "model.safetensors.index.json"
_CONFIG = "config.json"
_TYPES = ("dtype", "torch_dtype")
"""What Transformers calls the type; the second is the name of its earlier releases."""


def say_fp32(folder: Path) -> None:
    """Have configuration and index of the model in `folder` say that its weights are fp32. Raises `OSError`."""
    config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    document = _in_fp32(config)
    if not any(name in document for name in _TYPES):
        document["dtype"] = "float32"
    _write(folder / _CONFIG, document)
    if (folder / INDEX).is_file():
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        files = sorted(set(index["weight_map"].values()))
        size = sum(entry.size_bytes for file in files for entry in read_entries(folder / file))
        _write(folder / INDEX, {**index, "metadata": {**(index.get("metadata") or {}), "total_size": size}})


def _in_fp32(document: dict[str, Any]) -> dict[str, Any]:
    """A configuration with those of its parts, as a multimodal model has several."""
    return {
        name: "float32" if name in _TYPES else _in_fp32(value) if isinstance(value, dict) else value
        for name, value in document.items()
    }


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
