"""metrics.jsonl over several attempts, and the picture of it."""

import logging
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from lora_trainer.result.curves import draw, loss_figure, write_curves
from lora_trainer.storage.curve_records import METRICS, MetricsFile, parse, read_records


def trained(path: Path, first: int, last: int, *, mark: float = 0.0) -> None:
    """An attempt that goes on after step `first - 1` and ends after `last`."""
    metrics = MetricsFile(path)
    metrics.begin(first - 1)
    for step in range(first, last + 1):
        metrics.add(step, loss=10 / step + mark)
    metrics.add(last, eval_loss=5.0, eval_loss_standard_error=0.5)


def test_an_attempt_goes_on_where_the_last_checkpoint_was(tmp_path: Path) -> None:
    """Steps that are taken again are not in the file twice; what an evaluation after them said goes, too."""
    path = tmp_path / METRICS
    trained(path, 1, 6, mark=100)
    trained(path, 5, 8)
    records = list(read_records(path))
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6, 7, 8, 8]
    assert [record["loss"] > 100 for record in records[:-1]] == [True] * 4 + [False] * 4


def test_an_evaluation_of_one_row_has_no_standard_error(tmp_path: Path) -> None:
    """The key is left out; lines of others have it."""
    metrics = MetricsFile(tmp_path / METRICS)
    metrics.evaluated(0, loss=2.0, standard_error=None)
    metrics.evaluated(4, loss=1.0, standard_error=0.5)
    found = [record.get("eval_loss_standard_error", "none") for record in read_records(tmp_path / METRICS)]
    assert found == ["none", 0.5]


def test_a_step_has_one_evaluation(tmp_path: Path) -> None:
    """Whether this attempt made it or the one before."""
    metrics = MetricsFile(tmp_path / METRICS)
    for step in (0, 4, 4, 8, 4):
        metrics.evaluated(step, loss=float(step), standard_error=None)
    again = MetricsFile(tmp_path / METRICS)
    again.begin(4)
    again.evaluated(4, loss=9.0, standard_error=None)
    again.evaluated(8, loss=9.0, standard_error=None)
    found = [(record["step"], record["eval_loss"]) for record in read_records(tmp_path / METRICS)]
    assert found == [(0, 0.0), (4, 4.0), (8, 9.0)]


def test_evaluated_training_rows_are_not_called_held_out() -> None:
    """As of a small data set."""
    records = [{"step": 0, "eval_loss": 5.0}, {"step": 4, "eval_loss": 4.0}]
    for held_out, words in ((True, "held out"), (False, "evaluated training rows")):
        axes: Any = loss_figure(records, held_out=held_out).axes[0]
        assert f"{words}, with its standard error" in [text.get_text() for text in axes.get_legend().get_texts()]


def test_a_run_that_starts_at_the_beginning_starts_an_empty_file(tmp_path: Path) -> None:
    """The evaluation before the first step goes, too: it is made again."""
    path = tmp_path / METRICS
    MetricsFile(path).add(0, eval_loss=9.0)
    trained(path, 1, 2)
    assert [record["step"] for record in read_records(path)] == [1, 2, 2]


def test_a_line_that_a_kill_cut_short_costs_that_line_alone(tmp_path: Path) -> None:
    """What follows it is read, and the next attempt removes it."""
    path = tmp_path / METRICS
    trained(path, 1, 3)
    path.write_text(
        path.read_text(encoding="utf-8") + '{"step": 4, "lo\n[1]\n{"step": 5, "loss": 1}\n', encoding="utf-8"
    )
    assert [record["step"] for record in read_records(path)] == [1, 2, 3, 3, 5]
    MetricsFile(path).begin(3)
    assert len(path.read_text(encoding="utf-8").splitlines()) == 4
    assert [parse(line) for line in ("{", "[]", '{"loss": 1}')] == [None] * 3


def test_a_volume_that_cannot_be_written_costs_the_curve_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning, however many steps follow."""
    metrics = MetricsFile(tmp_path / "missing" / METRICS)
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            metrics.add(step, loss=1.0)
    assert [record.getMessage() for record in caplog.records] == ["metrics.jsonl ends here: No such file or directory"]


def test_processes_that_are_not_the_first_keep_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They have no file, and warn of none."""
    monkeypatch.chdir(tmp_path)
    metrics = MetricsFile(None)
    metrics.begin(3)
    metrics.add(4, loss=1.0)
    assert list(tmp_path.iterdir()) == []
    assert caplog.records == []


def test_the_picture_shows_every_step_and_every_evaluation(tmp_path: Path) -> None:
    """With a running mean once there are steps enough for one."""
    trained(tmp_path / METRICS, 1, 60)
    records = list(read_records(tmp_path / METRICS))
    (axes,) = loss_figure(records, held_out=True).axes
    lines: Any = axes.lines
    training, mean, held_out = lines[:3]
    assert list(training.get_xdata()) == list(range(1, 61))
    assert list(training.get_ydata()) == [10 / step for step in range(1, 61)]
    assert list(mean.get_ydata())[:3] == pytest.approx([10, 7.5, (5 + 10 / 3) / 2])
    assert (list(held_out.get_xdata()), list(held_out.get_ydata())) == ([60], [5.0])


def test_a_result_holds_the_picture_and_the_lines(tmp_path: Path) -> None:
    """Equal lines give equal files; a training of one step has a picture, too."""
    trained(tmp_path / METRICS, 1, 1)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_curves(tmp_path / name, held_out=True)
    assert (tmp_path / "one" / METRICS).read_bytes() == (tmp_path / METRICS).read_bytes()
    assert (tmp_path / "one/loss.png").read_bytes() == (tmp_path / "two/loss.png").read_bytes()
    assert imread(tmp_path / "one/loss.png").shape[:2] == (540, 960)
    draw([], tmp_path / "empty.png", held_out=True)
    assert (tmp_path / "empty.png").read_bytes() != (tmp_path / "one/loss.png").read_bytes()
