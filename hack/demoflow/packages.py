"""What the demo needs in the project's environment: the client, and the model, which PyTorch converts."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from demoflow.errors import DemoError
from hub.model import REPO_ID, cache_root, is_current
from localcluster import settings

PYTHON = settings.REPOSITORY / ".venv" / "bin" / "python"


class Packages:
    """Programs that install and convert, one after the other; `stop` ends the one that runs, and starts no more."""

    def __init__(self) -> None:
        self._running: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def install(self, *, with_stand_in: bool, draws: bool) -> None:
        """PyTorch, 6 GB, only where the model is not there yet or dashboards are drawn: what a user types afterwards
        needs the client alone. Raises `DemoError`."""
        converts = with_stand_in and not is_current(model_folder())
        self.make("venv" if converts or draws else "client")
        if converts:
            self.convert()

    def make(self, target: str) -> None:
        """Make a target of the project's Makefile that installs packages. Raises `DemoError`."""
        if shutil.which("make") is None:
            raise DemoError("hack/demo needs make: install your system's package for it (make on Debian).")
        command = ["make", "--no-print-directory", f"PYTHON={sys.executable}", target]
        self._run(command, {}, "python-packages.log", "The Python packages could not be installed")

    def convert(self) -> Path:
        """Make the demo's model, unless it is there. Raises `DemoError`."""
        if is_current(model_folder()):
            return model_folder()
        if not PYTHON.exists():
            raise DemoError(
                "The model is converted with the packages of .venv, which is missing: run `make venv` first."
            )
        environment = {"PYTHONPATH": str(settings.REPOSITORY / "hack")}
        self._run([str(PYTHON), "-m", "hub.model"], environment, "model.log", "The model could not be converted")
        return model_folder()

    def stop(self) -> None:
        """End what runs, for instance since something else has failed."""
        self._stopped = True
        if self._running is not None:
            self._running.terminate()

    def _run(self, command: Sequence[str], environment: Mapping[str, str], name: str, failed: str) -> None:
        log = cache_root() / name
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self._running = subprocess.Popen(
                command,
                cwd=settings.REPOSITORY,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            if self._stopped:
                self._running.terminate()
            if self._running.wait() != 0:
                raise DemoError(f"{failed}; {log} says why.")


def model_folder() -> Path:
    """Where the demo's model lies once it is converted."""
    return cache_root() / "models" / REPO_ID
