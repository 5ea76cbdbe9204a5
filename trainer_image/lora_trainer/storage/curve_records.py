"""The records of a training's curve: `metrics.jsonl`.

One JSON object a line, with the time in seconds since 1970. A step's line has step, epoch, loss, learning_rate,
gradient_norm, tokens, tokens_per_second and seconds; an evaluation's has step, eval_loss and, of more than one row,
eval_loss_standard_error.
Losses are in nats per target token.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)
METRICS = "metrics.jsonl"
Record = Mapping[str, Any]


class MetricsFile:
    """Appends to a run's `metrics.jsonl`. What an attempt did after the step at which the next one goes on is dropped.

    A full volume costs lines of this file and nothing else: the checkpoints decide whether a run can go on.
    """

    def __init__(self, path: Path | None, wall_clock: Callable[[], float] = time.time) -> None:
        """`path` None keeps nothing: on processes that are not the first. `wall_clock` gives seconds since 1970."""
        self._path = path
        self._wall_clock = wall_clock
        self._failed = False
        self._evaluated: set[int] = set()

    def begin(self, step: int) -> None:
        """Keep the lines up to and with `step`, the one after which this attempt goes on; 0 drops all."""
        if self._path is None:
            return
        kept = [record for record in read_records(self._path) if record["step"] <= step and step > 0]
        self._evaluated = {record["step"] for record in kept if "eval_loss" in record}
        self._write("".join(line_of(record) for record in kept), replace=True)

    def add(self, step: int, **values: float) -> None:
        """Append what was measured after an optimizer step."""
        self._write(line_of({"step": step, "time": round(self._wall_clock(), 3), **values}), replace=False)

    def evaluated(self, step: int, *, loss: float, standard_error: float | None) -> None:
        """Append an evaluation after optimizer step `step`, unless there is one of it: the weights are the same."""
        if step in self._evaluated:
            return
        self._evaluated.add(step)
        error = {} if standard_error is None else {"eval_loss_standard_error": standard_error}
        self.add(step, eval_loss=loss, **error)

    def _write(self, text: str, *, replace: bool) -> None:
        if self._path is None or self._failed:
            return
        try:
            if replace:
                temporary = self._path.with_suffix(".partial")
                temporary.write_text(text, encoding="utf-8")
                temporary.replace(self._path)
            else:
                with self._path.open("a", encoding="utf-8") as stream:
                    stream.write(text)
        except OSError as error:
            self._failed = True
            log.warning("%s ends here: %s", METRICS, error.strerror)


def metrics_beside(result: Path) -> MetricsFile:
    """The curves of a training whose result grows in the folder `result`; of several processes the first keeps them."""
    return MetricsFile(result.parent / METRICS if os.environ.get("RANK", "0") == "0" else None)


def line_of(record: Record) -> str:
    """A record's line, with its line end."""
    return json.dumps(record) + "\n"


def read_records(path: Path) -> Iterator[Record]:
    """The lines of a `metrics.jsonl`, none where there is no such file. A line that a kill cut short is passed over."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            record = parse(line)
            if record is not None:
                yield record


def parse(line: str) -> Record | None:
    """A line's record, None for what is none."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None
