"""kubectl and helm against one cluster: for the tests, the demo and the benchmarks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localcluster import processes, settings, tools
from localcluster.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Mapping

HACK_CLUSTER = settings.REPOSITORY / "hack" / "cluster"


class CommandError(Exception):
    """A command failed; the text is what it printed on standard error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """One cluster as its administrator. `name` is the local cluster's, or None for one of the user's own."""

    name: str | None
    kubeconfig: Path
    path: str

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which kubectl, helm and any Kubernetes client reach this cluster."""
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig), "PATH": self.path}

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout_s: float = 120) -> str:
        """Run kubectl; returns its standard output. Raises CommandError."""
        return self._run("kubectl", arguments, stdin, timeout_s)

    def helm(self, *arguments: str, stdin: str | None = None, timeout_s: float = 300) -> str:
        """Run helm; returns its standard output. Raises CommandError."""
        return self._run("helm", arguments, stdin, timeout_s)

    def get(self, *arguments: str) -> dict[str, Any]:
        """`kubectl get ... -o json`, parsed. Raises CommandError, also where the object does not exist."""
        document: dict[str, Any] = json.loads(self.kubectl("get", *arguments, "--output=json"))
        return document

    def apply(self, *objects: Mapping[str, Any], namespace: str) -> None:
        """`kubectl apply` of objects into a namespace. Raises CommandError."""
        document = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", f"--namespace={namespace}", "--filename=-", stdin=json.dumps(document))

    def wait(self, what: str, until: str, *, namespace: str, timeout_s: int = 600) -> None:
        """`kubectl wait --for=UNTIL WHAT`, for instance `pod/a` and `condition=Ready`. Raises CommandError."""
        command = ("wait", what, f"--for={until}", f"--namespace={namespace}", f"--timeout={timeout_s}s")
        self.kubectl(*command, timeout_s=timeout_s + 30)

    def served(self) -> set[str]:
        """The kinds that the API server has, as `podmonitors.monitoring.coreos.com`. Raises CommandError."""
        return set(self.kubectl("api-resources", "--output=name").split())

    def define(self, *files: Path, timeout_s: float = 300) -> None:
        """Apply definitions, in files of the name GROUP_KINDS.yaml, and wait until the API server serves these kinds.

        `kubectl wait` fails on a definition that has no status yet, and Established comes before clients are told of
        the kind. Raises CommandError, and ClusterError where a kind is not served in time.
        """
        self.kubectl("apply", "--server-side", *(f"--filename={file}" for file in files))
        kinds = {".".join(reversed(file.stem.split("_"))) for file in files}
        if not processes.wait_until(lambda: kinds <= self.served(), timeout_s=timeout_s, interval_s=0.5):
            missing = ", ".join(sorted(kinds - self.served()))
            raise ClusterError(f"The API server does not serve {missing} within {timeout_s:.0f} s.")

    def images(self, *names: str) -> dict[str, str]:
        """Build and push images that are not there yet; returns name -> reference. Raises CommandError."""
        command = [str(HACK_CLUSTER), "images", "--json", *names]
        if self.name is not None:
            command.append(f"--name={self.name}")
        references: dict[str, str] = json.loads(output(command, {**os.environ}, None, 1800))
        return references

    def _run(self, program: str, arguments: tuple[str, ...], stdin: str | None, timeout_s: float) -> str:
        found = shutil.which(program, path=self.path)
        if found is None:
            raise CommandError(f"{program} is not on PATH.")
        return output([found, *arguments], self.environment, stdin, timeout_s)


def local(name: str) -> Client:
    """The local cluster of this name, whether it runs or not."""
    places = settings.places(name)
    folders = [str(tools.folder(tool, places.cache)) for tool in (tools.kubernetes(), tools.HELM)]
    path = ":".join([*folders, os.environ.get("PATH", os.defpath)])
    return Client(name=name, kubeconfig=places.kubeconfig, path=path)


def current() -> Client:
    """The cluster of the user's current kubeconfig context."""
    chosen = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    return Client(name=None, kubeconfig=Path(chosen), path=os.environ.get("PATH", os.defpath))


def uses_own_cluster() -> bool:
    """Whether the user asked, by CLUSTER=current, for the cluster of the current kubeconfig context.

    Raises ClusterError for a value that is neither `local` nor `current`.
    """
    value = os.environ.get("CLUSTER", "")
    if value not in ("", "local", "current"):
        raise ClusterError(f"CLUSTER={value} must be `local` (the default) or `current`.")
    return value == "current"


def output(
    command: list[str], environment: dict[str, str] | None = None, stdin: str | None = None, timeout_s: float = 120
) -> str:
    """Run a command; returns its standard output. Raises CommandError."""
    # An empty input rather than none, so that no command waits for the person at the terminal.
    done = subprocess.run(
        command, input=stdin or "", capture_output=True, text=True, env=environment, timeout=timeout_s, check=False
    )
    if done.returncode != 0:
        raise CommandError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
