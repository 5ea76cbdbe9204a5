"""The cluster that the demo runs on: the local one, which it starts, or the user's own."""

import contextlib
import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from demoflow.errors import DemoError
from demoflow.packages import Packages
from hub import image as hub_image
from hub.model import REPO_ID
from localcluster import cli, client, lifecycle, settings

if TYPE_CHECKING:
    from localcluster.client import Client
    from localcluster.console import Console


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
    packages = Packages()
    # Before the rest: it may install packages of Debian's, whose database has one lock.
    packages.make("python")
    with ThreadPoolExecutor() as pool:
        # Silent while the other builds show what they do: two live lines would write over each other.
        installed = pool.submit(packages.install, with_stand_in=with_stand_in, draws=draws)
        try:
            for command in () if own else ("build", "up"):
                hack_cluster(command)
                if installed.done():
                    installed.result()
            with console.step(f"Python packages, model {REPO_ID} from GGUF" if with_stand_in else "Python packages"):
                installed.result()
        except BaseException:
            packages.stop()
            raise
    return client.current() if own else client.local(settings.DEFAULT_NAME)


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
