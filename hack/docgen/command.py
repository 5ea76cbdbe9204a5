"""The command line of what writes generated files: it writes those that are stale, or says which they are."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def write_or_check(outputs: Mapping[Path, str], prog: str, about: str, arguments: Sequence[str] | None) -> int:
    """Write what is stale of `outputs`, texts by paths in the repository, or with --check name it and fail."""
    parser = argparse.ArgumentParser(prog=prog, description=about)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file is stale")
    options = parser.parse_args(arguments)
    stale = {path: text for path, text in outputs.items() if read(path) != text}
    for path, text in stale.items():
        if options.check:
            sys.stderr.write(f"{path} is not what its source gives: run `make docs` and commit the result\n")
        else:
            (REPOSITORY / path).parent.mkdir(exist_ok=True)
            (REPOSITORY / path).write_text(text, encoding="utf-8")
            sys.stdout.write(f"wrote {path}\n")
    return 1 if stale and options.check else 0


def read(path: Path) -> str:
    """The text of a file of the repository; empty where there is none."""
    file = REPOSITORY / path
    return file.read_text(encoding="utf-8") if file.exists() else ""
