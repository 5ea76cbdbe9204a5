"""The command line of each component: pure functions from places and ports to arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from localcluster import settings
from localcluster.pki import FRONT_PROXY

if TYPE_CHECKING:
    from pathlib import Path

    from localcluster.settings import Places


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One long-running program; with `needs_api` it is started once the API server is ready."""

    name: str
    argv: tuple[str, ...]
    needs_api: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """TCP ports on 127.0.0.1 in the network namespace where the components run."""

    api: int = settings.API_PORT
    etcd_client: int = 12379
    etcd_peer: int = 12380


def etcd(binary: Path, state: Path, ports: Ports) -> Component:
    """Its data lie in a folder of the version: etcd cannot read those of one that is two minor versions older."""
    minor = settings.ETCD_VERSION.rpartition(".")[0]
    client = f"http://127.0.0.1:{ports.etcd_client}"
    peer = f"http://127.0.0.1:{ports.etcd_peer}"
    argv = (
        str(binary),
        f"--data-dir={state}/etcd-{minor}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        # A throw-away cluster: a power cut may cost its state, and each write is several times faster.
        "--unsafe-no-fsync",
        "--log-level=warn",
    )
    return Component(name="etcd", argv=argv)


def apiserver(binaries: Path, pki: Path, ports: Ports, *, node: bool) -> Component:
    """The API server; `node` adds what a kubelet in the same network namespace needs."""
    argv = [
        str(binaries / "kube-apiserver"),
        f"--etcd-servers=http://127.0.0.1:{ports.etcd_client}",
        f"--secure-port={ports.api}",
        f"--tls-cert-file={pki}/apiserver.crt",
        f"--tls-private-key-file={pki}/apiserver.key",
        f"--client-ca-file={pki}/ca.crt",
        f"--token-auth-file={pki}/tokens.csv",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged",
        f"--service-cluster-ip-range={settings.SERVICE_CIDR}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={pki}/service-account.pub",
        f"--service-account-signing-key-file={pki}/service-account.key",
    ]
    if node:
        argv += [
            f"--advertise-address={settings.NODE_IP}",
            # Without it `kubectl logs` would look up the node's name, which no DNS knows.
            "--kubelet-preferred-address-types=InternalIP",
            f"--kubelet-client-certificate={pki}/apiserver-kubelet-client.crt",
            f"--kubelet-client-key={pki}/apiserver-kubelet-client.key",
            f"--kubelet-certificate-authority={pki}/ca.crt",
            # Without them an API that an add-on serves stays unavailable, and namespaces can then not be deleted.
            f"--proxy-client-cert-file={pki}/front-proxy-client.crt",
            f"--proxy-client-key-file={pki}/front-proxy-client.key",
            f"--requestheader-client-ca-file={pki}/ca.crt",
            f"--requestheader-allowed-names={FRONT_PROXY}",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        ]
    else:
        argv += [
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            # The `kubernetes` Service may not point at a loopback address, and nothing here would use it.
            "--endpoint-reconciler-type=none",
        ]
    return Component(name="kube-apiserver", argv=tuple(argv))


def controller_manager(binaries: Path, pki: Path, *, node: bool, requests_per_second: int | None = None) -> Component:
    """The controllers; without `requests_per_second` each sends 20 to the API server, Kubernetes' own default.

    Without a `node` there are only those that tests make, which never report and would be lost after a minute.
    """
    patience = () if node else ("--node-monitor-grace-period=24h", "--node-startup-grace-period=24h")
    rate = (
        (f"--kube-api-qps={requests_per_second}", f"--kube-api-burst={2 * requests_per_second}")
        if requests_per_second
        else ()
    )
    argv = (
        str(binaries / "kube-controller-manager"),
        f"--kubeconfig={pki}/kube-controller-manager.conf",
        "--use-service-account-credentials",
        "--leader-elect=false",
        f"--root-ca-file={pki}/ca.crt",
        f"--service-account-private-key-file={pki}/service-account.key",
        f"--cluster-signing-cert-file={pki}/ca.crt",
        f"--cluster-signing-key-file={pki}/ca.key",
        "--secure-port=0",
        *patience,
        *rate,
    )
    return Component(name="kube-controller-manager", argv=argv, needs_api=True)


def scheduler(binaries: Path, pki: Path) -> Component:
    argv = (
        str(binaries / "kube-scheduler"),
        f"--kubeconfig={pki}/kube-scheduler.conf",
        "--leader-elect=false",
        "--secure-port=0",
    )
    return Component(name="kube-scheduler", argv=argv, needs_api=True)


def node(binaries: Path, coredns: Path, python: str, places: Places) -> tuple[Component, ...]:
    """What makes a node of the machine; the kubelet finds its containerd when both are up."""
    kubelet = (
        str(binaries / "kubelet"),
        f"--config={places.run}/kubelet.yaml",
        f"--kubeconfig={places.pki}/kubelet.conf",
        f"--hostname-override={settings.NODE_NAME}",
        f"--node-ip={settings.NODE_IP}",
        f"--root-dir={places.state}/kubelet",
        f"--cert-dir={places.pki}",
        # Where its cAdvisor learns which cgroup is which container; no configuration file has it.
        f"--containerd={places.containerd_socket}",
    )
    proxy = (
        str(binaries / "kube-proxy"),
        f"--kubeconfig={places.pki}/kube-proxy.conf",
        "--proxy-mode=iptables",
        f"--cluster-cidr={settings.POD_CIDR}",
        f"--hostname-override={settings.NODE_NAME}",
        # The conntrack table belongs to the whole machine: leave its size alone.
        "--conntrack-max-per-core=0",
        "--bind-address=127.0.0.1",
    )
    provisioner = (
        *(python, "-m", "localcluster.provisioner"),
        f"--pki={places.pki}",
        f"--port={settings.API_PORT}",
        f"--volumes={places.volumes}",
    )
    return (
        Component(name="containerd", argv=("containerd", f"--config={places.run}/containerd.toml")),
        Component(name="registry", argv=("docker-registry", "serve", f"{places.run}/registry.yaml")),
        Component(name="kubelet", argv=kubelet, needs_api=True),
        Component(name="kube-proxy", argv=proxy, needs_api=True),
        Component(name="coredns", argv=(str(coredns), "-conf", f"{places.run}/Corefile"), needs_api=True),
        Component(name="provisioner", argv=provisioner, needs_api=True),
    )
