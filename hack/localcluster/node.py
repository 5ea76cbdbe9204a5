"""The full cluster: the control plane, and this machine as its one node, in namespaces of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localcluster import (
    components,
    lifecycle,
    node_config,
    packages,
    pause,
    pki,
    ports,
    processes,
    settings,
    space,
    tools,
)
from localcluster.errors import ClusterError
from localcluster.forwarder import Route
from localcluster.go import check_go
from localcluster.lifecycle import Record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from localcluster.api import Api
    from localcluster.console import Console
    from localcluster.settings import Places
    from localcluster.tools import Tool

PROFILE = "full"
# Unix sockets live below the state folder and their paths may have 107 bytes.
_LONGEST_STATE = 64
_CNI_PLUGINS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
_CGROUPS = Path("/sys/fs/cgroup")
# What all pods together may take of a busy machine, as a kubelet has it on a node of its own: as much as a thread on
# each CPU. Without it they have as much as one thread of the machine's other processes.
_WEIGHT_OF_CPU = {"cpu.shares": 1024, "cpu.weight": 100}
_MOST_WEIGHT = 10000
_NODE_PATH = f"/api/v1/nodes/{settings.NODE_NAME}"
_INSIDE = components.Ports()


def prepare(places: Places, console: Console, also: Sequence[Tool] = ()) -> tuple[Path, Path, Path]:
    """Check the machine and make what can be made before anything runs, and build the tools in `also`.

    Returns the folder of Kubernetes' binaries, and those of etcd and CoreDNS.
    """
    if os.geteuid() != 0:
        raise ClusterError(
            "The cluster needs root for its namespaces and mounts: run it with sudo, or use a cluster of your own"
            " with CLUSTER=current."
        )
    if len(str(places.state)) > _LONGEST_STATE:
        raise ClusterError(
            f"The path {places.state} is longer than the {_LONGEST_STATE} characters that sockets below it allow:"
            " set XDG_STATE_HOME to a shorter one."
        )
    packages.remove_leftover_policy()
    packages.ensure({**packages.NODE, **packages.PROMETHEUS}, console, places.cache / "packages.log")
    needed = [*tools.available().values(), *also]
    if any(not tools.folder(tool, places.cache).is_dir() for tool in needed):
        check_go()
        space.require(places.cache, space.TOOLS_GIB, "build Kubernetes")
    tools.ensure_all(needed, places.cache, console)
    pause.ensure(places.cache)
    etcd, coredns = (tools.folder(tool, places.cache) / tool.commands[0] for tool in (tools.ETCD, tools.COREDNS))
    return tools.folder(tools.kubernetes(), places.cache), etcd, coredns


def up(places: Places, console: Console, *, api_port: int, registry_port: int) -> None:
    """Start what does not run or does not answer; what runs well is left alone."""
    kubernetes, etcd, coredns = prepare(places, console)
    record = lifecycle.load_record(places)
    if record is not None and record.kubernetes == kubernetes.name and _healthy(places, record):
        _complete(places, lifecycle.api(places, record.api_port))
        return
    lifecycle.end_supervisor(places)
    _end_forwarders(places)
    with console.step(f"start cluster {places.name}") as step:
        ports.require_free(api_port, "--api-port")
        ports.require_free(registry_port, "--registry-port")
        record = Record(profile=PROFILE, kubernetes=kubernetes.name, api_port=api_port, registry_port=registry_port)
        _write_files(places, record)
        _make_cgroup(places)
        plan = (
            components.etcd(etcd, places.state, _INSIDE),
            components.apiserver(kubernetes, places.pki, _INSIDE, node=True),
            components.controller_manager(kubernetes, places.pki, node=True),
            components.scheduler(kubernetes, places.pki),
            *components.node(kubernetes, coredns, sys.executable, places),
        )
        lifecycle.start_supervisor(places, plan, api_port=_INSIDE.api, node_network=True, prefix=_namespaces())
        _ensure_forwarder(places, record)
        server = lifecycle.api(places, api_port)
        step.detail("waiting for the API server")
        lifecycle.wait_for_control_plane(places, server)
        step.detail("waiting for the node")
        _complete(places, server)
        lifecycle.wait_for(
            places,
            lambda: node_is_ready(server),
            what=f"Node {settings.NODE_NAME} was not Ready",
            component="kubelet",
            timeout_s=300,
        )
        step.detail(f"node {settings.NODE_NAME} is Ready")


def down(places: Places) -> bool:
    """End every process of the cluster and delete its state; images and volumes stay."""
    ran = lifecycle.end_supervisor(places)
    _end_forwarders(places)
    _remove_cgroup(places)
    lifecycle.delete_state(places)
    return ran


def node_is_ready(server: Api) -> bool:
    """Whether the node's own Ready condition is True; a server that does not answer counts as no."""
    with contextlib.suppress(Exception):
        return _is_ready(server.get(_NODE_PATH))
    return False


def _is_ready(node: dict[str, Any]) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"].get("conditions", []))


def set_gpus(server: Api, count: int) -> None:
    """Let the node offer `nvidia.com/gpu`: the scheduler hands them out, and no device is behind them."""
    amount = {"nvidia.com/gpu": str(count)}
    server.patch(f"{_NODE_PATH}/status", {"status": {"capacity": amount, "allocatable": amount}})


def _healthy(places: Places, record: Record) -> bool:
    """Whether it runs and its node is Ready; a busy machine gets some seconds to answer."""
    if not lifecycle.is_running(places):
        return False
    _ensure_forwarder(places, record)
    server = lifecycle.api(places, record.api_port)
    return processes.wait_until(
        lambda: node_is_ready(server) or not lifecycle.is_running(places), timeout_s=20
    ) and lifecycle.is_running(places)


def _namespaces() -> tuple[str, ...]:
    """New network, mount and PID namespaces; the kernel ends all of them with the unshare process."""
    return (
        *("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *("tini", "-s", "--"),
    )


def _write_files(places: Places, record: Record) -> None:
    lifecycle.make_folders(places)
    lifecycle.rotate_logs(places)
    pki.ensure(places.pki)
    lifecycle.write_kubeconfigs(places, inside_port=_INSIDE.api, host_port=record.api_port)
    record.save(places)
    # Addresses and sandboxes of the life before: their namespaces are gone.
    shutil.rmtree(places.run / "ipam", ignore_errors=True)
    shutil.rmtree(places.run / "containerd", ignore_errors=True)
    for folder in (places.run / "cni", places.stores, places.volumes):
        folder.mkdir(parents=True, exist_ok=True)
    plugins = next((folder for folder in _CNI_PLUGINS if (folder / "bridge").exists()), None)
    if plugins is None:
        raise ClusterError("The CNI plugins are missing: install the package containernetworking-plugins.")
    for name, text in {
        "containerd.toml": node_config.containerd(places, plugins),
        "cni/10-pods.conflist": node_config.cni(places),
        "registry.yaml": node_config.registry(places),
        "kubelet.yaml": node_config.kubelet(places),
        "Corefile": node_config.coredns(places),
        "resolv.conf": "",
    }.items():
        processes.write_atomically(places.run / name, text)


def _complete(places: Places, server: Api) -> None:
    """What a running control plane and containerd still lack; an interrupted `up` may have left it out."""
    _import_pause_image(places)
    _apply_dns_service(server)


def _import_pause_image(places: Places) -> None:
    ctr = ("ctr", "--address", str(places.containerd_socket), "--namespace", "k8s.io", "images")

    def answers() -> bool:
        return subprocess.run([*ctr, "list", "-q"], capture_output=True, check=False).returncode == 0

    lifecycle.wait_for(places, answers, what="containerd did not answer", component="containerd", timeout_s=300)
    listed = subprocess.run([*ctr, "list", "-q"], capture_output=True, text=True, check=True).stdout
    if pause.IMAGE not in listed.split():
        subprocess.run([*ctr, "import", str(pause.ensure(places.cache))], capture_output=True, check=True)


def _apply_dns_service(server: Api) -> None:
    """A Service with the address that pods have in resolv.conf; CoreDNS runs on the node and not in a pod."""
    ports_ = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]
    server.apply(
        "/api/v1/namespaces/kube-system/services/kube-dns",
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": "kube-system"},
            "spec": {"clusterIP": settings.DNS_IP, "ports": ports_},
        },
    )
    server.apply(
        "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices/kube-dns-node",
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": "kube-dns-node",
                "namespace": "kube-system",
                "labels": {"kubernetes.io/service-name": "kube-dns"},
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": [settings.NODE_IP], "conditions": {"ready": True}}],
            "ports": ports_,
        },
    )


def node_pid(places: Places) -> int:
    """A process in the node's network namespace. Raises ClusterError if the cluster does not run."""
    process = processes.load(lifecycle.supervisor_file(places))
    if process is None or not processes.is_running(process):
        raise ClusterError(f"Cluster {places.name} does not run: start it with `hack/cluster up`.")
    return process.pid


def start_forwarder(places: Places, routes: list[Route], name: str) -> None:
    """Lead ports of 127.0.0.1 into the cluster until it ends."""
    pid = node_pid(places)
    ours = Path("/proc/self/ns/net").readlink()
    # The process exists a moment before it has unshared its namespaces.
    if not processes.wait_until(lambda: Path(f"/proc/{pid}/ns/net").readlink() != ours, timeout_s=120):
        raise ClusterError("The node got no network namespace of its own.", log=places.logs / "supervisor.log")
    processes.start_detached(
        [sys.executable, "-m", "localcluster.forwarder", str(pid), *map(str, routes)],
        pid_file=places.run / f"forward-{name}.pid",
        log=places.logs / f"forward-{name}.log",
        environment=lifecycle.python_environment(),
    )


def _ensure_forwarder(places: Places, record: Record) -> None:
    if processes.is_running(processes.load(places.run / "forward-cluster.pid")):
        return
    routes = [Route(local_port=record.api_port, host="127.0.0.1", port=_INSIDE.api)]
    if record.registry_port is not None:
        routes.append(Route(local_port=record.registry_port, host="127.0.0.1", port=settings.REGISTRY_PORT))
    start_forwarder(places, routes, "cluster")


def _end_forwarders(places: Places) -> None:
    for file in places.run.glob("forward-*.pid"):
        processes.end(processes.load(file))
        file.unlink(missing_ok=True)


def _cgroup_folders(places: Places) -> list[Path]:
    """The cluster's cgroup in each hierarchy: one on cgroup v2, one for each controller on v1."""
    name = node_config.cgroup(places)
    if (_CGROUPS / "cgroup.controllers").exists():
        return [_CGROUPS / name]
    return [hierarchy / name for hierarchy in _CGROUPS.iterdir() if hierarchy.is_dir() and not hierarchy.is_symlink()]


def _make_cgroup(places: Places) -> None:
    for folder in _cgroup_folders(places):
        folder.mkdir(exist_ok=True)
        for name, weight in _WEIGHT_OF_CPU.items():
            if (folder / name).exists():
                (folder / name).write_text(str(min(weight * (os.cpu_count() or 1), _MOST_WEIGHT)))


def _remove_cgroup(places: Places) -> None:
    """Remove the empty cgroups that a kubelet leaves behind, and only this cluster's."""
    for root in _cgroup_folders(places):
        for folder, _, _ in os.walk(root, topdown=False):
            # A cgroup stays busy for a moment after its last process.
            if not processes.wait_until(partial(_removed, Path(folder)), timeout_s=60):
                raise ClusterError(f"The cgroup {folder} is still in use by a process.")


def _removed(cgroup: Path) -> bool:
    try:
        cgroup.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
