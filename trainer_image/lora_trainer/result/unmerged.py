"""A verified adapter whose merged model could not be made: it says so, and is published all the same.

Without PyTorch: the supervisor writes it, whatever became of the stage.
"""

import dataclasses
from pathlib import Path

from lora_trainer.errors import storage_error
from lora_trainer.result.card import CARD, card_of
from lora_trainer.storage.manifest import read_manifest, write_sealed


def note_failed_merge(folder: Path, why: str) -> None:
    """Put the sentence `why` into card and manifest of the adapter in `folder`. Raises `StorageError`."""
    manifest = dataclasses.replace(read_manifest(folder), merge_failure=why)
    try:
        (folder / CARD).write_text(card_of(folder, manifest), encoding="utf-8")
        write_sealed(folder, manifest)
    except OSError as error:
        raise storage_error(error, "the adapter") from error
