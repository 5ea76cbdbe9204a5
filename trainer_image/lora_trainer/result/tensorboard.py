"""A curve as event files for TensorBoard, whose package is imported when used."""

import importlib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lora_trainer.storage.curve_records import Record

log = logging.getLogger(__name__)
TENSORBOARD = "tensorboard"
_NAMES = {
    "loss": "train/loss",
    "epoch": "train/epoch",
    "learning_rate": "train/learning_rate",
    "gradient_norm": "train/gradient_norm",
    "tokens_per_second": "train/tokens_per_second",
    "eval_loss": "eval/loss",
    "eval_loss_standard_error": "eval/loss_standard_error",
}


def values_of(record: Record) -> dict[str, float]:
    """A record's numbers by the names that trackers show."""
    return {name: float(record[key]) for key, name in _NAMES.items() if key in record}


class TensorBoard:
    """Event files in a folder; a `Backend` of `host.trackers`."""

    def __init__(self, folder: Path) -> None:
        writer = importlib.import_module("tensorboard.summary.writer.event_file_writer")
        self._event: Any = importlib.import_module("tensorboard.compat.proto.event_pb2").Event
        self._summary: Any = importlib.import_module("tensorboard.compat.proto.summary_pb2").Summary
        folder.mkdir(parents=True, exist_ok=True)
        self.where = str(folder)
        self._writer: Any = writer.EventFileWriter(str(folder))

    def log(self, records: Sequence[Record]) -> None:
        """Write steps and evaluations."""
        for record in records:
            values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values_of(record).items()]
            summary = self._summary(value=values)
            self._writer.add_event(self._event(wall_time=record.get("time"), step=record["step"], summary=summary))
        self._writer.flush()

    def finish(self, status: str) -> None:
        """Close the file; how a run ended is no part of a curve."""
        self._writer.close()


def write_events(records: Iterable[Record], folder: Path) -> None:
    """A whole curve as event files; nothing, with a warning, where TensorBoard is not installed."""
    try:
        board = TensorBoard(folder)
    except ModuleNotFoundError as error:
        log.warning("no event files for TensorBoard: the package %s is not installed", error.name)
        return
    board.log(list(records))
    board.finish("FINISHED")
