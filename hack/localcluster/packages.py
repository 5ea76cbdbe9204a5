"""Debian packages: what is missing, and how to install it without starting a service."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from localcluster.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from localcluster.console import Console

# program -> Debian package
CONTROL_PLANE = {"openssl": "openssl"}
NODE = {
    **CONTROL_PLANE,
    "containerd": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "mount": "mount",
    "unshare": "util-linux",
    "tini": "tini",
    "socat": "socat",
    "docker-registry": "docker-registry",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
}
# Buildah looks for its network's program even where a build uses the host's network.
IMAGES = {"buildah": "buildah", "mmdebstrap": "mmdebstrap", "/usr/lib/podman/netavark": "netavark"}
# Layers of a release are packed by it.
RELEASES = {"zstd": "zstd"}
# Not a part of the cluster: what the demo and the tests scrape with.
PROMETHEUS = {
    "prometheus": "prometheus",
    "promtool": "prometheus",
}
ALERTMANAGER = {"prometheus-alertmanager": "prometheus-alertmanager"}
# A process with a wrong clock.
CLOCKS = {"faketime": "faketime"}
# Tests execute the commands of pages, which read the operator's log with it.
PAGES = {"jq": "jq"}
EVERYTHING = {**NODE, **IMAGES, **PROMETHEUS, **CLOCKS, **PAGES}

# A mirror that fails for a moment; and the installation that a machine's first minutes start by themselves.
_PATIENT = ("--option=Acquire::Retries=3", "--option=DPkg::Lock::Timeout=300")
_POLICY = Path("/usr/sbin/policy-rc.d")
_POLICY_TEXT = "#!/bin/sh\n# Written by hack/cluster: no service starts while it installs packages.\nexit 101\n"


def lacking(programs: Mapping[str, str]) -> dict[str, str]:
    """The entries whose program is not found."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    return {program: package for program, package in programs.items() if shutil.which(program, path=path) is None}


def ensure(programs: Mapping[str, str], console: Console, log: Path) -> None:
    """Install what is missing with apt-get, or raise ClusterError naming it."""
    missing = lacking(programs)
    if not missing:
        return
    names = sorted(set(missing.values()))
    if shutil.which("apt-get") is None:
        raise ClusterError(
            f"These programs are missing and there is no apt-get to install them: {', '.join(sorted(missing))}."
        )
    if os.geteuid() != 0:
        raise ClusterError(
            f"These programs are missing: {', '.join(sorted(missing))}; install them as root with"
            f" `apt-get install {' '.join(names)}`."
        )
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    with console.step(f"install Debian packages: {' '.join(names)}", log=log), _no_service_starts():
        _apt(["update"], log)
        _apt(["install", "--yes", "--no-install-recommends", *names], log)
    if missing := lacking(programs):
        raise ClusterError(f"The packages were installed, and yet {', '.join(sorted(missing))} is not found.", log=log)


@contextlib.contextmanager
def _no_service_starts() -> Iterator[None]:
    """Debian asks policy-rc.d before it starts a service; an administrator's own file is left as it is."""
    ours = not _POLICY.exists() or _POLICY.read_text() == _POLICY_TEXT
    if ours:
        _POLICY.write_text(_POLICY_TEXT)
        _POLICY.chmod(0o755)
    try:
        yield
    finally:
        if ours:
            _POLICY.unlink(missing_ok=True)


def remove_leftover_policy() -> None:
    """Remove our policy-rc.d where an installation was killed before it could do so."""
    with contextlib.suppress(OSError):
        if _POLICY.read_text() == _POLICY_TEXT:
            _POLICY.unlink()


def _apt(arguments: list[str], log: Path) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with log.open("ab") as output:
        done = subprocess.run(
            ["apt-get", "--quiet", *_PATIENT, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            check=False,
        )
    if done.returncode != 0:
        raise ClusterError(f"`apt-get {arguments[0]}` failed; it says why.", log=log)
