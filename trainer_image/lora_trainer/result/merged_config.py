"""What the small files of a merged model say of its weights."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_trainer.storage.tensor_files import read_entries

_CONFIG = "config.json"
_INDEXES = "*.safetensors.index.json"
_TIED = "tie_word_embeddings"
_TYPES = ("dtype", "torch_dtype")
"""What Transformers calls the type; the second is the name of its earlier releases."""


def say_fp32(folder: Path) -> None:
    """Have configuration and index of the model in `folder` say that its weights are fp32. Raises `OSError`."""
    config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    document = _in_fp32(config)
    if not any(name in document for name in _TYPES):
        document["dtype"] = "float32"
    _write(folder / _CONFIG, document)
    _index(folder, {})


def say_untied(folder: Path, file: str, added: Sequence[str]) -> None:
    """Have configuration and index say that the embeddings are no longer tied, and that those `added` are in `file`.
    Raises `OSError`."""
    config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    parts = {name: {**part, _TIED: False} for name, part in config.items() if isinstance(part, dict) and _TIED in part}
    _write(folder / _CONFIG, {**config, **parts, _TIED: False})
    _index(folder, dict.fromkeys(added, file))


def _index(folder: Path, added: Mapping[str, str]) -> None:
    """Where the weights have an index, bring its list of tensors and their size up to date."""
    for path in folder.glob(_INDEXES):
        index = json.loads(path.read_text(encoding="utf-8"))
        weights = {**index["weight_map"], **added}
        size = sum(entry.size_bytes for file in sorted(set(weights.values())) for entry in read_entries(folder / file))
        metadata = {**(index.get("metadata") or {}), "total_size": size}
        _write(path, {**index, "metadata": metadata, "weight_map": weights})


def _in_fp32(document: dict[str, Any]) -> dict[str, Any]:
    """A configuration with those of its parts, as a multimodal model has several."""
    return {
        name: "float32" if name in _TYPES else _in_fp32(value) if isinstance(value, dict) else value
        for name, value in document.items()
    }


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
