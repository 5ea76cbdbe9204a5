"""The command line of hack/dashboards."""

from collections.abc import Sequence
from pathlib import Path

from dashgen import fleet, run
from dashgen.board import render
from docgen.command import write_or_check
from docgen.text import dense_json

FOLDER = Path("helm/lora-finetune-operator/dashboards")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the dashboards, or with --check name what is stale and fail."""
    return write_or_check(outputs(), "hack/dashboards", str(__doc__), arguments)


def outputs() -> dict[Path, str]:
    """Every dashboard with its text."""
    boards = {"fleet.json": fleet.BOARD, "run.json": run.BOARD}
    return {FOLDER / name: dense_json(render(board)) + "\n" for name, board in boards.items()}
