"""Versions, addresses and places of the local cluster."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from localcluster.errors import ClusterError

REPOSITORY = Path(__file__).resolve().parents[2]

KUBERNETES_VERSION = "1.34.4"
# What this Kubernetes is released with. With one before 3.4.31 or 3.5.13, Debian's for instance, each list is read from
# etcd instead of the API server's own cache: ten times the CPU, and streamed lists are refused.
ETCD_VERSION = "3.6.5"
# The ones that are built on the libraries of this Kubernetes: a newer one compiles a second set of them, for minutes.
HELM_VERSION = "3.19.5"
HELM4_VERSION = "4.0.5"
COREDNS_VERSION = "1.12.4"
VERSITYGW_VERSION = "1.8.0"
KUEUE_VERSION = "0.17.0"
JOBSET_VERSION = "0.10.1"
KUBEFLOW_TRAINER_VERSION = "2.1.0"
KWOK_VERSION = "0.7.0"
PROMETHEUS_OPERATOR_VERSION = "0.87.1"
# The module's, of the release 3.10.0: the first that can leave clouds out.
PROMETHEUS_VERSION = "0.310.0"
# Without the plug-in for container runtimes of 0.8, which fails where there is none.
KUBE_NETWORK_POLICIES_VERSION = "0.7.0"
# The first that verifies bundles of an image layout is 3.0.6.
COSIGN_VERSION = "3.1.3"
ORAS_VERSION = "1.3.6"

NODE_NAME = "node-1"
# Addresses exist in the cluster's own network namespace only, so they cannot collide with the host's.
NODE_IP = "10.250.0.1"
POD_CIDR = "10.251.0.0/24"
SERVICE_CIDR = "10.252.0.0/24"
KUBERNETES_SERVICE_IP = "10.252.0.1"
DNS_IP = "10.252.0.10"

API_PORT = 6443
REGISTRY_PORT = 5000
# What pods write in `image:`; the port inside the cluster's network namespace, whatever the host uses.
IMAGE_PREFIX = f"localhost:{REGISTRY_PORT}"

DEFAULT_NAME = "local"
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where one cluster keeps its files.

    `cache` holds what can be made again (binaries, images, downloads); `state` what belongs to this
    cluster's life. Volumes live in `volumes`, outside of what `down` deletes.
    """

    name: str
    cache: Path
    state: Path

    @property
    def run(self) -> Path:
        return self.state / "run"

    @property
    def logs(self) -> Path:
        return self.state / "log"

    @property
    def pki(self) -> Path:
        return self.state / "pki"

    @property
    def kubeconfig(self) -> Path:
        return self.state / "kubeconfig"

    @property
    def lock(self) -> Path:
        return self.state.with_name(self.state.name + ".lock")

    @property
    def volumes(self) -> Path:
        return self.state.parent.parent / "volumes" / self.name

    @property
    def stores(self) -> Path:
        """Image stores of this cluster's containerd and registry: they survive `down`."""
        return self.cache / "clusters" / self.name

    @property
    def containerd_socket(self) -> Path:
        return self.state / "containerd.sock"


def base_directory(variable: str, fallback: str) -> Path:
    """A directory by the XDG convention: `$variable`, or `~/fallback` if unset or relative."""
    value = os.environ.get(variable, "")
    return (Path(value) if value.startswith("/") else Path.home() / fallback) / "lora-operator"


def cache_directory() -> Path:
    return base_directory("XDG_CACHE_HOME", ".cache")


def places(name: str) -> Places:
    """The files of the cluster of this name.

    Raises ClusterError for a name that cannot be a file and cgroup name.
    """
    if not _NAME.fullmatch(name):
        raise ClusterError(
            f"--name {name!r} must be at most 40 lower-case letters, digits and '-', starting and ending with a"
            " letter or digit: choose such a name."
        )
    state = base_directory("XDG_STATE_HOME", ".local/state")
    return Places(name=name, cache=cache_directory(), state=state / "clusters" / name)
