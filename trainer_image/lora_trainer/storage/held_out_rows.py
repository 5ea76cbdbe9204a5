"""The rows that a result's losses were measured on: `held_out_rows.json`."""

import json
from dataclasses import dataclass

from lora_trainer.spec import codec

HELD_OUT_ROWS = "held_out_rows.json"
HELD_OUT_ROWS_VERSION = "lora-operator.io/held-out-rows/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRows:
    """Rows of one file of a data set, by their numbers from 1: those of lines, or of rows of a list or a table, as
    `unit` (line, row) says. They are the numbers that messages name; of a row of CSV that of its last line."""

    file: str
    unit: str
    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutRows:
    """`evaluated` says in words which rows were; `files` lists them where they were chosen among others.

    They are `held_out` of the `rows` in which there is something to learn, chosen by `lora_trainer.data.split`
    from `seed` and `validation_fraction` (0 for rows of `dataset.validationUri`), at most `max_validation_rows`, None
    for any number.
    """

    version: str = HELD_OUT_ROWS_VERSION
    evaluated: str
    seed: int
    validation_fraction: float
    max_validation_rows: int | None = None
    rows: int
    held_out: int
    files: tuple[FileRows, ...]

    def to_json(self) -> str:
        """Stable text on one line."""
        return json.dumps(codec.encode(self), sort_keys=True, ensure_ascii=False) + "\n"
