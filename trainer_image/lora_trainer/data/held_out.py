"""Which rows were evaluated, in a file beside the result."""

import shutil
from pathlib import Path

import numpy as np

from lora_trainer.data.survey import DatasetIndex
from lora_trainer.errors import storage_error
from lora_trainer.storage.held_out_rows import HELD_OUT_ROWS, FileRows, HeldOutRows

EVALUATED_TRAINING_ROWS = 64
"""How many training rows stand in for held-out rows where none are held out."""


def held_out_rows(index: DatasetIndex) -> HeldOutRows:
    """The rows that a run evaluates on. A set that is evaluated whole is named and not listed."""
    dataset = index.sources.dataset
    held_out = sum(int(np.count_nonzero(part.held_out)) for part in index.parts)
    if dataset.validation_uri is not None:
        evaluated = f"{'' if index.capped else 'all '}rows of {dataset.validation_uri}"
    elif held_out:
        evaluated = f"rows of {dataset.uri}"
    else:
        evaluated = f"the first {EVALUATED_TRAINING_ROWS} samples of the training rows, since no row is held out"
    return HeldOutRows(
        evaluated=evaluated,
        seed=dataset.split_seed,
        validation_fraction=dataset.validation_fraction,
        max_validation_rows=dataset.max_validation_rows,
        rows=index.eligible,
        held_out=held_out,
        files=tuple(
            FileRows(file=places.file, unit=places.unit, numbers=tuple(places.positions.tolist()))
            for places in index.held_out
        ),
    )


def write_held_out_rows(folder: Path, index: DatasetIndex) -> None:
    """Write `held_out_rows.json` into a folder of prepared data. Raises `StorageError`."""
    try:
        text = held_out_rows(index).to_json()
        # What in a name of a file is no UTF-8 becomes an escape of JSON.
        (folder / HELD_OUT_ROWS).write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise storage_error(error, HELD_OUT_ROWS) from error


def copy_held_out_rows(prepared: Path, folder: Path) -> None:
    """The same file of prepared data into a result's folder. Raises `StorageError`."""
    try:
        shutil.copyfile(prepared / HELD_OUT_ROWS, folder / HELD_OUT_ROWS)
    except OSError as error:
        raise storage_error(error, HELD_OUT_ROWS) from error
