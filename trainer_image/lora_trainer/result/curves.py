"""The curves of a training: `metrics.jsonl` while it goes on, `loss.png` at its end.

One JSON object a line, with the time in seconds since 1970. A step's line has step, epoch, loss, learning_rate,
gradient_norm, tokens, tokens_per_second and seconds; an evaluation's has step, eval_loss and eval_loss_standard_error.
Losses are in nats per learned token.
"""

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.errors import storage_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lora_trainer.training.evaluate import Evaluation
    from lora_trainer.training.listener import Step

log = logging.getLogger(__name__)
METRICS = "metrics.jsonl"
LOSS_CURVE = "loss.png"
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

    def begin(self, step: int) -> None:
        """Keep the lines up to and with `step`, the one after which this attempt goes on; 0 drops all."""
        if self._path is None:
            return
        kept = [record for record in read_records(self._path) if record["step"] <= step and step > 0]
        self._write("".join(_line(record) for record in kept), replace=True)

    def add(self, step: int, **values: float) -> None:
        """Append what was measured after an optimizer step."""
        self._write(_line({"step": step, "time": round(self._wall_clock(), 3), **values}), replace=False)

    def stepped(self, step: "Step") -> None:
        """Append an optimizer step."""
        self.add(
            step.number,
            epoch=step.epoch,
            loss=step.loss,
            learning_rate=step.learning_rate,
            gradient_norm=step.gradient_norm,
            tokens=step.tokens,
            tokens_per_second=step.tokens_per_second,
            seconds=step.seconds,
        )

    def evaluated(self, step: int, result: "Evaluation") -> None:
        """Append an evaluation after optimizer step `step`."""
        self.add(step, eval_loss=result.loss, eval_loss_standard_error=result.standard_error)

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


def _line(record: Record) -> str:
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


def write_curves(folder: Path) -> None:
    """Put the curves of `metrics_beside` into a result: the lines, and `loss.png` from them. Raises `StorageError`."""
    records = tuple(read_records(folder.parent / METRICS))
    try:
        (folder / METRICS).write_text("".join(_line(record) for record in records), encoding="utf-8")
        draw(records, folder / LOSS_CURVE)
    except OSError as error:
        raise storage_error(error, METRICS) from error


def draw(records: Sequence[Record], path: Path) -> None:
    """Draw training and held-out loss over the optimizer steps as a PNG. Equal records give equal files."""
    # Matplotlib keeps a cache of fonts in the home folder, which in a pod may be read-only.
    if "MPLCONFIGDIR" not in os.environ:
        os.environ["MPLCONFIGDIR"] = str(Path(tempfile.gettempdir()) / "lora-trainer-matplotlib")
    # Its version in the file would make the same curve another file.
    loss_figure(records).savefig(path, dpi=120, metadata={"Software": None})


def loss_figure(records: Iterable[Record]) -> "Figure":
    """The figure, without a display: training loss, its running mean over long trainings, held-out loss with errors."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - takes a second, wanted only at the end
    from matplotlib.figure import Figure  # noqa: PLC0415

    taken = [record for record in records if "loss" in record]
    evaluated = [record for record in records if "eval_loss" in record]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps, losses = [record["step"] for record in taken], [record["loss"] for record in taken]
    window = len(losses) // 25
    axes.plot(steps, losses, color="tab:blue", linewidth=1, alpha=0.35 if window > 1 else 1, label="training")
    if window > 1:
        axes.plot(steps, _running_mean(losses, window), color="tab:blue", label=f"training, mean of {window} steps")
    axes.errorbar(
        [record["step"] for record in evaluated],
        [record["eval_loss"] for record in evaluated],
        yerr=[record.get("eval_loss_standard_error", 0.0) for record in evaluated],
        color="tab:orange",
        marker="o",
        capsize=3,
        label="held out, with its standard error",
    )
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss per learned token, nats")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of each value with those before it, at most `window` of them."""
    means, total = [], 0.0
    for i, value in enumerate(values):
        total += value - (values[i - window] if i >= window else 0.0)
        means.append(total / min(i + 1, window))
    return means
