"""The cluster that the demo runs on: the local one, which it starts, or the user's own."""

import contextlib
import io
import json
import os
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


def prepare(*, with_stand_in: bool, console: "Console") -> "Client":
    """Build what is not built yet, at the same time: Kubernetes, the images, the model. Start the cluster."""
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
    with ThreadPoolExecutor() as pool:
        # Silent while the other builds show what they do: two live lines would write over each other.
        model = pool.submit(convert_model) if with_stand_in else None
        if not own:
            hack_cluster("build")
            hack_cluster("up")
        if model is not None:
            with console.step(f"model {REPO_ID} from GGUF"):
                model.result()
    return client.current() if own else client.local(settings.DEFAULT_NAME)


def convert_model() -> Path:
    """Make the demo's model in the project's environment, unless it is there. Raises DemoError."""
    folder = cache_root() / "models" / REPO_ID
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
