"""Whether the model has an embedding of each token that its tokenizer gives."""

from pathlib import Path

from lora_trainer.data.tokens import Encoder
from lora_trainer.errors import ConfigError
from lora_trainer.plan.architecture import ArchitectureError
from lora_trainer.storage.base import Base
from lora_trainer.storage.base_architecture import CONFIG, read_config

_MORE = {"mllama": 8, "mllama_text_model": 8, "moshi": 1}
_ADDITIONAL = {"molmo2": 128, "molmo2_text": 128}
"""Embeddings beside those of the vocabulary, by kinds of Transformers 5.24: always so many, or so many where
`additional_vocab_size` does not say how many."""


def check_token(base: Base, encoder: Encoder, largest: int) -> None:
    """Refuse rows whose `largest` token is beyond the embeddings, before weights are read: a GPU would stop at its
    index, as a broken one does. Raises `ConfigError`."""
    rows = embeddings_in(base.folder)
    if rows is None or largest < rows:
        return
    text = encoder.tokenizer.convert_ids_to_tokens(largest)
    raise ConfigError(
        f"model.uri is {base.name}: its tokenizer gives the data's token {text!r} the number {largest}, and the "
        f"model has {rows} embeddings, from 0 on; take the tokenizer of these weights, or give the model the "
        "missing ones with resize_token_embeddings and save it"
    )


def embeddings_in(folder: Path) -> int | None:
    """How many the model in a folder has, by its configuration; None where that does not say it, or cannot be read,
    which others say."""
    try:
        config = read_config(folder / CONFIG)
    except (ConfigError, ArchitectureError):
        return None
    inner = config.get("text_config")
    text = inner if isinstance(inner, dict) and inner else config
    kind = text.get("model_type") or config.get("model_type")
    kind = kind if isinstance(kind, str) else ""
    rows, more = text.get("vocab_size"), text.get("additional_vocab_size", _ADDITIONAL.get(kind, 0))
    return rows + more + _MORE.get(kind, 0) if type(rows) is int and type(more) is int else None
