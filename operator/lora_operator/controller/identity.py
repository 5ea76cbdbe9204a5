"""Which pod this process is: the chart says so in the environment."""

import os
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A name that no other operator of its namespace has; the namespace is empty outside of a cluster."""

    name: str
    namespace: str = ""


def own_identity() -> Identity:
    """The pod's name, which a container that restarts has again, and namespace; outside of a pod a name of its own."""
    name = os.environ.get("POD_NAME") or f"{socket.gethostname()}-{secrets.token_hex(4)}"
    return Identity(name=name, namespace=_own_namespace())


def _own_namespace() -> str:
    named = os.environ.get("POD_NAMESPACE", "")
    if named or not _NAMESPACE_FILE.exists():
        return named
    return _NAMESPACE_FILE.read_text().strip()
