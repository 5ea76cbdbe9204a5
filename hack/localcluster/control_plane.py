"""The small cluster: etcd, API server, controller manager and scheduler, and no node.

It needs no root and no namespaces, several stand side by side on free ports, and one is up in seconds.
"""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

from localcluster import components, lifecycle, packages, pki, ports, processes, tools
from localcluster.components import Ports
from localcluster.lifecycle import Record

if TYPE_CHECKING:
    from localcluster.console import Console
    from localcluster.settings import Places

PROFILE = "control-plane"


def up(places: Places, console: Console, *, controller_requests_per_second: int | None = None) -> None:
    """Start it, or leave it as it is if it runs and answers. The controllers' rate is for those who wait for them."""
    packages.ensure(packages.CONTROL_PLANE, console, places.cache / "packages.log")
    binaries = tools.ensure(tools.kubernetes(), places.cache, console)
    etcd = tools.ensure(tools.ETCD, places.cache, console) / tools.ETCD.commands[0]
    record = lifecycle.load_record(places)
    if record is not None and record.kubernetes == binaries.name and _answers(places, record):
        return
    lifecycle.end_supervisor(places)
    with console.step(f"start control plane {places.name}"):
        lifecycle.make_folders(places)
        lifecycle.rotate_logs(places)
        pki.ensure(places.pki)
        chosen = _ports(places)
        lifecycle.write_kubeconfigs(places, inside_port=chosen.api, host_port=chosen.api)
        Record(profile=PROFILE, kubernetes=binaries.name, api_port=chosen.api).save(places)
        plan = (
            components.etcd(etcd, places.state, chosen),
            components.apiserver(binaries, places.pki, chosen, node=False),
            components.controller_manager(
                binaries, places.pki, node=False, requests_per_second=controller_requests_per_second
            ),
            components.scheduler(binaries, places.pki),
        )
        lifecycle.start_supervisor(places, plan, api_port=chosen.api, node_network=False)
        lifecycle.wait_for_control_plane(places, lifecycle.api(places, chosen.api))


def _answers(places: Places, record: Record) -> bool:
    return lifecycle.is_running(places) and lifecycle.api(places, record.api_port).ready()


def _ports(places: Places) -> Ports:
    """The ports of the life before if they are still free, so that an open kubeconfig stays right."""
    file = places.state / "ports.json"
    try:
        api, client, peer = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        api, client, peer = 0, 0, 0
    if not api or not all(ports.is_free(port) for port in (api, client, peer)):
        api, client, peer = ports.choose(3, random.Random())  # noqa: S311 - a port number is no secret
        processes.write_atomically(file, json.dumps([api, client, peer]))
    return Ports(api=api, etcd_client=client, etcd_peer=peer)
