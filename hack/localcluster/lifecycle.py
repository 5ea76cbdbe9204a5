"""What the two kinds of cluster share: start a supervisor, wait for it, look at it, end it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from localcluster import pki, processes, settings
from localcluster.api import Api
from localcluster.errors import ClusterError
from localcluster.supervisor import Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from localcluster.components import Component
    from localcluster.settings import Places

# A component that had to be started this often while the cluster comes up will not come up.
_GIVE_UP_STARTS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What the files say about a cluster: its profile, its Kubernetes, its ports on the host's 127.0.0.1."""

    profile: str
    kubernetes: str
    api_port: int
    registry_port: int | None = None

    def save(self, places: Places) -> None:
        values = {
            "profile": self.profile,
            "kubernetes": self.kubernetes,
            "apiPort": self.api_port,
            "registryPort": self.registry_port,
        }
        processes.write_atomically(places.state / "cluster.json", json.dumps(values))


def load_record(places: Places) -> Record | None:
    """The record of a cluster that was started and not taken down, or None."""
    try:
        values = json.loads((places.state / "cluster.json").read_text())
        return Record(
            profile=values["profile"],
            kubernetes=values["kubernetes"],
            api_port=values["apiPort"],
            registry_port=values["registryPort"],
        )
    except (FileNotFoundError, ValueError, KeyError):
        return None


def supervisor_file(places: Places) -> Path:
    return places.run / "supervisor.pid"


def is_running(places: Places) -> bool:
    return processes.is_running(processes.load(supervisor_file(places)))


def running_names(places: Places) -> list[str]:
    """Names of all clusters of this user that run, this one or others."""
    folders = (folder for folder in places.state.parent.glob("*") if folder.is_dir())
    return sorted(folder.name for folder in folders if is_running(settings.places(folder.name)))


def api(places: Places, port: int) -> Api:
    """The cluster's API server as its administrator, through a port on the host."""
    return Api(port=port, ca_file=places.pki / "ca.crt", token=pki.token(places.pki, "admin"))


def component_states(places: Places) -> dict[str, dict[str, int | None]]:
    """What the supervisor last wrote: component -> pid, starts, lastExit."""
    try:
        states: dict[str, dict[str, int | None]] = json.loads((places.run / "components.json").read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return states


def make_folders(places: Places) -> None:
    for folder in (places.state, places.run, places.logs):
        folder.mkdir(parents=True, exist_ok=True)
    places.state.chmod(0o700)


def rotate_logs(places: Places) -> None:
    """Keep the logs of the life before this one as NAME.log.1."""
    for log in places.logs.glob("*.log"):
        log.replace(log.with_name(f"{log.name}.1"))


def write_kubeconfigs(places: Places, *, inside_port: int, host_port: int) -> None:
    """One kubeconfig for each component, and the user's."""
    for name in pki.USERS:
        text = pki.kubeconfig(directory=places.pki, name=name, port=inside_port, context="local")
        processes.write_atomically(places.pki / f"{name}.conf", text, 0o600)
    text = pki.kubeconfig(directory=places.pki, name="admin", port=host_port, context=f"lora-{places.name}")
    processes.write_atomically(places.kubeconfig, text, 0o600)


def start_supervisor(
    places: Places, components: Sequence[Component], *, api_port: int, node_network: bool, prefix: Sequence[str] = ()
) -> None:
    """Start the process that runs the components; `prefix` is what puts it into namespaces of its own."""
    plan = Plan(
        components=tuple(components),
        logs=str(places.logs),
        status=str(places.run / "components.json"),
        api_port=api_port,
        ca_file=str(places.pki / "ca.crt"),
        node_network=node_network,
    )
    plan_file = places.run / "plan.json"
    processes.write_atomically(plan_file, plan.dump())
    (places.run / "components.json").unlink(missing_ok=True)
    processes.start_detached(
        [*prefix, sys.executable, "-m", "localcluster.supervisor", str(plan_file)],
        pid_file=supervisor_file(places),
        log=places.logs / "supervisor.log",
        environment=python_environment(),
    )


def python_environment() -> dict[str, str]:
    """The environment in which this package can be imported by a new Python."""
    folder = str(settings.REPOSITORY / "hack")
    path = os.environ.get("PATH", os.defpath)
    # Debian keeps runc, iptables and conntrack where a plain user's PATH does not look.
    return {**os.environ, "PYTHONPATH": folder, "PYTHONSAFEPATH": "1", "PATH": f"{path}:/usr/sbin:/sbin"}


def require_progress(places: Places) -> None:
    """Raise ClusterError, naming the component, once it is clear that the cluster will not come up."""
    if not is_running(places):
        raise ClusterError("The supervisor of the cluster ended.", log=places.logs / "supervisor.log")
    for name, state in component_states(places).items():
        if (state["starts"] or 0) >= _GIVE_UP_STARTS:
            raise ClusterError(
                f"{name} failed {_GIVE_UP_STARTS - 1} times, last with exit status {state['lastExit']}.",
                log=places.logs / f"{name}.log",
            )


def wait_for(places: Places, condition: Callable[[], bool], *, what: str, component: str, timeout_s: float) -> None:
    """Wait for a condition of a starting cluster, or say which component it failed for."""
    reached = processes.wait_until(condition, timeout_s=timeout_s, check=lambda: require_progress(places))
    if not reached:
        raise ClusterError(f"{what} after {timeout_s:.0f} s.", log=places.logs / f"{component}.log")


def wait_for_control_plane(places: Places, server: Api, *, timeout_s: float = 300) -> None:
    """Wait for the API server and for the controllers' first visible work, a namespace's service account."""
    wait_for(
        places,
        server.ready,
        what="The API server was not ready",
        component="kube-apiserver",
        timeout_s=timeout_s,
    )
    wait_for(
        places,
        lambda: server.exists("/api/v1/namespaces/default/serviceaccounts/default"),
        what="The controller manager made no service account",
        component="kube-controller-manager",
        timeout_s=timeout_s,
    )


def end_supervisor(places: Places) -> bool:
    """Kill the cluster's process tree, if there is one."""
    return processes.end(processes.load(supervisor_file(places)))


def delete_state(places: Places) -> None:
    """Delete what belongs to the cluster's life, once nothing of it runs any more."""
    shutil.rmtree(places.state, ignore_errors=True)
