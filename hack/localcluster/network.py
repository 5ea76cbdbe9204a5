"""The node's network and mounts, set up inside namespaces of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

from localcluster import settings

_BRIDGE = "lk0"


def prepare_node() -> None:
    """Give this network namespace an address and a default route; unknown addresses go nowhere.

    Must run in new network and mount namespaces: it changes routes, sysctls and mounts.
    """
    _run("mount", "--make-rprivate", "/")
    # The namespaces of pods then live on a mount that ends with the node.
    Path("/run/netns").mkdir(exist_ok=True)
    _run("mount", "-t", "tmpfs", "tmpfs", "/run/netns")
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


def _sysctl(name: str, value: str) -> None:
    Path("/proc/sys", name).write_text(value)


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True)
