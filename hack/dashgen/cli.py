"""The command line of hack/dashboards."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from dashgen import fleet, run
from dashgen.board import render

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = Path("helm/lora-finetune-operator/dashboards")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the dashboards, or with --check name what is stale and fail."""
    parser = argparse.ArgumentParser(prog="hack/dashboards", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file is stale")
    options = parser.parse_args(arguments)
    stale = {path: text for path, text in outputs().items() if _read(path) != text}
    for path, text in stale.items():
        if options.check:
            sys.stderr.write(f"{path} is not what its source gives: run `make docs` and commit the result\n")
        else:
            (REPOSITORY / path).parent.mkdir(exist_ok=True)
            (REPOSITORY / path).write_text(text, encoding="utf-8")
            sys.stdout.write(f"wrote {path}\n")
    return 1 if stale and options.check else 0


def outputs() -> dict[Path, str]:
    """Every dashboard with its text."""
    boards = {"fleet.json": fleet.BOARD, "run.json": run.BOARD}
    return {FOLDER / name: json.dumps(render(board), indent=1) + "\n" for name, board in boards.items()}


def _read(path: Path) -> str:
    file = REPOSITORY / path
    return file.read_text(encoding="utf-8") if file.exists() else ""
