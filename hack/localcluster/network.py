"""The node's network and mounts, set up inside namespaces of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

from localcluster import settings

_BRIDGE = "lk0"
# What a kubelet wants to find in settings of the whole machine. Shown to it as files of the node's own,
# so that it has nothing to change: what it wrote would stay after the cluster.
_KUBELET_EXPECTS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}


def prepare_node(run: Path) -> None:
    """Give this network namespace an address and a default route; unknown addresses go nowhere.

    Must run in new network and mount namespaces: it changes routes, sysctls and mounts.
    """
    _run("mount", "--make-rprivate", "/")
    # Namespaces of pods and sockets of container shims then live on mounts that end with the node.
    for folder in ("/run/netns", "/run/containerd"):
        Path(folder).mkdir(exist_ok=True)
        _run("mount", "-t", "tmpfs", "tmpfs", folder)
    _show_expected_settings(run)
    _run("ip", "link", "set", "lo", "up")
    # A bridge carries the address because some kernels have no `dummy` device.
    _run("ip", "link", "add", _BRIDGE, "type", "bridge")
    _run("ip", "addr", "add", f"{settings.NODE_IP}/32", "dev", _BRIDGE)
    _run("ip", "link", "set", _BRIDGE, "up")
    _run("ip", "route", "add", "default", "dev", _BRIDGE)
    _sysctl("net/ipv4/ip_forward", "1")
    _sysctl("net/ipv4/conf/all/route_localnet", "1")
    # Absent where the kernel has no bridge filter; Services between pods of one node then still work by routing.
    if Path("/proc/sys/net/bridge/bridge-nf-call-iptables").exists():
        _sysctl("net/bridge/bridge-nf-call-iptables", "1")


def _show_expected_settings(run: Path) -> None:
    for name, value in _KUBELET_EXPECTS.items():
        setting = Path("/proc/sys", name)
        if setting.exists():
            shown = run / "sysctl" / name.replace("/", ".")
            shown.parent.mkdir(exist_ok=True)
            shown.write_text(f"{value}\n")
            _run("mount", "--bind", str(shown), str(setting))


def _sysctl(name: str, value: str) -> None:
    Path("/proc/sys", name).write_text(value)


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True)
