"""The curves beside a result: the lines of `metrics.jsonl`, and `loss.png` drawn from them."""

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_trainer.errors import storage_error
from lora_trainer.storage.curve_records import METRICS, Record, line_of, read_records

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSS_CURVE = "loss.png"


def write_curves(folder: Path, *, held_out: bool) -> None:
    """Put the curves of `metrics_beside` into a result: the lines, and `loss.png` from them. Raises `StorageError`."""
    records = tuple(read_records(folder.parent / METRICS))
    try:
        (folder / METRICS).write_text("".join(line_of(record) for record in records), encoding="utf-8")
        draw(records, folder / LOSS_CURVE, held_out=held_out)
    except OSError as error:
        raise storage_error(error, METRICS) from error


def draw(records: Sequence[Record], path: Path, *, held_out: bool) -> None:
    """Draw training loss and that of evaluations over the optimizer steps as a PNG. Equal records give equal files."""
    # Matplotlib keeps a cache of fonts in the home folder, which in a pod may be read-only.
    if "MPLCONFIGDIR" not in os.environ:
        os.environ["MPLCONFIGDIR"] = str(Path(tempfile.gettempdir()) / "lora-trainer-matplotlib")
    # Its version in the file would make the same curve another file.
    loss_figure(records, held_out=held_out).savefig(path, dpi=120, metadata={"Software": None})


def loss_figure(records: Iterable[Record], *, held_out: bool) -> "Figure":
    """The figure, without a display: training loss, its running mean over long trainings, and with errors the loss on
    held-out rows, or where there were none on some of the training."""
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
        label=f"{'held out' if held_out else 'evaluated training rows'}, with its standard error",
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
