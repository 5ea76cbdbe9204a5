"""The cluster that the demo runs on: the local one, which it starts, or the user's own."""

import contextlib
import io
import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from demoflow.errors import DemoError
from hub import image as hub_image
from hub.model import REPO_ID, cache_root, is_current
from localcluster import cli, client, lifecycle, settings

if TYPE_CHECKING:
    from localcluster.client import Client
    from localcluster.console import Console

PYTHON = settings.REPOSITORY / ".venv" / "bin" / "python"


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """References as pods write them; `hub` is None where the real Hub is used, `preflight` where the trainer's image
    looks at runs beforehand, too."""

    operator: str
    trainer: str
    preflight: str | None = None
    hub: str | None


def prepare(*, with_stand_in: bool, draws: bool, console: "Console") -> "Client":
    """Build what is not built yet, at the same time: Kubernetes, the images, the Python packages and the model. Start
    the cluster. `draws` is whether dashboards are drawn, for which packages are needed too."""
    own = client.uses_own_cluster()
    if own and not os.environ.get("IMAGE_PREFIX"):
        raise DemoError(
            "CLUSTER=current needs IMAGE_PREFIX=, the registry and path where your cluster pulls from, for instance "
            "IMAGE_PREFIX=ghcr.io/acme."
        )
    if not own and not with_stand_in:
        raise DemoError(
            "--real-hub needs CLUSTER=current, a cluster of your own: the local one reaches nothing outside of it."
        )
    # Before the rest: it may install packages of Debian's, whose database has one lock.
    make("python")
    with ThreadPoolExecutor() as pool:
        # Silent while the other builds show what they do: two live lines would write over each other.
        packages = pool.submit(_packages_and_model, with_stand_in=with_stand_in, draws=draws)
        if not own:
            hack_cluster("build")
            hack_cluster("up")
        with console.step(f"Python packages, model {REPO_ID} from GGUF" if with_stand_in else "Python packages"):
            packages.result()
    return client.current() if own else client.local(settings.DEFAULT_NAME)


def _packages_and_model(*, with_stand_in: bool, draws: bool) -> None:
    """PyTorch, 6 GB, only where the model is not there yet: what a user types afterwards needs the client alone."""
    converts = with_stand_in and not is_current(_model_folder())
    make("venv" if converts or draws else "client")
    if converts:
        convert_model()


def make(target: str) -> None:
    """Make a target of the project's Makefile that installs packages. Raises DemoError."""
    log = cache_root() / "python-packages.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    if shutil.which("make") is None:
        raise DemoError("hack/demo needs make: install your system's package for it (make on Debian).")
    with log.open("wb") as output:
        command = ["make", "--no-print-directory", target]
        done = subprocess.run(command, cwd=settings.REPOSITORY, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        raise DemoError(f"The Python packages could not be installed; {log} says why.")


def _model_folder() -> Path:
    return cache_root() / "models" / REPO_ID


def convert_model() -> Path:
    """Make the demo's model in the project's environment, unless it is there. Raises DemoError."""
    folder = _model_folder()
    if is_current(folder):
        return folder
    if not PYTHON.exists():
        raise DemoError("The model is converted with the packages of .venv, which is missing: run `make venv` first.")
    log = cache_root() / "model.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(settings.REPOSITORY / "hack")}
    with log.open("wb") as output:
        command = [str(PYTHON), "-m", "hub.model"]
        done = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        raise DemoError(f"The model could not be converted; {log} says why.")
    return folder


def images(*, with_stand_in: bool, console: "Console") -> Images:
    """Push the images to where the cluster's nodes find them; return their references."""
    references = json.loads(hack_cluster("images", "--json", "operator", "trainer", "preflight"))
    hub = _hub_image(console) if with_stand_in else None
    return Images(
        operator=references["operator"], trainer=references["trainer"], preflight=references["preflight"], hub=hub
    )


def _hub_image(console: "Console") -> str:
    if client.uses_own_cluster():
        return hub_image.build_for_registry(os.environ.get("IMAGE_PREFIX", ""), console)
    record = lifecycle.load_record(settings.places(settings.DEFAULT_NAME))
    if record is None or record.registry_port is None:
        raise DemoError("The local cluster has no registry: end it with `hack/cluster down` and run the demo again.")
    return hub_image.build_for_local_cluster(record.registry_port, console)


def hack_cluster(*arguments: str) -> str:
    """Run a command of hack/cluster, its progress on the terminal; return what it printed. Raises DemoError."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = cli.main(arguments)
    if code != 0:
        raise DemoError(f"`hack/cluster {arguments[0]}` failed, as it says above.")
    return printed.getvalue()
