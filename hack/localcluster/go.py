"""Whether Go is there, and new enough."""

from __future__ import annotations

import re
import shutil
import subprocess

from localcluster import settings
from localcluster.errors import ClusterError

_NEEDED = (1, 24)
_VERSION = re.compile(r"\bgo([0-9]+)\.([0-9]+)\S*")


def check_go() -> None:
    """Raise ClusterError unless there is a Go toolchain that is new enough, or that fetches one that is."""
    source = f"Kubernetes {settings.KUBERNETES_VERSION} is built from source"
    needed = ".".join(map(str, _NEEDED))
    where = "from https://go.dev/dl (Debian 12's golang-go is older)"
    instead = "use a cluster of your own with CLUSTER=current"
    if shutil.which("go") is None:
        raise ClusterError(
            f"{source} and there is no `go` on PATH: install Go {needed} or newer {where}, or {instead}."
        )
    found = _VERSION.search(_said_by_go("version"))
    # Go's own words follow where its version cannot be read, as of one that was built from its repository.
    if found is None or (int(found[1]), int(found[2])) >= _NEEDED:
        return
    switching = _said_by_go("env", "GOTOOLCHAIN").strip()
    if switching.endswith(("auto", "path")):
        return
    # Before 1.21 the setting is unknown, and printed as nothing.
    fetch = ", set GOTOOLCHAIN=auto to have Go fetch one" if switching else ""
    version = found[0].removeprefix("go")
    raise ClusterError(
        f"{source} with Go {needed} or newer, and the `go` on PATH is {version}: install a newer one {where}{fetch},"
        f" or {instead}."
    )


def _said_by_go(*arguments: str) -> str:
    # The root has no go.mod, for whose sake Go would be another version than it is.
    done = subprocess.run(["go", *arguments], cwd="/", capture_output=True, text=True, check=False)
    return done.stdout
