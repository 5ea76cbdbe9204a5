"""A Prometheus in the full cluster, with state in memory: Debian's, by the monitors and rules that charts install."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from localcluster import client, images, lifecycle, node, packages, ports, processes, settings, targets, tools
from localcluster.errors import ClusterError
from localcluster.forwarder import Route
from localcluster.imagespec import PROMETHEUS
from localcluster.prometheus_operator import DEFINITIONS

if TYPE_CHECKING:
    from pathlib import Path

    from localcluster.console import Console
    from localcluster.settings import Places

NAME = "prometheus"
NAMESPACE = "monitoring"
PORTS = {"Prometheus": 9090, "Alertmanager": 9093}
"""Of its Service, and on 127.0.0.1 where nobody else has them."""
_MANIFESTS = settings.REPOSITORY / "hack" / "monitoring" / "prometheus.yaml"
_KINDS = ("podmonitors", "servicemonitors", "prometheusrules")
_TIMEOUT_S = 600


def manifests(image: str) -> str:
    """prometheus.yaml with the image filled in."""
    return _MANIFESTS.read_text().replace("image: IMAGE\n", f"image: {image}\n")


def install(places: Places, console: Console, registry_port: int) -> None:
    """Install what is missing, with the Prometheus Operator's own definitions; returns when Prometheus is ready."""
    packages.ensure({**packages.PROMETHEUS, **packages.ALERTMANAGER}, console, places.cache / "packages.log")
    builder = images.LocalBuilder(cache=places.cache, console=console)
    (image,) = images.provide_all([PROMETHEUS.name], builder, registry_port).values()
    kubernetes = client.local(places.name)
    definitions = tools.module_folder(tools.PROMETHEUS_OPERATOR, places.cache) / DEFINITIONS
    with console.step(f"install {NAME}"):
        kubernetes.define(*(definitions / f"monitoring.coreos.com_{kind}.yaml" for kind in _KINDS))
        kubernetes.kubectl("apply", "--filename=-", stdin=manifests(image))
        rollout = ("rollout", "status", "deployment/prometheus", f"--namespace={NAMESPACE}")
        kubernetes.kubectl(*rollout, f"--timeout={_TIMEOUT_S}s", timeout_s=_TIMEOUT_S + 30)
    for program, url in addresses(places).items():
        console.say(f"{program:<12} {url}")


def addresses(places: Places) -> dict[str, str]:
    """Lead ports of 127.0.0.1 to it, unless they do already, until the cluster ends; returns program -> URL.

    Raises ClusterError where it is not installed.
    """
    noted = places.run / "prometheus-ports"
    if not processes.is_running(processes.load(_forwarder(places))):
        record = lifecycle.load_record(places)
        if record is None:
            raise ClusterError(f"Cluster {places.name} does not run: start it with `hack/cluster up`.")
        server = lifecycle.api(places, record.api_port)
        free = [port if ports.is_free(port) else _another() for port in PORTS.values()]
        routes = []
        for local_port, port in zip(free, PORTS.values(), strict=True):
            host, number = targets.resolve(f"{NAMESPACE}/service/{NAME}:{port}", server)
            routes.append(Route(local_port=local_port, host=host, port=number))
        node.start_forwarder(places, routes, NAME)
        processes.wait_until(lambda: not any(map(ports.is_free, free)), timeout_s=120)
        processes.write_atomically(noted, " ".join(map(str, free)))
    chosen = noted.read_text().split()
    return {program: f"http://127.0.0.1:{port}" for program, port in zip(PORTS, chosen, strict=True)}


def _another() -> int:
    return ports.choose(1, random.SystemRandom())[0]


def _forwarder(places: Places) -> Path:
    return places.run / f"forward-{NAME}.pid"


def remove(places: Places, console: Console) -> None:
    """Delete all but the definitions, since monitors and rules of charts would go with them."""
    with console.step(f"remove {NAME}"):
        command = ("delete", "--filename=-", "--ignore-not-found", "--timeout=60s")
        client.local(places.name).kubectl(*command, stdin=manifests("none"))
        processes.end(processes.load(_forwarder(places)))
