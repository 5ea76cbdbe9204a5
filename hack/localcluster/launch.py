"""Becomes another program after noting who it is: `python3 -m localcluster.launch PID_FILE COMMAND...`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from localcluster.processes import identify, save


def main(pid_file: str, *argv: str) -> None:
    process = identify(os.getpid())
    if process is None:
        sys.exit("/proc does not show this process.")
    save(process, Path(pid_file))
    os.execvp(argv[0], argv)  # noqa: S606 - the point: the noted process becomes the program


if __name__ == "__main__":
    main(*sys.argv[1:])
